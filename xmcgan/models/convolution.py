"""Convolutions, and the two that are merged with the change of size beside them.

A conv3x3 of an upsampled map sees each small pixel several times, and one before an average pool
computes each sum several times. Adding up the kernel's taps first gives the same function for 16
of 36 multiplications. On two CPU cores this took half the time, forward and backward; a single
transposed convolution for the upsampled case was slower than four small ones.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

CONVOLUTION = "convolution"  # what `remat` calls the results of these layers
glorot_normal = nn.initializers.glorot_normal()
Dense = partial(nn.Dense, kernel_init=glorot_normal)


def conv3x3(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"]) -> Float[Array, "b h w f"]:
    """Convolve with zero padding to the same size."""
    return _convolve(x, kernel, padding=((1, 1), (1, 1)))


def upsample_conv3x3(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "b 2*h 2*w f"]:
    """Compute `conv3x3(upsample_nearest(x), kernel)` with a quarter of the pixels.

    As one transposed convolution, which reads and writes 0.6 of the bytes that four small ones need
    on a TPU, and keeps no padded copies on a GPU; on a CPU the four take less time.
    """
    taps = merge_taps(kernel)
    return jax.lax.platform_dependent(x, taps, cpu=four_phases, default=transposed)


def conv3x3_pool(
    x: Float[Array, "b 2*h 2*w c"], kernel: Float[Array, "3 3 c f"]
) -> Float[Array, "b h w f"]:
    """Compute `average_pool(conv3x3(x, kernel))` as one 4x4 convolution of stride 2."""
    return _convolve(x, merge_taps(kernel) / 4, padding=((1, 1), (1, 1)), stride=2)


@jax.custom_vjp
def transposed(x: Array, taps: Array) -> Array:
    return _convolve(x, taps, padding=((2, 2), (2, 2)), dilation=2)


def _backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    # That of JAX, written as of the strided convolution: XLA would reverse `gradient` in memory.
    x, taps = residuals

    def strided(taps: Array) -> Array:
        turned = jnp.flip(taps, (0, 1)).swapaxes(2, 3)
        return _convolve(gradient, turned, padding=((1, 1), (1, 1)), stride=2)

    d_x, pull_back = jax.vjp(strided, taps)
    return d_x, *pull_back(x)


transposed.defvjp(lambda x, taps: (transposed(x, taps), (x, taps)), _backward)


def four_phases(x: Array, taps: Array) -> Array:
    """Compute four 2x2 convolutions and interleave their pixels.

    Of two large rows that one small row became, the upper one sees the small row above and its own
    row twice, the lower one its own row twice and the small row below; columns likewise.
    """
    batch, height, width, _ = x.shape
    phases = []
    for row in (0, 1):
        for column in (0, 1):
            padding = ((1 - row, row), (1 - column, column))
            phases.append(_convolve(x, taps[row::2, column::2], padding=padding))
    pixels = jnp.stack(phases).reshape(2, 2, batch, height, width, -1)
    return pixels.transpose(2, 3, 0, 4, 1, 5).reshape(batch, 2 * height, 2 * width, -1)


def merge_taps(kernel: Float[Array, "3 3 c f"]) -> Float[Array, "4 4 c f"]:
    """Add up neighboring taps: (a, b, c) becomes (a, a + b, b + c, c), rows and columns alike."""
    window, stride, padding = (2, 2, 1, 1), (1, 1, 1, 1), ((1, 1), (1, 1), (0, 0), (0, 0))
    # One operation: of slices and sums XLA keeps intermediates larger than the kernel.
    return jax.lax.reduce_window(kernel, 0.0, jax.lax.add, window, stride, padding)


class Conv1x1(nn.Module):
    """Convolve with a learned 1x1 kernel, then add a bias."""

    features: int
    dtype: Any = None  # of the arithmetic; that of the input if None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w f"]:
        dtype = self.dtype or x.dtype
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", glorot_normal, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # A matrix product: cheaper than a convolution on a CPU, and on a GPU nothing to tune.
        y = x.astype(dtype) @ kernel[0, 0].astype(dtype) + bias.astype(dtype)
        return checkpoint_name(y, CONVOLUTION)


class Conv3x3(nn.Module):
    """Convolve with a learned 3x3 kernel, then add a bias."""

    features: int
    dtype: Any = jnp.float32
    # Or `upsample_conv3x3` or `conv3x3_pool`, with the same parameters.
    conv_fn: Callable[[Array, Array], Array] = conv3x3

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", glorot_normal, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = self.conv_fn(x.astype(self.dtype), kernel) + bias.astype(self.dtype)
        return checkpoint_name(y, CONVOLUTION)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Double height and width by repeating pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def average_pool(x: Float[Array, "b 2*h 2*w c"]) -> Float[Array, "b h w c"]:
    """Halve height and width by averaging blocks of 2x2 pixels."""
    # Not `mean`, for which XLA would keep a bfloat16 `x` in float32 as well.
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def _convolve(x: Array, kernel: Array, padding: Any, stride: int = 1, dilation: int = 1) -> Array:
    kernel = kernel.astype(x.dtype)  # merged taps are added up in float32 and rounded once, here
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        lhs_dilation=(dilation, dilation),
        dimension_numbers=dimensions,
    )
