"""EfficientNet-Lite0 and -Lite2 as frozen image encoders that install by pip.

Tan and Le, "EfficientNet", ICML 2019; the Lite variants have ReLU6 and no squeeze-and-excitation.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.models.convolution import Conv1x1
from xmcgan.pretrained.params import Params, load_converted

NUM_FEATURES = 1280
NUM_CLASSES = 1000
_STEM_WIDTH = 32
# Table 1 of the paper: kernel, stride of the first block, expansion, width, number of blocks. Lite
# variants scale neither stem and head nor the depth of the first and the last stage.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# The last block of strides 4, 8, 16 and 32, and the standard deviation of what it returns.
_TAP_DEVIATIONS = {2: 6.9, 4: 6.8, 10: 5.8, 15: 2.6}


class BlockSpec(NamedTuple):
    kernel_size: int
    stride: int
    expansion: int
    inputs: int
    outputs: int


class Scale(NamedTuple):
    """Width and depth of a variant, relative to Lite0."""

    width: float = 1.0
    depth: float = 1.0


LITE0 = Scale()
SCALES = {"efficientnet_lite0": LITE0, "efficientnet_lite2": Scale(1.1, 1.2)}


def block_specs(scale: Scale = LITE0) -> Iterator[BlockSpec]:
    """Yield the network's blocks in order."""
    inputs = _STEM_WIDTH
    for stage, (kernel_size, stride, expansion, width, repeats) in enumerate(_STAGES):
        is_inner = 0 < stage < len(_STAGES) - 1
        outputs = _round_width(width * scale.width)
        for index in range(math.ceil(repeats * scale.depth) if is_inner else repeats):
            first_stride = stride if index == 0 else 1
            yield BlockSpec(kernel_size, first_stride, expansion, inputs, outputs)
            inputs = outputs


def _round_width(width: float) -> int:
    """Return the nearest multiple of 8 that is not more than 10 % below."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


class EfficientNetLite(nn.Module):
    """Images to pooled features and ImageNet logits, float32; batch norms are folded."""

    dtype: DTypeLike = jnp.float32
    scale: Scale = LITE0

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 1280"], Float[Array, "b 1000"]]:
        """Return pooled features and logits of images in [0, 1]; trained at 224 or 260 (Lite2)."""
        *_, x = _block_outputs(images, self.scale, self.dtype)
        x = nn.relu6(Conv1x1(NUM_FEATURES, self.dtype, name="head")(x))
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return features, nn.Dense(NUM_CLASSES, dtype=jnp.float32, name="logits")(features)


class EfficientNetLite0Trunk(nn.Module):
    """Feature maps of EfficientNet-Lite0 at strides 4, 8, 16 and 32, each scaled to about 1."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b i j c"], ...]:
        """Return the maps, largest first; `images` are in [0, 1], sides a multiple of 32."""
        blocks = enumerate(_block_outputs(images, LITE0, self.dtype))
        return tuple(x / _TAP_DEVIATIONS[index] for index, x in blocks if index in _TAP_DEVIATIONS)


def _block_outputs(images: Array, scale: Scale, dtype: DTypeLike) -> Iterator[Array]:
    """Yield what each block returns; call it inside a compact module."""
    x = ((images * 255 - 127) / 128).astype(dtype)
    x = nn.relu6(nn.Conv(_STEM_WIDTH, (3, 3), 2, dtype=dtype, name="stem")(x))
    for index, spec in enumerate(block_specs(scale)):
        x = InvertedBottleneck(spec, dtype, name=f"block_{index}")(x)
        yield x


def trunk_params(params: Params) -> Params:
    """Return the parameters that `EfficientNetLite0Trunk` has of those of the whole network."""
    return {name: value for name, value in params.items() if name not in ("head", "logits")}


class InvertedBottleneck(nn.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, 1x1 projection, residual."""

    spec: BlockSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        spec, inputs = self.spec, x
        if spec.expansion > 1:
            width = spec.expansion * spec.inputs
            x = nn.relu6(Conv1x1(width, self.dtype, name="expand")(x))
        x = nn.relu6(DepthwiseConv(spec.kernel_size, spec.stride, self.dtype, name="depthwise")(x))
        x = Conv1x1(spec.outputs, self.dtype, name="project")(x)
        return x + inputs if spec.stride == 1 and spec.inputs == spec.outputs else x


class DepthwiseConv(nn.Module):
    kernel_size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return (jnp.asarray(depthwise_conv(x, kernel, self.stride)) + bias).astype(self.dtype)


def load_efficientnet_lite(
    path: Path, network: str, *, dtype: DTypeLike = jnp.float32
) -> tuple[EfficientNetLite, Params]:
    """Load a converted network, a key of `SCALES`."""
    return load_converted(path, network, lambda _: EfficientNetLite(dtype, SCALES[network]))


load_efficientnet_lite0 = functools.partial(load_efficientnet_lite, network="efficientnet_lite0")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k 1 c"], stride: int
) -> Float[Array, "b i j c"]:
    """Depthwise convolution with XLA's "SAME" padding, k odd, returned in float32.

    A sum of shifted products, and its gradient in the same form: XLA's convolution with one group
    per channel is 10 to 70 times slower on a CPU, and so is its gradient; automatic
    differentiation of the sum adds up one padded array per tap.
    """
    return _shifted_products(x, kernel, stride)


def _shifted_products(x: Array, kernel: Array, stride: int) -> Array:
    sides = _same_padding(x.shape[1:3], kernel, stride)
    return _correlate(jnp.pad(x, ((0, 0), *sides, (0, 0))), kernel, stride)


def _same_padding(sides: Sequence[int], kernel: Array, stride: int) -> list[tuple[int, int]]:
    return lax.padtype_to_pads(sides, kernel.shape[:2], (stride, stride), "SAME")


def _correlate(padded: Array, kernel: Array, stride: int) -> Array:
    """Sum the products of the kernel's taps with the values under them."""
    padded = padded.astype(jnp.float32)
    rows, columns = (padded.shape[axis + 1] - kernel.shape[axis] + 1 for axis in (0, 1))
    total = jnp.zeros((), jnp.float32)
    for i, j in np.ndindex(*kernel.shape[:2]):
        under_tap = padded[:, i : i + rows : stride, j : j + columns : stride]
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
    sides = _same_padding(shape, kernel, stride)
    phase_shape = [
        -(-(side + sum(pads)) // stride) for side, pads in zip(shape, sides, strict=True)
    ]

    def phase(a: int, b: int) -> Array:
        taps = kernel[a::stride, b::stride][::-1, ::-1]
        pads = [
            (taps.shape[axis] - 1, phase_shape[axis] - gradient.shape[axis + 1]) for axis in (0, 1)
        ]
        return _correlate(jnp.pad(gradient, ((0, 0), *pads, (0, 0))), taps, 1)

    phases = [jnp.stack([phase(a, b) for b in range(stride)], axis=3) for a in range(stride)]
    rows, columns = (side * stride for side in phase_shape)
    spread = jnp.stack(phases, axis=2).reshape(gradient.shape[0], rows, columns, -1)
    (top, _), (left, _) = sides
    return spread[:, top : top + shape[0], left : left + shape[1]]


depthwise_conv.defvjp(_forward, _backward)
