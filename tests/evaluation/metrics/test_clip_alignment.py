"""CLIPScore and R-precision are the published formulas; embeddings do not depend on batches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from xmcgan.errors import EvaluationError, WeightsError
from xmcgan.evaluation.features import Networks
from xmcgan.evaluation.metrics import clip_alignment
from xmcgan.evaluation.metrics.clip_alignment import (
    ClipExtractor,
    clip_score,
    preprocess,
    r_precision,
    sample_distractors,
)
from xmcgan.pretrained.clip import load_clip
from xmcgan.utils.mesh import make_mesh

NUM, WIDTH = 150, 16
CAPTIONS = ["the red cat", "12 dogs", "a photo", "the dog in the café", "thing"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(seed: int, num: int = NUM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, WIDTH)).astype(np.float32)


def numbered(num: int = NUM) -> tuple[list[str], list[int]]:
    return [f"caption {index}" for index in range(num)], list(range(num))


@pytest.fixture
def scores_of(monkeypatch):
    """Return a function that scores embeddings."""
    monkeypatch.setattr(
        clip_alignment, "ClipExtractor", lambda *_: SimpleNamespace(recipe={}, texts=len)
    )

    def score(fake, real, texts, plain, labels=None, resamples=0):
        captions, ids = labels or numbered()
        context: Any = SimpleNamespace(
            networks=None, captions=captions, image_ids=ids, resamples=resamples, seed=0
        )
        both = {"texts": texts, "plain_texts": plain}
        metric = clip_alignment.ClipAlignment(context, "")
        return metric.compute({"images": real, **both}, {"images": fake, **both})

    return score


def test_clip_score_is_two_and_a_half_times_the_positive_cosine():
    images = np.array([[3, 4], [1, 0], [-1, 0], [0, 2]], np.float32)
    texts = np.array([[6, 8], [3, 4], [1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(clip_score(images, texts), [2.5, 1.5, 0, 0], rtol=1e-12)


def test_r_precision_is_the_literal_rank_among_the_drawn_captions():
    texts = embeddings(0)
    images = texts + 1.2 * embeddings(1)
    captions, ids = numbered()
    found = r_precision(images, texts, captions, ids, seed=3)
    expected = []
    for row, drawn in enumerate(sample_distractors(captions, ids, 99, 3)):
        cosines = [unit(images[row]) @ unit(texts[other]) for other in [row, *drawn]]
        expected.append(np.argmax(cosines) == 0)
    assert found.shape == (NUM,)
    assert 0.1 < found.mean() < 0.9
    np.testing.assert_array_equal(found, expected)


def test_r_precision_of_images_that_say_nothing_is_one_in_a_hundred():
    captions, ids = numbered(1000)
    found = r_precision(embeddings(0, 1000), embeddings(1, 1000), captions, ids, seed=0)
    assert 0 < found.mean() < 0.025


def test_ties_count_against_the_model():
    texts = np.ones((NUM, WIDTH), np.float32)
    assert r_precision(embeddings(0), texts, *numbered(), seed=0).max() == 0


def test_distractors_are_distinct_captions_of_other_images():
    captions, ids = numbered(120)
    # Images 0 and 1 share a text, and every caption stands twice, in another spelling.
    captions[1] = captions[0]
    captions += [f"  {caption.upper()} " for caption in captions]
    ids += ids
    drawn = sample_distractors(captions, ids, 99, 0)
    keys = np.array([caption.strip().lower() for caption in captions])
    assert drawn.shape == (240, 99)
    for row, others in enumerate(drawn):
        assert keys[row] not in keys[others]
        assert ids[row] not in np.array(ids)[others]
        assert len(set(keys[others])) == 99
    assert len(np.unique(drawn)) > 110


def test_text_of_ones_own_image_is_not_drawn_from_another_image():
    captions, ids = numbered(110)
    # Image 0 has a second caption, which image 5 has too.
    captions.append(captions[5])
    ids.append(0)
    for seed in range(20):
        assert 5 not in sample_distractors(captions, ids, 99, seed)[0]


def test_distractors_follow_the_seed_and_not_the_order():
    captions, ids = numbered()
    first = sample_distractors(captions, ids, 99, 0)
    np.testing.assert_array_equal(first, sample_distractors(captions, ids, 99, 0))
    assert (first != sample_distractors(captions, ids, 99, 1)).any()
    order = np.random.default_rng(0).permutation(NUM)
    other = sample_distractors([captions[i] for i in order], [ids[i] for i in order], 99, 0)
    np.testing.assert_array_equal(order[other], first[order])


def test_too_few_distinct_captions_is_an_error_that_says_how_many_are_needed():
    captions, ids = numbered(100)
    assert sample_distractors(captions, ids, 99, 0).shape == (100, 99)
    captions[1] = "Caption  0"
    with pytest.raises(EvaluationError, match=r"needs 100 distinct captions here; there are 99"):
        sample_distractors(captions, ids, 99, 0)
    captions, ids = numbered(100)
    with pytest.raises(EvaluationError, match=r"needs 101 distinct captions here; there are 100"):
        sample_distractors([*captions, captions[5]], [*ids, 0], 99, 0)


def test_every_score_stands_beside_that_of_the_real_images_with_its_interval(scores_of):
    texts = embeddings(0)
    fake, real = texts + 2 * embeddings(1), texts + embeddings(2)
    scores = scores_of(fake, real, texts, texts, resamples=200)
    values = {name: score.value for name, score in scores.items()}
    assert list(values) == [
        name + side
        for name in ("score", "r_precision", "r_precision_prefixed")
        for side in ("", "_real")
    ]
    assert values["score"] == pytest.approx(clip_score(fake, texts).mean(), rel=1e-12)
    assert values["score_real"] == pytest.approx(clip_score(real, texts).mean(), rel=1e-12)
    assert values["r_precision"] < values["r_precision_real"]
    assert {score.better for score in scores.values()} == {"higher"}
    for name, side in (("score", fake), ("score_real", real)):
        score = scores[name]
        error = clip_score(side, texts).std() / NUM**0.5
        assert score.low < score.value < score.high
        # The mean's interval has a closed form: 1.96 standard errors on each side.
        assert (score.high - score.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.25)


def test_order_of_the_examples_changes_no_score(scores_of):
    texts = embeddings(0)
    sides = texts + 2 * embeddings(1), texts + embeddings(2)
    captions, ids = numbered()
    values = []
    for order in (np.arange(NUM), np.random.default_rng(1).permutation(NUM)):
        fake, real = (side[order] for side in sides)
        labels = [captions[i] for i in order], [ids[i] for i in order]
        scores = scores_of(fake, real, texts[order], texts[order], labels)
        values.append([score.value for score in scores.values()])
    assert values[1] == pytest.approx(values[0], rel=1e-9)


def test_intervals_end_where_the_scores_do(scores_of):
    texts = embeddings(0)
    only = np.arange(NUM)[:, None] == 0
    fake, real = np.where(only, texts, -texts), np.where(only, -texts, texts)
    found = scores_of(fake, real, texts, texts, resamples=50)
    scores = [found[name] for name in ("score", "score_real", "r_precision", "r_precision_real")]
    assert [scores[0].low, scores[2].low] == [0, 0]
    assert min(scores[0].value, scores[2].value) > 0
    assert scores[1].value < scores[1].high == 2.5
    assert scores[3].value < scores[3].high == 1.0


def test_no_resamples_give_no_interval_and_too_few_are_an_error(scores_of):
    texts, both = embeddings(0), embeddings(1)
    scores = scores_of(both, both, texts, texts)
    assert {(score.low, score.high) for score in scores.values()} == {(None, None)}
    with pytest.raises(EvaluationError, match="5"):
        scores_of(both, both, texts, texts, resamples=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_embedding_without_a_direction_is_an_error_that_names_the_image(value):
    damaged = embeddings(1)
    damaged[7] = value
    with pytest.raises(EvaluationError, match="image 7 "):
        clip_score(damaged, embeddings(0))
    with pytest.raises(EvaluationError, match="captions of image 7 "):
        r_precision(embeddings(0), damaged, *numbered(), seed=0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tiny_clip.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def extractor(directory) -> ClipExtractor:
    return make_extractor(directory, 1, 4)


def make_extractor(directory: Path, devices: int, batch_size: int) -> ClipExtractor:
    mesh = make_mesh(jax.devices()[:devices])
    return ClipExtractor(directory, Networks(mesh, batch_size, allow_unverified=True))


def pillow(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side and crop the center, as CLIP's own code does."""
    height, width = image.shape[:2]
    short = min(height, width)
    wide, high = size * width // short, size * height // short
    resized = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize(("height", "width"), [(24, 24), (97, 61), (45, 130)])
