"""ResNet-50 as a frozen image encoder, of the official XMC-GAN code or of torchvision.

He et al., "Deep Residual Learning", CVPR 2016, with the stride in the 3x3 convolutions (v1.5).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.pretrained.params import Params, load_converted

NUM_CLASSES = 1000
_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner width, number of blocks
_EXPANSION = 4


def standardize(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Standardize images in [0, 1] by ImageNet's statistics."""
    mean, deviation = jnp.array((0.485, 0.456, 0.406)), jnp.array((0.229, 0.224, 0.225))
    return (images - mean) / deviation


class ResNet50(nn.Module):
    """Images to pooled features and ImageNet logits, float32; batch norms are folded.

    That of the official XMC-GAN code pads by XLA's "SAME", which pads one less before if the stride
    is 2, has no ReLU before the first pooling, and takes images as they are. Torchvision's pads a
    side by (k - 1) / 2, has the paper's ReLU, and standardizes images by ImageNet's statistics.
    """

    is_official: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1000"]]:
        """Return pooled features and logits of images in [0, 1], of any size from 32."""
        if not self.is_official:
            images = standardize(images)
        stem = nn.Conv(64, (7, 7), 2, self._padding(7), dtype=self.dtype, name="stem")
        x = stem(images.astype(self.dtype))
        if not self.is_official:
            x = nn.relu(x)
        x = nn.max_pool(x, (3, 3), (2, 2), self._padding(3))
        for spec in block_specs():
            x = Bottleneck(spec, self._padding(3), self.dtype, name=spec.name)(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        return features, nn.Dense(NUM_CLASSES, dtype=jnp.float32, name="head")(features)

    def _padding(self, kernel_size: int) -> Any:
        side = (kernel_size // 2, kernel_size // 2)
        return "SAME" if self.is_official else (side, side)


class BlockSpec(NamedTuple):
    """A bottleneck block: its stage and index in it, counted from 1, inner width and stride."""

    stage: int
    index: int
    width: int
    stride: int

    @property
    def name(self) -> str:
        return f"stage{self.stage}_block{self.index}"


def block_specs() -> Iterator[BlockSpec]:
    """Yield the network's blocks in order."""
    for stage, (width, repeats) in enumerate(_STAGES, start=1):
        for index in range(1, repeats + 1):
            stride = 2 if index == 1 and stage > 1 else 1
            yield BlockSpec(stage, index, width, stride)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual, projected in a stage's first block."""

    spec: BlockSpec
    padding: Any
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        width, outputs, stride = self.spec.width, _EXPANSION * self.spec.width, self.spec.stride
        shortcut = x
        if self.spec.index == 1:
            shortcut = nn.Conv(outputs, (1, 1), stride, dtype=self.dtype, name="shortcut")(x)
        x = nn.relu(nn.Conv(width, (1, 1), dtype=self.dtype, name="conv1")(x))
        conv2 = nn.Conv(width, (3, 3), stride, self.padding, dtype=self.dtype, name="conv2")
        x = nn.relu(conv2(x))
        return nn.relu(nn.Conv(outputs, (1, 1), dtype=self.dtype, name="conv3")(x) + shortcut)


def load_resnet50(path: Path, *, dtype: DTypeLike = jnp.float32) -> tuple[ResNet50, Params]:
    """Load a converted ResNet-50; the file that it was converted from decides which one."""

    def build(metadata: Mapping[str, str]) -> ResNet50:
        return ResNet50(metadata.get("variant") == "official", dtype)

    return load_converted(path, "resnet50", build)
