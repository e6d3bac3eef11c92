"""Inception-v3 as the fixed feature network of FID, in the two variants that scores are made with.

Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016. "2015" is the graph of
2015-12-05 with which the authors of FID measured (Heusel et al., NeurIPS 2017); "keras" is that of
keras.applications, with which the official XMC-GAN code measures. Names are those of the file of
2015.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from xmcgan.pretrained.params import Params, load_converted

# The file inception_v3_weights_tf_dim_ordering_tf_kernels.h5: published with no better digest.
PUBLISHED_MD5 = "9a0d58056eeedaa3f26cb7ebd46da564"

Variant = Literal["2015", "keras"]
NUM_CLASSES: dict[Variant, int] = {"2015": 1008, "keras": 1000}


class Unit(NamedTuple):
    """A convolution with its batch norm and ReLU."""

    name: str
    kernel: tuple[int, int]
    width: int
    stride: int = 1
    padding: str = "SAME"


Step = tuple[Unit, ...]


class BlockSpec(NamedTuple):
    """Branches that read the same input, joined along the channels."""

    name: str
    branches: tuple[tuple[Step, ...], ...]  # the units of a step read the same, and are joined
    pool: Literal["average", "max", "stride"]  # 3x3, of the last branch; "stride": maxima by two
    pool_unit: Unit | None = None

    def merged(self) -> tuple[Unit, ...]:
        """Return the 1x1 units of the block's input, which are computed as one convolution.

        The unit after an average pooling is one of them: a 1x1 convolution commutes with the mean
        of positions, and its bias is its own mean.
        """
        units = [unit for branch in self.branches for unit in branch[0] if unit.kernel == (1, 1)]
        if self.pool == "average" and self.pool_unit is not None:
            units.append(self.pool_unit)
        return tuple(units)


# The units before the blocks; a maximum of every second 3x3 follows each group.
STEM = (
    (
        Unit("Conv2d_1a_3x3", (3, 3), 32, 2, "VALID"),
        Unit("Conv2d_2a_3x3", (3, 3), 32, 1, "VALID"),
        Unit("Conv2d_2b_3x3", (3, 3), 64),
    ),
    (Unit("Conv2d_3b_1x1", (1, 1), 80), Unit("Conv2d_4a_3x3", (3, 3), 192, 1, "VALID")),
)


def block_specs(variant: Variant) -> tuple[BlockSpec, ...]:
    """Return the network's blocks in order."""
    return (
        _block_a("Mixed_5b", 32),
        _block_a("Mixed_5c", 64),
        _block_a("Mixed_5d", 64),
        _block_b("Mixed_6a"),
        _block_c("Mixed_6b", 128),
        _block_c("Mixed_6c", 160),
        _block_c("Mixed_6d", 160),
        _block_c("Mixed_6e", 192),
        _block_d("Mixed_7a"),
        _block_e("Mixed_7b", "average"),
        # The graph of 2015 takes a maximum here, against the paper.
        _block_e("Mixed_7c", "max" if variant == "2015" else "average"),
    )


def _chain(*units: tuple[Any, ...]) -> tuple[Step, ...]:
    """Return a branch of one unit per step; fields are those of `Unit`."""
    return tuple((Unit(f"branch{name}", *rest),) for name, *rest in units)


def _pool_unit(width: int) -> Unit:
    return Unit("branch_pool", (1, 1), width)


def _block_a(name: str, pool_width: int) -> BlockSpec:
    branches = (
        _chain(("1x1", (1, 1), 64)),
        _chain(("5x5_1", (1, 1), 48), ("5x5_2", (5, 5), 64)),
        _chain(("3x3dbl_1", (1, 1), 64), ("3x3dbl_2", (3, 3), 96), ("3x3dbl_3", (3, 3), 96)),
    )
    return BlockSpec(name, branches, "average", _pool_unit(pool_width))


def _block_b(name: str) -> BlockSpec:
    last = ("3x3dbl_3", (3, 3), 96, 2, "VALID")
    branches = (
        _chain(("3x3", (3, 3), 384, 2, "VALID")),
        _chain(("3x3dbl_1", (1, 1), 64), ("3x3dbl_2", (3, 3), 96), last),
    )
    return BlockSpec(name, branches, "stride")


def _block_c(name: str, width: int) -> BlockSpec:
    branches = (
        _chain(("1x1", (1, 1), 192)),
        _chain(("7x7_1", (1, 1), width), ("7x7_2", (1, 7), width), ("7x7_3", (7, 1), 192)),
        _chain(
            ("7x7dbl_1", (1, 1), width),
            ("7x7dbl_2", (7, 1), width),
            ("7x7dbl_3", (1, 7), width),
            ("7x7dbl_4", (7, 1), width),
            ("7x7dbl_5", (1, 7), 192),
        ),
    )
    return BlockSpec(name, branches, "average", _pool_unit(192))


