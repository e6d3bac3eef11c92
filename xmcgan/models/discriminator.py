"""The discriminator, which is an image encoder as well (paper, "Contrastive discriminator")."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models import generator
from xmcgan.models.blocks import DiscriminatorBlock, with_remat
from xmcgan.models.convolution import Conv1x1, Dense
from xmcgan.models.outputs import DiscriminatorOutput, at_least_float32

# The generator's widths from the last block to the first, so that both networks have the same width
# at the same size, and a last block that keeps the size. 128 and 256 are the paper's.
WIDTH_MULTIPLIERS = {size: (*g[::-1], 16) for size, g in generator.WIDTH_MULTIPLIERS.items()}


class Discriminator(nn.Module):
    """Judge images against captions, and encode them globally and by region.

    It contains no normalization: apply it to parameters that went through
    `spectral_norm.spectral_normalize`, once a step for any number of calls.
    """

    image_size: int  # pixels of a side, a key of `WIDTH_MULTIPLIERS`
    width: int = 96  # base number of channels
    region_dim: int = 768  # size of a region's feature, that of the word features
    region_size: int = 16  # side of the feature map that gives the regions
    dtype: Any = jnp.float32  # of the arithmetic; what it returns is at least float32
    multipliers: tuple[int, ...] = ()  # widths of the blocks; empty: those of `WIDTH_MULTIPLIERS`
    remat: str = "none"  # what the backward pass computes again, a key of `REMAT_POLICIES`

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], sentence: Float[Array, "b e"]
    ) -> DiscriminatorOutput:
        """Encode images in [0, 1] and score them against their captions."""
        multipliers = self.multipliers or WIDTH_MULTIPLIERS[self.image_size]
        block = with_remat(DiscriminatorBlock, self.remat)
        x, regions = images.astype(self.dtype), None
        for index, multiplier in enumerate(multipliers):
            is_first, is_last = index == 0, index == len(multipliers) - 1
            features, name = multiplier * self.width, f"block_{index}"
            x = block(features, not is_last, is_first, self.dtype, name=name)(x)
            if x.shape[1] == self.region_size and regions is None:
                regions = Conv1x1(self.region_dim, dtype=self.dtype, name="regions")(x)
        if regions is None:
            raise ValueError(f"no block of the discriminator has size {self.region_size}")
        regions = regions.reshape(regions.shape[0], -1, self.region_dim)

        feature = sum_pool(x)
        # The logit is a difference of large numbers: at least float32, whatever the blocks use.
        sentence = Dense(feature.shape[-1], dtype=feature.dtype, name="sentence")(sentence)
        logits = Dense(1, dtype=feature.dtype, name="logit")(feature)[:, 0]
        logits = logits + jnp.sum(feature * sentence, axis=-1)
        return DiscriminatorOutput(logits, feature, at_least_float32(regions), sentence)


def sum_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Return the sum of the positive parts over space, at least float32."""
    return jnp.sum(at_least_float32(nn.relu(x)), axis=(1, 2))


def logit_slopes(params: dict[str, Any], sentence: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Derivative of the logits by the feature, from normalized parameters, of either network."""
    kernels = [params[name]["kernel"][:, 0] for name in sorted(params) if name.startswith("logit")]
    return jnp.concatenate(kernels) + sentence
