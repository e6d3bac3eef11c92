"""ResNet-50 as a frozen image encoder, from the official XMC-GAN file or from PyTorch's.

He et al., "Deep Residual Learning", CVPR 2016, with the stride in the 3x3 convolutions (v1.5).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.pretrained import batch_norm
from xmcgan.pretrained.numpy_files import read_array_tree
from xmcgan.pretrained.tensors import Tensors, check_tensors, read_safetensors
from xmcgan.pretrained.torch_files import read_torch
from xmcgan.pretrained.weights import find_file

NUM_FEATURES = 2048
NUM_CLASSES = 1000
NORMALIZATIONS = ("none", "imagenet")
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner width, number of blocks
_EXPANSION = 4
_BATCH_NORM_EPSILON = 1e-5
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNet50(nn.Module):
    """Encode images to pooled features and ImageNet logits; batch norms are folded.

    Attributes:
        symmetric_padding: pad a side by (k - 1) / 2 before and after, as PyTorch does; otherwise by
            XLA's "SAME", which pads one less before where the stride is 2.
        stem_relu: apply the ReLU of the paper before the first pooling. The official XMC-GAN
            network was trained without it.
        normalize: "imagenet" subtracts the mean and divides by the deviation of ImageNet's
            colours; "none" leaves images in [0, 1].
        dtype: of the convolutions; pooled features and logits are float32.
    """

    symmetric_padding: bool
    stem_relu: bool
    normalize: str
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1000"]]:
        """Return pooled features and logits.

        Args:
            images: in [0, 1]; made for 224 x 224, any size from 32 works.
        """
        if self.normalize == "imagenet":
            images = (images - jnp.array(_IMAGENET_MEAN)) / jnp.array(_IMAGENET_STD)
        stem = nn.Conv(64, (7, 7), 2, self._padding(7), dtype=self.dtype, name="stem")
        x = stem(images.astype(self.dtype))
        if self.stem_relu:
            x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), (2, 2), self._padding(3))
        for spec in block_specs():
            x = Bottleneck(spec, self._padding(3), self.dtype, name=spec.name)(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return features, nn.Dense(NUM_CLASSES, dtype=jnp.float32, name="head")(features)

    def _padding(self, kernel_size: int) -> Any:
        side = (kernel_size // 2, kernel_size // 2)
        return (side, side) if self.symmetric_padding else "SAME"


class BlockSpec(NamedTuple):
    """Describe a bottleneck block: where it stands, counted from 1, and its widths."""

    stage: int
    index: int
    inputs: int
    width: int
    stride: int

    @property
    def name(self) -> str:
        """Return the block's name in our parameters."""
        return f"stage{self.stage}_block{self.index}"


def block_specs() -> Iterator[BlockSpec]:
    """Yield the network's blocks in order."""
    inputs = 64
    for stage, (width, repeats) in enumerate(_STAGES, start=1):
        for index in range(1, repeats + 1):
            stride = 2 if index == 1 and stage > 1 else 1
            yield BlockSpec(stage, index, inputs, width, stride)
            inputs = _EXPANSION * width


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 and 1x1 convolutions with a residual, projected in a stage's first block."""

    spec: BlockSpec
    padding: Any
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        """Return the block's output."""
        width, outputs, stride = self.spec.width, _EXPANSION * self.spec.width, self.spec.stride
        shortcut = x
        if self.spec.index == 1:
            shortcut = nn.Conv(outputs, (1, 1), stride, dtype=self.dtype, name="shortcut")(x)
        x = nn.relu(nn.Conv(width, (1, 1), dtype=self.dtype, name="conv1")(x))
        conv2 = nn.Conv(width, (3, 3), stride, self.padding, dtype=self.dtype, name="conv2")
        x = nn.relu(conv2(x))
        return nn.relu(nn.Conv(outputs, (1, 1), dtype=self.dtype, name="conv3")(x) + shortcut)


