"""Depthwise convolution as a sum of shifted products, and its gradient in the same form.

XLA's convolution with one group per channel is 10 to 70 times slower on a CPU, and so is its
gradient; automatic differentiation of the sum adds up one padded array per tap.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b i j c"]:
    """Convolve each channel with a kernel of its own, with XLA's "SAME" padding.

    Args:
        x: feature map.
        kernel: square, with an odd side k.
        stride: step in both directions.

    Returns:
        The convolution, in float32.
    """
    return _shifted_products(x, kernel, stride)


def _shifted_products(x: Array, kernel: Array, stride: int) -> Array:
    sides = [_same_padding(side, kernel.shape[0], stride) for side in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), sides[0][1], sides[1][1], (0, 0)))
    return _correlate(padded, kernel, stride, sides[0][0], sides[1][0])


def _correlate(padded: Array, kernel: Array, stride: int, rows: int, columns: int) -> Array:
    """Sum the products of the kernel's taps with what stands under them."""
    padded = padded.astype(jnp.float32)
    total = jnp.zeros((), jnp.float32)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            under_tap = padded[
                :,
                i : i + (rows - 1) * stride + 1 : stride,
                j : j + (columns - 1) * stride + 1 : stride,
            ]
            total = total + under_tap * kernel[i, j, 0]
    return total


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_products(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    x_gradient = _input_gradient(gradient, kernel, stride, x.shape[1:3]).astype(x.dtype)
    # A frozen network leaves this unused, and the compiler drops it.
    kernel_gradient = jax.vjp(lambda k: _shifted_products(x, k, stride), kernel)[1](gradient)[0]
    return x_gradient, kernel_gradient


def _input_gradient(gradient: Array, kernel: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """Correlate the gradient with the turned kernel, for each phase of the stride by itself.

    The padded input at stride * m + a meets only the taps a, a + stride, ... of the kernel: no
    product with the zeros between the gradient's values is formed.
    """
    (_, (top, _)), (_, (left, _)) = (_same_padding(side, kernel.shape[0], stride) for side in shape)
    rows, columns = (
        -(-(side + sum(_same_padding(side, kernel.shape[0], stride)[1])) // stride)
        for side in shape
    )

    def phase(a: int, b: int) -> Array:
        taps = kernel[a::stride, b::stride][::-1, ::-1]
        before = (taps.shape[0] - 1, taps.shape[1] - 1)
        after = (rows - gradient.shape[1], columns - gradient.shape[2])
        sides = tuple(zip(before, after, strict=True))
        return _correlate(jnp.pad(gradient, ((0, 0), *sides, (0, 0))), taps, 1, rows, columns)

    phases = jnp.stack(
        [jnp.stack([phase(a, b) for b in range(stride)], axis=3) for a in range(stride)], axis=2
    )
    spread = phases.reshape(gradient.shape[0], rows * stride, columns * stride, -1)
    return spread[:, top : top + shape[0], left : left + shape[1]]


def _same_padding(side: int, kernel_size: int, stride: int) -> tuple[int, tuple[int, int]]:
    """Return the output side, and the padding before and after, as XLA's "SAME" has them."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel_size - side, 0)
    return outputs, (total // 2, total - total // 2)


depthwise_conv.defvjp(_forward, _backward)
