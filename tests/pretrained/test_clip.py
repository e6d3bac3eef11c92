"""CLIP computes what an independent implementation does, and names what is wrong with its files.

`expected/tiny_clip.npz` was made with transformers 5.23.0 on PyTorch 2.15.0 (CPU): the tensors of
`tiny_clip.tensors()` were loaded into `CLIPModel(CLIPConfig(**tiny_clip.config()))`, which embedded
`tiny_clip.images(3)`, standardised by CLIP's mean and deviation, and `CAPTIONS` as tokenized by
`CLIPTokenizer` from `tiny_clip.write_vocabulary` (`image`, `token_ids`, `text`); and `END_IDS` with
`eos_token_id` 7 (`text_at_token_7`) and 2 (`text_at_highest`).
"""

import hashlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_clip
import tokenizers
from convert_weights import convert
from torch_writer import Tensor, save_archive

from xmcgan.errors import WeightsError
from xmcgan.pretrained import clip as clip_module
from xmcgan.pretrained.clip import Clip, ClipTokenizer, load_clip

CAPTIONS = [
    "the red cat",
    "A  Photo\tof 12 dogs,\n isn't it?",
    "",
    "Cafe\u0301 🐈 don't!! the dog's 3rd thing...",
    " ".join(["the dog painting the red cat"] * 8),
]
END_IDS = np.array([[5, 9, 7, 300, 7], [1, 7, 400, 2, 3]], np.int32)
EXPECTED = np.load(Path(__file__).with_name("expected") / "tiny_clip.npz")


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tiny_clip.write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def clip(directory) -> Clip:
    return load_clip(directory, allow_unverified=True)


@pytest.fixture
def copy(tmp_path) -> Path:
    return tiny_clip.write_clip(tmp_path)


def load(directory: Path) -> Clip:
    return load_clip(directory, allow_unverified=True)


def end_embeddings(clip: Clip) -> np.ndarray:
    return np.asarray(jax.jit(clip.encode_text)(clip.params, END_IDS))


def assert_close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_images_are_embedded_as_by_an_independent_implementation(clip):
    assert_close(jax.jit(clip.encode_images)(clip.params, tiny_clip.images(3)), EXPECTED["image"])


def test_captions_are_embedded_as_by_an_independent_implementation(clip):
    found = jax.jit(clip.encode_text)(clip.params, clip.tokenizer(CAPTIONS))
    assert_close(found, EXPECTED["text"])


def test_what_stands_after_the_end_token_changes_nothing(clip):
    ids = clip.tokenizer(CAPTIONS)
    end = tiny_clip.VOCABULARY[tiny_clip.END]
    ids[np.cumsum(ids == end, axis=1) > 1] = 0
    np.testing.assert_array_equal(ids[:, -1] == 0, [True, True, True, True, False])
    assert_close(jax.jit(clip.encode_text)(clip.params, ids), EXPECTED["text"])


@pytest.mark.parametrize(("end_token", "expected"), [(7, "at_token_7"), (2, "at_highest")])
def test_caption_is_read_at_the_first_end_token_or_in_old_configs_at_the_highest_id(
    copy, end_token, expected
):
    tiny_clip.write_config(copy, tiny_clip.config(eos_token_id=end_token))
    assert_close(end_embeddings(load(copy)), EXPECTED[f"text_{expected}"])


def test_sizes_come_from_the_config(clip):
    sizes = clip.image_size, clip.image_transformer.projection_dim
    assert sizes == (tiny_clip.IMAGE, tiny_clip.EMBED)
    assert clip.architecture == "ViT width 32, 2 layers, patch 8, image 32"
    assert {leaf.dtype for leaf in jax.tree.leaves(clip.params)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("config", "num_values", "image_size"),
    [
        # What the published configs say; fields that they leave out have these defaults.
        ({}, 151_277_312, 224),
        (
            {
                "projection_dim": 768,
                "text_config": {"eos_token_id": 2},
                "text_config_dict": {
                    "hidden_size": 768,
                    "intermediate_size": 3072,
                    "num_attention_heads": 12,
                    "projection_dim": 768,
                },
                "vision_config": {
                    "hidden_size": 1024,
                    "intermediate_size": 4096,
                    "num_hidden_layers": 24,
                    "num_attention_heads": 16,
                    "image_size": 336,
                    "patch_size": 14,
                },
                "vision_config_dict": None,
            },
            427_944_192,
            336,
        ),
    ],
    ids=["ViT-B/32", "ViT-L/14-336"],
)
def test_published_sizes_have_the_published_number_of_values(
    tmp_path, config, num_values, image_size
):
    tiny_clip.write_config(tmp_path, config)
    image, text = clip_module._read_config(tmp_path / "config.json")
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    params = [
        jax.eval_shape(image.init, jax.random.key(0), images),
        jax.eval_shape(text.init, jax.random.key(0), ids),
    ]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_values


def test_weights_that_are_not_published_need_permission(directory):
    with pytest.raises(WeightsError, match="--allow-unverified-weights"):
        load_clip(directory, allow_unverified=False)
    assert not load(directory).verified


