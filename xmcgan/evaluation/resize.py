"""Resizing as two matrices, one for rows and one for columns, so that every device agrees."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Kernel = Literal["bilinear", "bicubic"]
# Keys' cubic with a = -1/2, as Pillow and jax.image.resize have it (OpenCV and PyTorch: -3/4).
_CUBIC_A = -0.5


def tf1_bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """Return the matrix of TensorFlow 1's bilinear resize: no half pixel, no antialiasing.

    `tf.image.resize_bilinear(align_corners=False)`, which the graph of the first FID contains:
    output i lies at i * size_in / size_out, between the pixel below and the next one.

    Args:
        size_in: pixels of a row or column.
        size_out: pixels to make of them.
    """
    # In float32, as the kernel of TensorFlow: in float64 some points would round to the next pixel.
    places = np.arange(size_out, dtype=np.float32) * (np.float32(size_in) / np.float32(size_out))
    low = np.minimum(np.floor(places).astype(np.int64), size_in - 1)
    high = np.minimum(low + 1, size_in - 1)
    weight = places - low.astype(np.float32)
    matrix = np.zeros((size_out, size_in), np.float32)
    rows = np.arange(size_out)
    np.add.at(matrix, (rows, low), 1 - weight)
    np.add.at(matrix, (rows, high), weight)
    return matrix


def antialiased_matrix(
    size_in: int, size_out: int, kernel: Kernel = "bilinear"
) -> Float[np.ndarray, "size_out size_in"]:
    """Return the matrix of a resize whose kernel widens when it shrinks.

    Equals Pillow's `Image.resize` in mode "F", and `jax.image.resize`. A bicubic kernel has
    negative weights, so results may leave the range of the pixels: clipping is the caller's.

    Args:
        size_in: pixels of a row or column.
        size_out: pixels to make of them.
        kernel: "bilinear" or "bicubic".
    """
    scale = size_in / size_out
    centers = (np.arange(size_out) + 0.5) * scale - 0.5
    distances = np.abs(centers[:, None] - np.arange(size_in)) / max(scale, 1.0)
    weights = _triangle(distances) if kernel == "bilinear" else _cubic(distances)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    a = _CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def apply_matrices(
    images: Float[Array, "b h w c"],
    rows: Float[np.ndarray, "i h"],
    columns: Float[np.ndarray, "j w"],
) -> Float[Array, "b i j c"]:
    """Resize images by a matrix for their rows and one for their columns.

    Args:
        images: pixels of any range.
        rows: from `tf1_bilinear_matrix` or `antialiased_matrix` of the height.
        columns: the same of the width.
    """
    # The default precision is TF32 on GPUs and bfloat16 on TPUs: 0.5 of 255 grey levels.
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("jw,bhwc->bhjc", jnp.asarray(columns), images, precision=highest)
    return jnp.einsum("ih,bhjc->bijc", jnp.asarray(rows), wide, precision=highest)
