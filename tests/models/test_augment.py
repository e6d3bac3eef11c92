"""DiffAugment against its formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.models.augment import NUM_UNIFORMS, POLICIES, diff_augment

SIZE = 16


@pytest.fixture
def images():
    return np.random.default_rng(0).random((4, SIZE, SIZE, 3), np.float32)


@pytest.fixture
def uniforms():
    return np.random.default_rng(1).random((4, NUM_UNIFORMS), np.float32)


def test_color_equals_the_original_on_its_own_range(images, uniforms):
    ours = diff_augment(images, uniforms, ("color",))
    for image, (brightness, saturation, contrast), result in zip(
        images, uniforms[:, :3], ours, strict=True
    ):
        x = image * 2 - 1 + (brightness - 0.5)
        gray = x.mean(axis=-1, keepdims=True)
        x = (x - gray) * (saturation * 2) + gray
        x = (x - x.mean()) * (contrast + 0.5) + x.mean()
        np.testing.assert_allclose(result * 2 - 1, x, atol=1e-5)


@pytest.mark.parametrize(("u", "shift"), [(0.0, -2), (0.5, 0), (0.999, 2)])
def test_translation_moves_by_whole_pixels_and_fills_with_gray(images, u, shift):
    uniforms = np.full((4, NUM_UNIFORMS), 0.5, np.float32)
    uniforms[:, 3] = u  # rows; columns stay
    moved = np.asarray(diff_augment(images, uniforms, ("translation",)))
    expected = np.full_like(images, 0.5)
    for row in range(SIZE):
        if 0 <= row + shift < SIZE:
            expected[:, row] = images[:, row + shift]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_cutout_takes_at_most_a_quarter_and_no_gradient_comes_from_it(images, uniforms):
    cut = np.asarray(diff_augment(images, uniforms, ("cutout",)))
    gone = (cut != images).any(axis=-1)
    for mask in gone:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert 0 < len(rows) <= SIZE // 2
        assert mask[np.ix_(rows, columns)].all()  # a rectangle
        assert mask.sum() == len(rows) * len(columns)
    gradient = jax.grad(lambda x: diff_augment(x, uniforms, ("cutout",)).sum())(jnp.asarray(images))
    np.testing.assert_array_equal(np.asarray(gradient)[..., 0] == 0, gone)


def test_each_image_follows_its_own_numbers(images, uniforms):
    order = np.array([2, 0, 3, 1])
    whole = diff_augment(images, uniforms, POLICIES)
    np.testing.assert_allclose(
        diff_augment(images[order], uniforms[order], POLICIES), whole[order], atol=1e-6
    )


def test_numbers_in_the_middle_change_no_color(images):
    middle = np.full((4, NUM_UNIFORMS), 0.5, np.float32)
    augmented = diff_augment(images, middle, ("color", "translation"))
    np.testing.assert_allclose(augmented, images, atol=1e-6)
