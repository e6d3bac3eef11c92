"""Resize matrices against the literal gather form, Pillow's mode "F" and jax.image.resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from xmcgan.evaluation.resize import antialiased_matrix, apply_matrices, tf1_bilinear_matrix

SIZES = [((5, 9), 7), ((128, 96), 299), ((320, 400), 299), ((64, 64), 64), ((17, 1), 4)]
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(height: int, width: int) -> np.ndarray:
    """Return pixels (h, w, 3) with the sharpest edges there are."""
    return np.random.default_rng(0).choice([0, 3, 128, 255], (height, width, 3)).astype(np.float32)


def gather_tf1(image: np.ndarray, size: int) -> np.ndarray:
    """Resize pixel by pixel, as the kernel of TensorFlow 1 does."""

    def place(index: int, size_in: int) -> tuple[int, int, np.float32]:
        at = np.float32(index) * (np.float32(size_in) / np.float32(size))
        low = int(np.floor(at))
        return low, min(low + 1, size_in - 1), at - np.float32(low)

    out = np.empty((size, size, image.shape[2]), np.float32)
    for i in range(size):
        top, bottom, dy = place(i, image.shape[0])
        for j in range(size):
            left, right, dx = place(j, image.shape[1])
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            out[i, j] = above + (below - above) * dy
    return out


def pillow_resize(image: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Resize each channel in Pillow's mode "F", as clean-fid does."""
    channels = [
        np.asarray(Image.fromarray(image[..., c], "F").resize((size, size), PILLOW[kernel]))
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_tf1_bilinear_is_the_gather_form(shape, size):
    image = noise(*shape)
    matrices = [tf1_bilinear_matrix(side, size) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image[None]), *matrices))[0]
    np.testing.assert_allclose(found, gather_tf1(image, size), rtol=0, atol=5e-5)


def test_tf1_bilinear_starts_at_the_first_pixel_and_repeats_the_last():
    row = np.array([0, 100], np.float32)
    np.testing.assert_array_equal(tf1_bilinear_matrix(2, 4) @ row, [0, 50, 100, 100])


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_antialiased_resize_is_that_of_pillow(shape, size, kernel):
    image = noise(*shape)
    matrices = [antialiased_matrix(side, size, kernel) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image[None]), *matrices))[0]
    np.testing.assert_allclose(found, pillow_resize(image, size, kernel), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_antialiased_resize_is_that_of_jax(shape, size, kernel):
    image = noise(*shape)[None]
    matrices = [antialiased_matrix(side, size, kernel) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image), *matrices))
    expected = jax.image.resize(image, (1, size, size, 3), kernel, precision="highest")
    # JAX makes its weights in float32, ours are made in float64: 1e-2 of 255 levels at 400 pixels.
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=2e-2)


@pytest.mark.parametrize("matrix", [tf1_bilinear_matrix, antialiased_matrix])
def test_a_flat_image_stays_flat(matrix):
    for size_in, size_out in ((3, 299), (500, 299), (1, 7), (7, 1)):
        np.testing.assert_allclose(matrix(size_in, size_out).sum(axis=1), 1, atol=1e-6)


def test_matrices_are_applied_at_highest_precision():
    matrix = antialiased_matrix(4, 6)
    jaxpr = jax.make_jaxpr(lambda x: apply_matrices(x, matrix, matrix))(jnp.zeros((1, 4, 4, 3)))
    products = [str(e) for e in jaxpr.jaxpr.eqns if "dot_general" in str(e)]
    assert len(products) == 2
    assert all("HIGHEST" in product for product in products)