def load_resnet50(
    path: Path, *, normalize: str = "auto", dtype: DTypeLike = jnp.float32
) -> tuple[ResNet50, dict[str, Any]]:
    """Return ResNet-50 and its parameters; the kind of file decides padding and stem.

    Args:
        path: the official `resnet_pretrained.npy`; or .safetensors or .pth in the naming that
            torchvision and timm share; or a directory that holds one of them.
        normalize: "none", "imagenet", or "auto": "none" for the official file, as the official code
            uses it, and "imagenet" for the others, which were trained so.
        dtype: of the convolutions.

    Returns:
        The module, and its parameters as float32 NumPy arrays, batch norms folded in.

    Raises:
        WeightsError: the file is damaged or unsafe, or its tensors do not fit.
        ValueError: `normalize` has another value.
    """
    if normalize not in ("auto", *NORMALIZATIONS):
        raise ValueError(f"normalize is {normalize!r}, not auto, none or imagenet")
    file = find_file(path, (".npy", ".safetensors", ".pth"))
    is_official = file.suffix == ".npy"
    if normalize == "auto":
        normalize = "none" if is_official else "imagenet"
    module = ResNet50(
        symmetric_padding=not is_official,
        stem_relu=not is_official,
        normalize=normalize,
        dtype=dtype,
    )
    if is_official:
        return module, _official_params(read_array_tree(file), file)
    tensors = read_torch(file) if file.suffix == ".pth" else read_safetensors(file)
    return module, _torch_params(batch_norm.without_counters(tensors), file)


def _official_params(tensors: Tensors, file: Path) -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = {
        "params/head/kernel": (NUM_FEATURES, NUM_CLASSES),
        "params/head/bias": (NUM_CLASSES,),
    }
    layers = [(layer, layer.official_names()) for layer in _layers()]
    for layer, names in layers:
        shapes |= batch_norm.FLAX.shapes(*names, layer.kernel_shape)
    check_tensors(tensors, shapes, file)
    params: dict[str, Any] = {
        "head": {"kernel": tensors["params/head/kernel"], "bias": tensors["params/head/bias"]}
    }
    for layer, names in layers:
        layer.put(params, batch_norm.FLAX.fold(tensors, *names, _BATCH_NORM_EPSILON))
    return params


def _torch_params(tensors: Tensors, file: Path) -> dict[str, Any]:
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (NUM_CLASSES, NUM_FEATURES),
        "fc.bias": (NUM_CLASSES,),
    }
    layers = [(layer, layer.torch_names()) for layer in _layers()]
    for layer, names in layers:
        shapes |= batch_norm.TORCH.shapes(*names, layer.kernel_shape)
    check_tensors(tensors, shapes, file)
    params: dict[str, Any] = {
        "head": {"kernel": tensors["fc.weight"].T.copy(), "bias": tensors["fc.bias"]}
    }
    for layer, names in layers:
        layer.put(params, batch_norm.TORCH.fold(tensors, *names, _BATCH_NORM_EPSILON))
    return params


class _Layer(NamedTuple):
    """Describe a convolution with its batch norm, in our names; the stem has no block."""

    block: BlockSpec | None
    name: str
    kernel_shape: tuple[int, ...]

    def official_names(self) -> tuple[str, str]:
        """Return the official file's names of the convolution and of the norm."""
        if self.block is None:
            return "init_conv", "init_bn"
        block = f"stage{self.block.stage}/block{self.block.index}"
        conv = "proj_conv" if self.name == "shortcut" else self.name
        return f"{block}/{conv}", f"{block}/{conv.replace('conv', 'bn')}"

    def torch_names(self) -> tuple[str, str]:
        """Return torchvision's names of the convolution and of the norm."""
        if self.block is None:
            return "conv1", "bn1"
        block = f"layer{self.block.stage}.{self.block.index - 1}"
        if self.name == "shortcut":
            return f"{block}.downsample.0", f"{block}.downsample.1"
        return f"{block}.{self.name}", f"{block}.{self.name.replace('conv', 'bn')}"

    def put(self, params: dict[str, Any], folded: dict[str, Any]) -> None:
        """Put the folded layer where the module looks for it."""
        target = params if self.block is None else params.setdefault(self.block.name, {})
        target[self.name] = folded


def _layers() -> Iterator[_Layer]:
    yield _Layer(None, "stem", (7, 7, 3, 64))
    for block in block_specs():
        outputs = _EXPANSION * block.width
        if block.index == 1:
            yield _Layer(block, "shortcut", (1, 1, block.inputs, outputs))
        yield _Layer(block, "conv1", (1, 1, block.inputs, block.width))
        yield _Layer(block, "conv2", (3, 3, block.width, block.width))
        yield _Layer(block, "conv3", (1, 1, block.width, outputs))
