"""Residual blocks of both networks, and the two ways to change a feature map's size."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models.modulation import Condition, ConditionalBatchNorm

Conv3x3 = partial(nn.Conv, kernel_size=(3, 3), kernel_init=nn.initializers.glorot_normal())
Conv1x1 = partial(nn.Conv, kernel_size=(1, 1), kernel_init=nn.initializers.glorot_normal())
Dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_normal())


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Double height and width by repeating pixels."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def average_pool(x: Float[Array, "b 2*h 2*w c"]) -> Float[Array, "b h w c"]:
    """Halve height and width by averaging blocks of 2x2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


class GeneratorBlock(nn.Module):
    """Double the size of a feature map under a condition (paper, figure 2).

    norm -> relu -> up -> conv3x3 -> norm -> relu -> conv3x3, plus up -> conv1x1. With a global
    condition it is the official code's GenBlock, with a spatial one its GenSpatialBlock.

    Attributes:
        features: channels of the result.
        batch_norm_group_size: images that share batch statistics; 0 is the whole batch.
        dtype: of the arithmetic; statistics stay float32.
    """

    features: int
    batch_norm_group_size: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Condition, *, train: bool
    ) -> Float[Array, "b 2*h 2*w f"]:
        norm = partial(ConditionalBatchNorm, self.batch_norm_group_size, self.dtype)
        # A conv1x1 commutes with nearest upsampling: a quarter of the work at the small size.
        shortcut = upsample_nearest(Conv1x1(self.features, dtype=self.dtype, name="shortcut")(x))
        x = nn.relu(norm(name="norm_1")(x, condition, train=train))
        x = Conv3x3(self.features, dtype=self.dtype, name="conv_1")(upsample_nearest(x))
        x = nn.relu(norm(name="norm_2")(x, condition, train=train))
        x = Conv3x3(self.features, dtype=self.dtype, name="conv_2")(x)
        return x + shortcut


class DiscriminatorBlock(nn.Module):
    """Encode a feature map, at half its size if `downsample`.

    (relu ->) conv3x3 -> relu -> conv3x3 (-> pool), plus (pool ->) conv1x1 where size or width
    changes.

    Attributes:
        features: channels of the result.
        downsample: halve height and width.
        first: the stem, which takes an image: no relu comes before its first convolution.
        dtype: of the arithmetic.
    """

    features: int
    downsample: bool = True
    first: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        shortcut = x
        if self.downsample or x.shape[-1] != self.features:
            # Pooling commutes with a conv1x1, so it always comes first: a quarter of the work.
            shortcut = average_pool(x) if self.downsample else x
            shortcut = Conv1x1(self.features, dtype=self.dtype, name="shortcut")(shortcut)
        if not self.first:
            x = nn.relu(x)
        x = nn.relu(Conv3x3(self.features, dtype=self.dtype, name="conv_1")(x))
        x = Conv3x3(self.features, dtype=self.dtype, name="conv_2")(x)
        return (average_pool(x) if self.downsample else x) + shortcut
