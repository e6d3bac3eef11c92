"""BERT computes the published network, reads its files, and names what is wrong with them."""

import json
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from xmcgan.errors import WeightsError
from xmcgan.pretrained.bert import encode, load_bert
from xmcgan.pretrained.encoders import load_text_encoder

CONFIG = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
TOKEN_IDS = np.array([[1, 5, 7, 2, 0], [1, 12, 2, 0, 0]], np.int32)
WORD_MASK = TOKEN_IDS > 0


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}attention.{name}.weight"] = (width, width)
            shapes[f"{layer}attention.{name}.bias"] = (width,)
        shapes[f"{layer}intermediate.dense.weight"] = (inner, width)
        shapes[f"{layer}intermediate.dense.bias"] = (inner,)
        shapes[f"{layer}output.dense.weight"] = (width, inner)
        shapes[f"{layer}output.dense.bias"] = (width,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{name}.weight"] = (width,)
            shapes[f"{layer}{name}.bias"] = (width,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(directory, tensors, config=CONFIG):
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def literal_bert(tensors: dict[str, np.ndarray], token_ids: np.ndarray) -> np.ndarray:
    """Compute one caption without padding, in float64, as the paper writes it."""
    p = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def dense(x, name):
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x, name):
        centered = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-12)
        return centered / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["embeddings.word_embeddings.weight"][token_ids]
    x = x + p["embeddings.position_embeddings.weight"][: len(token_ids)]
    x = norm(x + p["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        parts = [dense(x, f"{layer}.attention.self.{n}") for n in ("query", "key", "value")]
        heads = []
        for head in range(2):
            query, key, value = (part[:, 4 * head : 4 * head + 4] for part in parts)
            weights = np.exp(query @ key.T / 2)
            heads.append(weights / weights.sum(-1, keepdims=True) @ value)
        attended = dense(np.concatenate(heads, -1), f"{layer}.attention.output.dense")
        x = norm(x + attended, f"{layer}.attention.output.LayerNorm")
        inner = dense(x, f"{layer}.intermediate.dense")
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def test_words_are_the_literal_formula_at_real_positions(tmp_path):
    tensors = random_tensors()
    module, params = load_bert(save(tmp_path, tensors))
    words, _ = encode(module, params, TOKEN_IDS, WORD_MASK)
    for caption, (ids, mask) in enumerate(zip(TOKEN_IDS, WORD_MASK, strict=True)):
        expected = literal_bert(tensors, ids[mask])
        np.testing.assert_allclose(words[caption][mask], expected, rtol=2e-4, atol=2e-5)


def test_real_words_and_the_masked_mean_do_not_depend_on_padding(tmp_path):
    module, params = load_bert(save(tmp_path, random_tensors()))
    words, sentence = encode(module, params, TOKEN_IDS, WORD_MASK)
    padding = ((0, 0), (0, 4))
    longer = encode(module, params, np.pad(TOKEN_IDS, padding), np.pad(WORD_MASK, padding))
    np.testing.assert_allclose(longer[0][:, :5][WORD_MASK], words[WORD_MASK], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(longer[1], sentence, rtol=1e-5, atol=1e-6)


def test_sentence_adds_up_real_or_all_positions_over_the_number_of_real_ones(tmp_path):
    module, params = load_bert(save(tmp_path, random_tensors()))
    words, masked = encode(module, params, TOKEN_IDS, WORD_MASK)
    _, padded = encode(module, params, TOKEN_IDS, WORD_MASK, sentence_pooling="padded_mean")
    expected = [row[mask].mean(0) for row, mask in zip(words, WORD_MASK, strict=True)]
    np.testing.assert_allclose(masked, np.stack(expected), rtol=1e-5, atol=1e-6)
    official = np.asarray(words).sum(1) / WORD_MASK.sum(1, keepdims=True)
    np.testing.assert_allclose(padded, official, rtol=1e-5, atol=1e-6)
    assert np.abs(masked - padded).max() > 0.01


def test_caption_without_any_real_token_gives_finite_numbers(tmp_path):
    module, params = load_bert(save(tmp_path, random_tensors()))
    words, sentence = encode(module, params, TOKEN_IDS, np.zeros_like(WORD_MASK))
    assert np.isfinite(words).all()
    assert np.isfinite(sentence).all()


def test_prefix_old_norm_names_heads_and_position_ids_change_nothing(tmp_path):
    tensors = random_tensors()
    other = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    other["bert.pooler.dense.weight"] = np.ones((8, 8), np.float32)
    other["cls.predictions.bias"] = np.ones(13, np.float32)
    other["bert.embeddings.position_ids"] = np.arange(9)[None]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, expected = load_bert(save(tmp_path / "a", tensors))
    _, found = load_bert(save(tmp_path / "b", other) / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in random_tensors().items()}
    _, params = load_bert(save(tmp_path, tensors))
    expected = tensors["embeddings.word_embeddings.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["word_embeddings"], expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_bfloat16_products_stay_near_float32_and_return_float32(tmp_path):
    module, params = load_bert(save(tmp_path, random_tensors()))
    half, _ = load_bert(tmp_path, dtype=jnp.bfloat16)
    words, sentence = encode(module, params, TOKEN_IDS, WORD_MASK)
    half_words, half_sentence = encode(half, params, TOKEN_IDS, WORD_MASK)
    assert half_words.dtype == half_sentence.dtype == jnp.float32
    error = np.linalg.norm(half_words - words) / np.linalg.norm(words)
    assert 0 < error < 0.05
    assert np.linalg.norm(half_sentence - sentence) / np.linalg.norm(sentence) < 0.05


LAYER = "encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({LAYER: None}, LAYER),
        ({"encoder.layer.2.output.dense.bias": np.zeros(8, np.float32)}, "encoder.layer.2.output"),
        ({LAYER: np.zeros(7, np.float32)}, "layer_0/output/bias (7,) where (8,)"),
        ({LAYER: np.full(8, np.nan, np.float32)}, "layer_0/output/bias"),
        ({"embeddings.token_type_embeddings.weight": np.zeros((2, 1), np.float32)}, "token_type"),
        ({"encoder.layer.0.attention.self.key.weight": np.zeros(3, np.float32)}, "does not fit"),
    ],
    ids=["missing", "extra", "misshapen", "not finite", "token types", "parts of one product"],
)
def test_missing_extra_misshapen_and_not_finite_tensors_are_named(tmp_path, change, named):
    tensors = {name: t for name, t in (random_tensors() | change).items() if t is not None}
    with pytest.raises(WeightsError, match=re.escape(named)) as error:
        load_bert(save(tmp_path, tensors))
    assert "model.safetensors" in str(error.value)


def test_cut_file_is_named(tmp_path):
    file = save(tmp_path, random_tensors()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        load_bert(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act .*'relu'"),
        ({"model_type": "roberta"}, "model_type .*'roberta'"),
        ({"hidden_size": "8"}, "hidden_size .*'8'"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
    ],
)
def test_config_of_another_network_is_refused(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        load_bert(save(tmp_path, random_tensors(), CONFIG | change))


def test_captions_beyond_the_learned_positions_are_refused(tmp_path):
    module, params = load_bert(save(tmp_path, random_tensors()))
    with pytest.raises(WeightsError, match=r"10 tokens do not fit .* 9 positions"):
        encode(module, params, np.ones((1, 10), np.int32), np.ones((1, 10), bool))


def test_missing_word_pieces_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"vocab\.txt"):
        load_text_encoder(save(tmp_path, random_tensors()))


def test_minilm_reproduces_the_golden_words(minilm_dir, shared_dir):
    golden = np.load(shared_dir / "golden" / "minilm_17.npz")
    encoder = load_text_encoder(minilm_dir)
    mask = golden["attention_mask"].astype(bool)
    words, sentence = jax.jit(encoder.apply)(encoder.params, golden["input_ids"], mask)
    assert words.shape == (6, 17, encoder.width)
    assert sentence.shape == (6, encoder.width)
    np.testing.assert_allclose(words[mask], golden["last_hidden_state"][mask], atol=1e-4)
