"""Ways between captions and noises, and attention to words, against plain samples and loops."""

import jax
import numpy as np
import pytest

from xmcgan.errors import UserError
from xmcgan.sampling import model_folder
from xmcgan.sampling.exploration import (
    interpolate_captions,
    interpolate_noise,
    open_model,
    sample_table,
    word_attention,
)
from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel, sample_noise

SHORT, LONG = "a star", "the red circle on left"


@pytest.fixture(scope="module")
def model(tiny_workdir):
    return TrainedModel.from_workdir(tiny_workdir)


@pytest.fixture(scope="module")
def z(model):
    return sample_noise(0, 3, model.config.generator.z_dim)


def test_a_table_has_a_row_a_caption_and_a_column_a_noise(model, z):
    table = sample_table(model, [SHORT, LONG], z)
    assert table.shape == (2, 3, 32, 32, 3)
    for row, caption in enumerate([SHORT, LONG]):
        for column in range(3):
            plain = model([caption], z[column : column + 1])[0]
            np.testing.assert_allclose(table[row, column].astype(int), plain, atol=1)


@pytest.mark.parametrize("captions", [(SHORT, LONG), (LONG, SHORT), (LONG, LONG)])
def test_a_blend_of_captions_begins_and_ends_with_the_plain_samples(model, z, captions):
    same_noise = np.repeat(z[:1], 5, axis=0)
    frames = interpolate_captions(model, *captions, same_noise).astype(int)
    plain = model(captions, same_noise[:2])
    np.testing.assert_allclose(frames[0], plain[0], atol=1)
    np.testing.assert_allclose(frames[-1], plain[1], atol=1)


def test_a_blend_of_captions_changes_by_degrees(model, z):
    frames = interpolate_captions(model, SHORT, LONG, np.repeat(z[:1], 21, axis=0)).astype(float)
    whole = np.abs(frames[-1] - frames[0]).mean()
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert whole > 1
    assert steps.max() < whole / 3


def test_a_blend_of_a_caption_with_itself_stands_still(model, z):
    frames = interpolate_captions(model, LONG, LONG, np.repeat(z[:1], 4, axis=0)).astype(int)
    np.testing.assert_allclose(frames - frames[0], 0, atol=1)


def test_noise_between_two_lies_on_the_arc_at_equal_angles():
    start, end = sample_noise(0, 2, 500)
    between = interpolate_noise(start, end, 7)
    assert between.dtype == np.float32
    np.testing.assert_array_equal(between[[0, -1]], [start, end])
    unit = between / np.linalg.norm(between, axis=1, keepdims=True)
    angles = np.arccos((unit[:-1] * unit[1:]).sum(axis=1))
    np.testing.assert_allclose(angles, angles.mean(), rtol=0.05)
    lengths = np.linalg.norm(between, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=0.1)  # a straight line loses 0.29


@pytest.mark.parametrize("factor", [1, 2, -1, 0])
def test_noise_between_vectors_without_an_arc_is_finite(factor):
    start = sample_noise(0, 1, 6)[0]
    between = interpolate_noise(start, factor * start, 5)
    np.testing.assert_allclose(between[2], (1 + factor) / 2 * start, atol=1e-6)


def test_attention_sums_to_one_over_the_words_of_a_region_and_leaves_none_to_padding(model, z):
    attention = word_attention(model, LONG, z[0])
    assert attention.words == ["[CLS]", *LONG.split(), "[SEP]"]
    assert attention.maps.shape == (7, 8, 8)
    np.testing.assert_allclose(attention.maps.sum(axis=0), 1, atol=1e-5)
    assert attention.maps.std(axis=0).max() > 0.01  # and is not the same for all words


def test_pieces_of_a_word_share_one_map_and_the_image_is_the_plain_sample(model, z, monkeypatch):
    plain = word_attention(model, LONG, z[0])
    np.testing.assert_allclose(plain.image.astype(int), model([LONG], z[:1])[0], atol=1)
    index = np.array([0, 1, 2, 2, 3, 4, 5])  # as if `red circle` were one word of two pieces
    named = (["[CLS]", "the", "redcircle", "on", "left", "[SEP]"], index)
    monkeypatch.setattr(model.sampler.tokenizer, "name_words", lambda caption: named)
    joined = word_attention(model, LONG, z[0]).maps
    np.testing.assert_allclose(joined[2], plain.maps[2] + plain.maps[3], rtol=1e-5)
    np.testing.assert_array_equal(joined[3:], plain.maps[4:])


def test_attention_is_the_softmax_of_the_cosines_between_the_generators_query_and_words(model, z):
    token_ids, mask = model.sampler.tokenizer([LONG])
    words, sentence = model.sampler.text.apply(model.sampler.text_params, token_ids, mask)

    @jax.jit
    def query_of(variables, *inputs):
        query_only = {"capture_intermediates": lambda module, _: module.name == "query"}
        _, noted = model.sampler.generator.apply(
            variables, *inputs, train=False, mutable=["intermediates"], **query_only
        )
        return noted["intermediates"]["query"]["__call__"][0]

    query = np.asarray(query_of(model.variables, words, mask, sentence, z[:1]))[0]
    real = np.asarray(words)[0, mask[0]]
    cosines = np.einsum("hwd,td->thw", query, real)
    cosines /= np.linalg.norm(query, axis=-1) * np.linalg.norm(real, axis=-1)[:, None, None]
    weights = np.exp(15.0 * cosines)
    maps = word_attention(model, LONG, z[0]).maps
    np.testing.assert_allclose(maps, weights / weights.sum(axis=0), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("place", ["", "notebooks"])
def test_a_workdir_is_opened_from_the_root_and_from_below(
    tiny_workdir, tmp_path, monkeypatch, place
):
    workdir = tmp_path / "runs" / "mine"
    workdir.parent.mkdir()
    workdir.symlink_to(tiny_workdir)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.delenv("XMCGAN_WORKDIR", raising=False)
    monkeypatch.chdir(tmp_path / place)
    opened, out = open_model("runs/mine")
    assert (opened.steps, out) == ([3, 6], workdir / "notebook")
    monkeypatch.setenv("XMCGAN_WORKDIR", str(tiny_workdir))
    assert open_model("emoji64")[1] == tiny_workdir / "notebook"


def test_a_model_folder_is_opened_by_path_and_by_name(model, tmp_path, monkeypatch):
    info = {"steps": 6, "images_seen": 48}
    folder = save_model(tmp_path / "a" / "tiny", model.variables, model.config, info, "")
    monkeypatch.delenv("XMCGAN_WORKDIR", raising=False)
    opened, out = open_model(str(folder))
    assert (opened.origin["model"], out) == ("tiny", folder / "notebook")
    monkeypatch.setattr(model_folder, "MODELS_DIR", folder.parent)
    opened, out = open_model("tiny")
    assert opened.origin["model"] == "tiny"
    assert not out.is_relative_to(folder)  # nothing is written into the repository's models
    with pytest.raises(UserError, match="'tiny'"):
        open_model("tinny")


def test_a_workdir_that_is_not_there_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XMCGAN_WORKDIR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match=r"absent.*XMCGAN_WORKDIR"):
        open_model("emoji64")
