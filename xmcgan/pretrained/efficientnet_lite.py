"""EfficientNet-Lite0 and -Lite2 as frozen image encoders that install by pip.

Tan and Le, "EfficientNet", ICML 2019; the Lite variants have ReLU6 and no squeeze-and-excitation.
"""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.models.convolution import Conv1x1
from xmcgan.pretrained.params import Params, read_converted

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
    """One inverted bottleneck block."""

    kernel_size: int
    stride: int
    expansion: int
    inputs: int
    outputs: int


class Scale(NamedTuple):
    """Width and depth of a variant, relative to Lite0."""

    width: float = 1.0
    depth: float = 1.0


LITE0, LITE2 = Scale(), Scale(1.1, 1.2)


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
        """Return pooled features and logits of images in [0, 1].

        Trained at 224 x 224 (Lite0) or 260 x 260 (Lite2); any size from 32 works.
        """
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
        """Return the block's output; the residual is added if the shape stays."""
        spec, inputs = self.spec, x
        if spec.expansion > 1:
            width = spec.expansion * spec.inputs
            x = nn.relu6(Conv1x1(width, self.dtype, name="expand")(x))
        x = nn.relu6(DepthwiseConv(spec.kernel_size, spec.stride, self.dtype, name="depthwise")(x))
        x = Conv1x1(spec.outputs, self.dtype, name="project")(x)
        return x + inputs if spec.stride == 1 and spec.inputs == spec.outputs else x


class DepthwiseConv(nn.Module):
    """Depthwise convolution with a bias."""

    kernel_size: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """Return the convolution with its bias."""
        channels = x.shape[-1]
        shape = (self.kernel_size, self.kernel_size, 1, channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return (jnp.asarray(depthwise_conv(x, kernel, self.stride)) + bias).astype(self.dtype)


def load_efficientnet_lite0(
    path: Path, *, dtype: DTypeLike = jnp.float32
) -> tuple[EfficientNetLite, Params]:
    """Return EfficientNet-Lite0 and its parameters; see `load_efficientnet_lite`."""
    return load_efficientnet_lite(path, LITE0, dtype=dtype)


def load_efficientnet_lite(
    path: Path, scale: Scale, *, dtype: DTypeLike = jnp.float32
) -> tuple[EfficientNetLite, Params]:
    """Load a converted EfficientNet-Lite, `scale` being `LITE0` or `LITE2`.

    Returns:
        The module, and its parameters as float32 NumPy arrays.

    Raises:
        WeightsError: The file is missing, damaged or of another network.
    """
    name = "efficientnet_lite0" if scale == LITE0 else "efficientnet_lite2"
    module = EfficientNetLite(dtype, scale)
    return module, read_converted(path, name).params_for(module, image_size=32)


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
    sides = [_same_padding(side, kernel.shape[0], stride) for side in x.shape[1:3]]
    padded = jnp.pad(x, ((0, 0), sides[0][1], sides[1][1], (0, 0)))
    return _correlate(padded, kernel, stride, sides[0][0], sides[1][0])


def _correlate(padded: Array, kernel: Array, stride: int, rows: int, columns: int) -> Array:
    """Sum the products of the kernel's taps with the values under them."""
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