def test_published_weights_are_known_by_their_digest(copy, monkeypatch):
    data = (copy / "model.safetensors").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setattr(clip_module, "PUBLISHED_SHA256", (digest,))
    found = load_clip(copy, allow_unverified=False)
    assert (found.verified, found.sha256) == (True, digest)
    (copy / "model.safetensors").write_bytes(data[:-1] + b"\1")
    with pytest.raises(WeightsError, match=digest):
        load_clip(copy, allow_unverified=False)


def test_converted_pytorch_file_gives_the_same_parameters_under_its_own_digest(copy, clip):
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    state = {name: Tensor(values) for name, values in tensors.items()}
    file = save_archive(copy / "pytorch_model.bin", state)
    assert load(copy).sha256 == clip.sha256
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=f"convert_weights.py clip {file}"):
        load(copy)
    convert("clip", file)
    found = load(copy)
    jax.tree.map(np.testing.assert_array_equal, found.params, clip.params)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_model.pre_layrnorm.bias": None}, "vision_model.pre_layrnorm.bias"),
        (
            {"text_model.encoder.layers.2.mlp.fc1.bias": np.zeros(48, np.float32)},
            "text_model.encoder.layers.2.mlp.fc1.bias",
        ),
        (
            {"visual_projection.weight": np.zeros((32, 16), np.float32)},
            "projection/kernel (16, 32) where (32, 16)",
        ),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_missing_extra_and_misshapen_tensors_are_named(copy, change, named):
    tensors = {name: t for name, t in (tiny_clip.tensors() | change).items() if t is not None}
    safetensors.numpy.save_file(tensors, copy / "model.safetensors")
    with pytest.raises(WeightsError, match=re.escape(named)):
        load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "model_type .*'siglip'"),
        ({"projection_dim": 0}, "projection_dim .* 0"),
        ({"vision_config": {"patch_size": "8"}}, r"vision_config\.patch_size .*'8'"),
        (
            {"vision_config": tiny_clip.config()["vision_config"] | {"patch_size": 64}},
            "sizes|does not fit",
        ),
        ({"vision_config": 3}, "vision_config"),
        ({"text_config": {"num_attention_heads": 7}}, r"text_config\..*num_attention_heads"),
        ({"text_config": {"hidden_act": "gelu"}}, r"text_config\.hidden_act .*'gelu'"),
    ],
)
def test_config_of_another_network_is_named(copy, change, message):
    tiny_clip.write_config(copy, tiny_clip.config() | change)
    with pytest.raises(WeightsError, match=message):
        load(copy)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_missing_or_damaged_config_is_named(copy, content):
    file = copy / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(copy)


def test_captions_are_tokenized_as_by_an_independent_implementation(clip):
    np.testing.assert_array_equal(clip.tokenizer(CAPTIONS), EXPECTED["token_ids"])
    assert clip.tokenizer([]).shape == (0, 77)


def test_long_caption_keeps_the_end_token(clip):
    ids = clip.tokenizer([CAPTIONS[-1]])[0]
    end = tiny_clip.VOCABULARY[tiny_clip.END]
    assert np.flatnonzero(ids == end).tolist() == [76]


def test_caption_that_spells_an_end_token_does_not_end_there(clip):
    ids = clip.tokenizer([f"the {tiny_clip.END} cat"])[0].tolist()
    cat, end = tiny_clip.VOCABULARY["cat</w>"], tiny_clip.VOCABULARY[tiny_clip.END]
    assert ids.index(cat) == ids.index(end) - 1


def test_both_forms_of_the_tokenizer_agree(copy, clip):
    whole = tokenizers.Tokenizer.from_str(clip.tokenizer._tokenizer.to_str())
    # As published: no padding and a shorter truncation, which must not stay.
    whole.no_padding()
    whole.enable_truncation(5)
    whole.save(str(copy / "tokenizer.json"))
    (copy / "merges.txt").unlink()
    np.testing.assert_array_equal(ClipTokenizer(copy, 77)(CAPTIONS), EXPECTED["token_ids"])


def test_missing_tokenizer_is_named(copy):
    (copy / "merges.txt").unlink()
    with pytest.raises(WeightsError, match=r"vocab\.json and merges\.txt"):
        load(copy)


def test_damaged_tokenizers_are_named(copy):
    (copy / "merges.txt").write_text("th e</w>\nq u\n")
    with pytest.raises(WeightsError, match="not a readable tokenizer"):
        load(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match="not a readable tokenizer"):
        load(copy)


def test_tokenizers_of_other_networks_are_named(copy, clip):
    (copy / "vocab.json").write_text('{"a": 0}')
    (copy / "merges.txt").write_text("")
    with pytest.raises(WeightsError, match="lacks"):
        load(copy)
    bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    bare.save(str(copy / "tokenizer.json"))
    with pytest.raises(WeightsError, match="is not CLIP's"):
        load(copy)


def test_tokenizer_of_a_larger_network_is_named(copy):
    tiny_clip.write_config(copy, tiny_clip.config(vocab_size=100))
    with pytest.raises(WeightsError, match="do not belong together"):
        load(copy)
