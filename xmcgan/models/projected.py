"""A discriminator on frozen pretrained features; beyond the paper, see docs/paper_map.md.

Sauer, Chitta, Mueller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021, with XMC-GAN's heads
on every scale. Deviation: the projections are learned, scales are not mixed, and a small branch
sees the pixels.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models.convolution import (
    Conv1x1,
    Conv3x3,
    Dense,
    average_pool,
    conv3x3_pool,
    upsample_nearest,
)
from xmcgan.models.discriminator import sum_pool
from xmcgan.models.outputs import DiscriminatorOutput, at_least_float32


class ProjectedDiscriminator(nn.Module):
    """Judge images by frozen features on several scales and by their pixels."""

    trunk: nn.Module  # frozen: images in [0, 1] -> feature maps, each half the size of the last
    trunk_size: int  # pixels of a side to which images are resized for the trunk
    width: int = 4  # base number of channels; each scale has 16 times as many
    region_dim: int = 384  # size of a region's feature, that of the word features
    region_size: int = 8  # side of the feature map that gives the regions
    places: bool = False  # whether a feature tells where things are; pooled ones hardly do
    dtype: Any = jnp.float32  # of the arithmetic; what it returns is at least float32
    remat: str = "none"  # "blocks" computes the trunk again in the backward pass

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], sentence: Float[Array, "b e"]
    ) -> DiscriminatorOutput:
        channels = 16 * self.width
        halve = partial(Conv3x3, dtype=self.dtype, conv_fn=conv3x3_pool)

        def summarize(x: Float[Array, "b s s c"], name: str) -> Float[Array, "b d"]:
            if not self.places:
                return sum_pool(x) * (16 / (x.shape[1] * x.shape[2]))
            x = at_least_float32(nn.leaky_relu(x, 0.2).reshape(x.shape[0], -1))
            return 4 * nn.relu(dense(channels, name=f"places_{name}")(x))

        dense = partial(Dense, dtype=jnp.promote_types(self.dtype, jnp.float32))
        shape = (images.shape[0], self.trunk_size, self.trunk_size, 3)
        encode = type(self.trunk).__call__
        encode = nn.remat(encode) if self.remat == "blocks" else encode
        maps = encode(self.trunk, jax.image.resize(images, shape, "bilinear"))

        features, at_region_size = [], []
        for index, x in enumerate(maps):
            at_region_size += _at_region_size(x, self.region_size)
            x = Conv1x1(channels, dtype=self.dtype, name=f"project_{index}")(x)
            while x.shape[1] > 4:
                x = halve(channels, name=f"down_{index}_{x.shape[1]}")(nn.leaky_relu(x, 0.2))
            x = Conv3x3(channels, self.dtype, name=f"last_{index}")(nn.leaky_relu(x, 0.2))
            features.append(summarize(x, str(index)))

        # Hues, of which ImageNet features say little. A stronger branch tells real from generated
        # pixels at once, and the generator learns nothing from it.
        x = halve(channels // 2, name="pixels")(images * 2 - 1)
        while x.shape[1] > 4:
            x = nn.leaky_relu(x, 0.2)
            at_region_size += [x] if x.shape[1] == self.region_size else []
            x = halve(channels, name=f"pixels_{x.shape[1]}")(x)
        features.append(summarize(x, "pixels"))

        regions = jnp.concatenate(at_region_size, axis=-1)
        regions = Conv1x1(self.region_dim, dtype=self.dtype, name="regions")(regions)
        regions = regions.reshape(regions.shape[0], -1, self.region_dim)

        logits, sentences = [], []
        for index, feature in enumerate(features):
            sentences.append(dense(channels, name=f"sentence_{index}")(sentence))
            logit = dense(1, name=f"logit_{index}")(feature)[:, 0]
            logits.append(logit + jnp.sum(feature * sentences[-1], axis=-1))
        feature, sentence = (jnp.concatenate(x, axis=-1) for x in (features, sentences))
        logit = jnp.stack(logits, axis=-1)
        return DiscriminatorOutput(logit, feature, at_least_float32(regions), sentence)


def _at_region_size(x: Float[Array, "b h w c"], size: int) -> list[Float[Array, "b s s c"]]:
    """Return a map of at most twice, at least half the size of the regions, at their size."""
    if x.shape[1] == 2 * size:
        return [average_pool(x)]
    if 2 * x.shape[1] == size:
        return [upsample_nearest(x)]
    return [x] if x.shape[1] == size else []
