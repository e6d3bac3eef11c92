"""CLIP's embeddings follow from images and captions alone, however they are batched and shared."""

from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_clip
from PIL import Image

from xmcgan.errors import EvaluationError, WeightsError
from xmcgan.evaluation.clip_features import ClipExtractor, preprocess
from xmcgan.pretrained.clip_weights import load_clip
from xmcgan.utils.mesh import make_mesh

CAPTIONS = ["the red cat", "12 dogs", "a photo", "the dog in the café", "thing"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tiny_clip.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def extractor(directory) -> ClipExtractor:
    return make_extractor(directory, 1, 4)


def make_extractor(directory: Path, devices: int, batch_size: int) -> ClipExtractor:
    mesh = make_mesh(jax.devices()[:devices])
    return ClipExtractor(directory, mesh=mesh, batch_size=batch_size, allow_unverified=True)


def pillow(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the short side and crop the centre, as CLIP's own code does."""
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
    found = extractor.images([IMAGES], expected=5)
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
    found = other.images(iter([IMAGES[:1], IMAGES[1:4], IMAGES[4:]]), expected=5)
    np.testing.assert_allclose(found, extractor.images([IMAGES]), **close)
    np.testing.assert_allclose(other.texts(CAPTIONS), extractor.texts(CAPTIONS), **close)


def test_recipe_names_network_and_weights(directory, extractor):
    clip = load_clip(directory, allow_unverified=True)
    assert extractor.recipe["weights_sha256"] == clip.sha256
    assert extractor.recipe["weights_verified"] is False
    assert "patch 8, image 32" in extractor.recipe["network"]


def test_unverified_weights_need_permission(directory):
    with pytest.raises(WeightsError, match="--allow-unverified-weights"):
        ClipExtractor(directory, mesh=make_mesh(jax.devices()[:1]))


def test_wrong_number_of_images_is_an_error(extractor):
    with pytest.raises(EvaluationError, match="5 images came where 6 were expected"):
        extractor.images([IMAGES], expected=6)


def test_nothing_to_score_is_an_error(extractor):
    with pytest.raises(EvaluationError, match="no images"):
        extractor.images([])
    with pytest.raises(EvaluationError, match="no captions"):
        extractor.texts([])


def test_images_of_several_sizes_are_an_error(extractor):
    with pytest.raises(EvaluationError, match="one size"):
        extractor.images([IMAGES, IMAGES[:, :32]])


def test_embeddings_that_are_not_finite_are_an_error(extractor, monkeypatch):

    def damaged(images):
        return images[:, 0, 0].astype(np.float32) / np.where(images[:, 0, 0] == 7, 0, 1)

    monkeypatch.setattr(extractor, "_encode_images", damaged)
    images = np.full((6, 32, 32, 3), 5, np.uint8)
    images[4] = 7
    with pytest.raises(EvaluationError, match=r"image 4 .* is not finite"):
        extractor.images([images])
