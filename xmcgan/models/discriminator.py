"""The discriminator, which is an image encoder as well (paper, "Contrastive discriminator")."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.models.blocks import DiscriminatorBlock, with_remat
from xmcgan.models.convolution import Conv1x1, Dense
from xmcgan.models.outputs import DiscriminatorOutput, at_least_float32

# Width of each block, the stem first, in multiples of the base width. All blocks but the last
# halve the size. 128 and 256 are the paper's; smaller networks are the one for 128 without its
# first blocks, so that both networks have the same width at the same size.
WIDTH_MULTIPLIERS = {
    32: (4, 8, 16, 16),
    64: (2, 4, 8, 16, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}


class Discriminator(nn.Module):
    """Judge images against captions, and encode them globally and by region.

    It contains no normalization: apply it to parameters that went through
    `spectral_norm.spectral_normalize`, once a step for any number of calls.

    Attributes:
        image_size: height and width of the images in pixels, a key of `WIDTH_MULTIPLIERS`.
        width: base number of channels (the paper's and official value is 96).
        multipliers: width of each block in multiples of `width`; empty takes those of
            `WIDTH_MULTIPLIERS`.
        region_dim: size of a region's feature, equal to that of the word features.
        region_size: height and width of the feature map that gives the regions.
        dtype: of the arithmetic; what it returns is at least float32.
        remat: what the backward pass computes again, a key of `blocks.REMAT_POLICIES`.
    """

    image_size: int
    width: int = 96
    region_dim: int = 768
    region_size: int = 16
    dtype: Any = jnp.float32
    multipliers: tuple[int, ...] = ()
    remat: str = "none"

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w 3"], sentence: Float[Array, "b e"]
    ) -> DiscriminatorOutput:
        """Encode images and score them against their captions.

        Args:
            images: in [0, 1].
            sentence: one feature vector a caption.

        Returns:
            Logits, features and projected sentences, all at least float32.
        """
        multipliers = self.multipliers or WIDTH_MULTIPLIERS[self.image_size]
        block = with_remat(DiscriminatorBlock, self.remat)
        x, regions = images.astype(self.dtype), None
        for index, multiplier in enumerate(multipliers):
            x = block(
                multiplier * self.width,
                downsample=index < len(multipliers) - 1,
                first=index == 0,
                dtype=self.dtype,
                name=f"block_{index}",
            )(x)
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
    """Return the derivative of the logits by the feature, of either discriminator.

    Args:
        params: normalized; the heads of the logits are `logit`, or `logit_0` and so on.
        sentence: projected.
    """
    kernels = [params[name]["kernel"][:, 0] for name in sorted(params) if name.startswith("logit")]
    return jnp.concatenate(kernels) + sentence
