"""A discriminator on frozen pretrained features; beyond the paper, see docs/paper_map.md.

Sauer, Chitta, Mueller, Geiger, "Projected GANs Converge Faster", NeurIPS 2021. Deviation: their
random projections and their mixing of scales are learned here; beside the frozen features stands
the paper's discriminator, since ImageNet features alone let hues drift; and every scale has
XMC-GAN's heads.
"""

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
    glorot_normal,
    upsample_nearest,
)
from xmcgan.models.discriminator import WIDTH_MULTIPLIERS, ImageEncoding, encode_pixels, sum_pool


class ProjectedDiscriminator(nn.Module):
    """Judge images by frozen features on several scales and by their pixels.

    `params["trunk"]` holds the frozen network's parameters; they are not trained.

    Attributes:
        trunk: the frozen network: images in [0, 1] -> feature maps, each half the size of the last.
        image_size: height and width of the images in pixels.
        trunk_size: height and width to which images are resized for the trunk.
        width: base number of channels; each scale has 16 times as many.
        region_dim: size of a region's feature, equal to that of the word features.
        region_size: height and width of the feature map that gives the regions.
        dtype: of the arithmetic; what it returns is float32.
        remat: compute the pixel encoder's blocks again in the backward pass.
    """

    trunk: nn.Module
    image_size: int
    trunk_size: int
    width: int = 4
    region_dim: int = 384
    region_size: int = 8
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], sentence: Float[Array, "b e"]
    ) -> ImageEncoding:
        """Encode images and score them against their captions, once per scale."""
        channels = 16 * self.width
        shape = (images.shape[0], self.trunk_size, self.trunk_size, 3)
        maps = self.trunk(jax.image.resize(images, shape, "bilinear"))

        # Mix scales from the coarsest to the finest, so that fine maps know what they belong to.
        mixed: list[Array] = []
        for index, x in reversed(list(enumerate(maps))):
            x = Conv1x1(channels, dtype=self.dtype, name=f"project_{index}")(x)
            if mixed:
                x = x + Conv1x1(channels, dtype=self.dtype, name=f"mix_{index}")(
                    nn.leaky_relu(upsample_nearest(mixed[-1]), 0.2)
                )
            mixed.append(x)

        features, at_region_size = [], []
        for index, x in enumerate(mixed):
            at_region_size += _at_region_size(x, self.region_size)
            while x.shape[1] > 4:
                name = f"down_{index}_{x.shape[1]}"
                x = Conv3x3(channels, self.dtype, conv3x3_pool, name=name)(nn.leaky_relu(x, 0.2))
            x = Conv3x3(channels, self.dtype, name=f"last_{index}")(nn.leaky_relu(x, 0.2))
            features.append(sum_pool(x) * (16 / (x.shape[1] * x.shape[2])))

        # Hues and what else ImageNet features say little of.
        widths = [multiplier * self.width for multiplier in WIDTH_MULTIPLIERS[self.image_size]]
        x, regions = encode_pixels(images, widths, self.region_size, self.dtype, self.remat)
        features.append(sum_pool(x))
        at_region_size.append(regions)

        regions = jnp.concatenate(at_region_size, axis=-1)
        regions = Conv1x1(self.region_dim, dtype=self.dtype, name="regions")(regions)
        regions = regions.reshape(regions.shape[0], -1, self.region_dim)

        feature = jnp.concatenate(features, axis=-1)
        sentence = Dense(feature.shape[-1], dtype=jnp.float32, name="sentence")(sentence)
        logits = ScaleLogits(len(features), name="logit")(feature, sentence)
        return ImageEncoding(logits, feature, regions.astype(jnp.float32), sentence)


class ScaleLogits(nn.Module):
    """One logit per scale, each from that scale's part of the feature and of the sentence.

    Attributes:
        num_scales: equal parts of the feature.
    """

    num_scales: int

    @nn.compact
    def __call__(
        self, feature: Float[Array, "b c"], sentence: Float[Array, "b c"]
    ) -> Float[Array, "b k"]:
        kernel = self.param("kernel", glorot_normal, (feature.shape[-1], 1))
        bias = self.param("bias", nn.initializers.zeros, (self.num_scales,))
        products = feature * (kernel[:, 0] + sentence)
        return products.reshape(feature.shape[0], self.num_scales, -1).sum(axis=-1) + bias


def _at_region_size(x: Float[Array, "b h w c"], size: int) -> list[Float[Array, "b s s c"]]:
    """Return a map of at most twice, at least half the size of the regions, at their size."""
    if x.shape[1] == 2 * size:
        return [average_pool(x)]
    if 2 * x.shape[1] == size:
        return [upsample_nearest(x)]
    return [x] if x.shape[1] == size else []