def test_images_are_resized_and_cropped_as_by_pillow(height, width):
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = np.asarray(preprocess(image[None], 48)[0])
    assert found.shape == (48, 48, 3)
    error = np.abs(found * 255 - pillow(image, 48))
    assert error.max() < 1.001
    assert (error > 0.001).mean() < 0.001


def test_images_are_those_of_the_network_after_pillow(directory, extractor):
    clip = load_clip(directory, allow_unverified=True)
    resized = np.stack([pillow(image, tiny_clip.IMAGE) for image in IMAGES])
    expected = jax.jit(clip.encode_images)(clip.params, resized.astype(np.float32) / 255)
    found = extractor.images(IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_captions_begin_with_the_prefix_of_clip_score(extractor):
    found = extractor.texts(CAPTIONS)
    written_out = [f"A photo depicts {caption}" for caption in CAPTIONS]
    np.testing.assert_allclose(found, extractor.texts(written_out, prefix=""), rtol=1e-6, atol=1e-6)
    assert np.abs(found - extractor.texts(CAPTIONS, prefix="")).max() > 0.1


@pytest.mark.mesh
def test_batches_and_devices_do_not_change_embeddings(directory, extractor):
    other = make_extractor(directory, devices=8, batch_size=1)
    close = {"rtol": 1e-5, "atol": 1e-5}
    found = other.images(IMAGES)
    np.testing.assert_allclose(found, extractor.images(IMAGES), **close)
    np.testing.assert_allclose(other.texts(CAPTIONS), extractor.texts(CAPTIONS), **close)


def test_recipe_names_network_and_weights(directory, extractor):
    clip = load_clip(directory, allow_unverified=True)
    assert extractor.recipe["weights_sha256"] == clip.sha256
    assert extractor.recipe["weights_verified"] is False
    assert "patch 8, image 32" in extractor.recipe["network"]


def test_unverified_weights_need_permission(directory):
    with pytest.raises(WeightsError, match="--allow-unverified-weights"):
        ClipExtractor(directory, Networks(make_mesh(jax.devices()[:1])))


def test_r_precision_is_of_plain_captions_with_its_deviation_over_ten_chunks(scores_of):
    plain, prefixed = embeddings(0), embeddings(5)
    fake = plain + 2 * embeddings(1)
    found = scores_of(fake, fake, prefixed, plain)
    hits = r_precision(fake, plain, *numbered(), seed=0)
    assert found["r_precision"].value == pytest.approx(hits.mean())
    means = hits.reshape(10, 15).mean(axis=1)
    expected = f"{means.mean():.4f} +- {means.std():.4f} over 10 chunks"
    assert found["r_precision"].note == expected
    assert found["score"].value == pytest.approx(clip_score(fake, prefixed).mean())
    assert found["r_precision_prefixed"].value < 0.1 < found["r_precision"].value