def _block_d(name: str) -> BlockSpec:
    last = ("7x7x3_4", (3, 3), 192, 2, "VALID")
    branches = (
        _chain(("3x3_1", (1, 1), 192), ("3x3_2", (3, 3), 320, 2, "VALID")),
        _chain(("7x7x3_1", (1, 1), 192), ("7x7x3_2", (1, 7), 192), ("7x7x3_3", (7, 1), 192), last),
    )
    return BlockSpec(name, branches, "stride")


def _block_e(name: str, pool: Literal["average", "max"]) -> BlockSpec:
    split = (Unit("branch3x3_2a", (1, 3), 384), Unit("branch3x3_2b", (3, 1), 384))
    double = (Unit("branch3x3dbl_3a", (1, 3), 384), Unit("branch3x3dbl_3b", (3, 1), 384))
    branches = (
        _chain(("1x1", (1, 1), 320)),
        (*_chain(("3x3_1", (1, 1), 384)), split),
        (*_chain(("3x3dbl_1", (1, 1), 448), ("3x3dbl_2", (3, 3), 384)), double),
    )
    return BlockSpec(name, branches, pool, _pool_unit(192))


class InceptionV3(nn.Module):
    """Images to the pooled features of FID and class scores, float32; batch norms are folded.

    A CPU is fastest with one image per call: the first maps of a batch do not fit in its caches.
    """

    variant: Variant
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b k"]]:
        """Return pooled features and logits of images in about [-1, 1], from 75 x 75; best at 299.

        The 1008 logits of "2015" have no bias: its inception score is defined so.
        """
        x = images.astype(self.dtype)
        for group in STEM:
            for unit in group:
                x = nn.relu(Convolution(unit, self.dtype, name=unit.name)(x))
            x = nn.max_pool(x, (3, 3), (2, 2))
        for spec in block_specs(self.variant):
            x = Block(spec, self.dtype, name=spec.name)(x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        classes, has_bias = NUM_CLASSES[self.variant], self.variant == "keras"
        return features, nn.Dense(classes, has_bias, jnp.float32, name="logits")(features)


class Block(nn.Module):
    """The branches of a block; the 1x1 convolutions of its input are computed as one."""

    spec: BlockSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        widths = [unit.width for unit in self.spec.merged()]
        merged = Convolution(Unit("merged", (1, 1), sum(widths)), self.dtype, name="merged")(x)
        parts = jnp.split(merged, np.cumsum(widths)[:-1], axis=-1)
        known = {unit.name: part for unit, part in zip(self.spec.merged(), parts, strict=True)}
        outputs = []
        for branch in self.spec.branches:
            y = x
            for step in branch:
                y = jnp.concatenate([self._apply(unit, y, known) for unit in step], axis=-1)
            outputs.append(y)
        return jnp.concatenate([*outputs, self._pool_branch(x, known)], axis=-1)

    def _apply(self, unit: Unit, x: Array, known: Mapping[str, Array]) -> Array:
        if unit.name in known:
            return nn.relu(known[unit.name])
        return nn.relu(Convolution(unit, self.dtype, name=unit.name)(x))

    def _pool_branch(self, x: Array, known: Mapping[str, Array]) -> Array:
        unit = self.spec.pool_unit
        if unit is None:
            return nn.max_pool(x, (3, 3), (2, 2))
        if self.spec.pool == "max":
            return self._apply(unit, nn.max_pool(x, (3, 3), padding="SAME"), known)
        # The mean of the positions inside the image: padding is left out of sum and count.
        pooled = nn.avg_pool(known[unit.name], (3, 3), padding="SAME", count_include_pad=False)
        return nn.relu(pooled)


class Convolution(nn.Module):
    """Convolution with bias; a 1x1 kernel is a matrix product, which XLA's CPU does faster."""

    unit: Unit
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        unit = self.unit
        shape = (*unit.kernel, x.shape[-1], unit.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (unit.width,)).astype(self.dtype)
        if unit.kernel == (1, 1):
            return x @ kernel[0, 0] + bias
        return bias + lax.conv_general_dilated(
            x, kernel, (unit.stride,) * 2, unit.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


def load_inception(
    variant: Variant, path: Path, *, dtype: DTypeLike = jnp.float32
) -> tuple[InceptionV3, Params]:
    """Load a converted Inception-v3."""
    return load_converted(path, f"inception-{variant}", lambda _: InceptionV3(variant, dtype))
