"""The single-stage generator (paper, "Attentional self-modulation generator")."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmcgan.models.attention import attend_to_words
from xmcgan.models.blocks import GeneratorBlock, with_remat
from xmcgan.models.convolution import Conv1x1, Conv3x3, Dense
from xmcgan.models.modulation import Condition, ConditionalBatchNorm, Whitening
from xmcgan.models.outputs import at_least_float32

# Width of each block, in multiples of the base width. 128 and 256 are the paper's; smaller
# networks are the one for 128 without its last blocks. The discriminator mirrors them.
WIDTH_MULTIPLIERS = {
    32: (16, 8, 4),
    64: (16, 8, 4, 2),
    128: (16, 8, 4, 2, 1),
    256: (16, 8, 8, 4, 2, 1),
    512: (16, 8, 8, 4, 2, 1, 1),
}


class Generator(nn.Module):
    """Draw an image from a caption's words and sentence and from noise."""

    image_size: int  # pixels of a side, a key of `WIDTH_MULTIPLIERS`
    width: int = 96  # base number of channels
    z_dim: int = 128  # size of the noise, and of the projected sentence
    condition_size: int = 16  # side of the feature map that attends to the words
    attention_gamma: float = 15.0  # sharpness of the attention over words
    sentence_in_first_map: bool = False  # feed it sentence and noise, not noise alone
    whiten_sentence: bool = False  # decorrelate the sentence first, see `Whitening`
    batch_norm_group_size: int = 0  # images that share batch statistics; 0: the whole batch
    dtype: Any = jnp.float32  # of the arithmetic; statistics and image are at least float32
    multipliers: tuple[int, ...] = ()  # widths of the blocks; empty: those of `WIDTH_MULTIPLIERS`
    remat: str = "none"  # what the backward pass computes again, a key of `REMAT_POLICIES`

    @nn.compact
    def __call__(
        self,
        words: Float[Array, "b t d"],
        word_mask: Bool[Array, "b t"],
        sentence: Float[Array, "b e"],
        z: Float[Array, "b z"],
        *,
        train: bool,
    ) -> Float[Array, "b h w 3"]:
        """Generate images in [0, 1]; `train` normalizes by the batch's own statistics."""
        # Argument 3 is `train`, which decides what is computed.
        block_class = with_remat(GeneratorBlock, self.remat, static_argnums=3)
        block = partial(
            block_class, batch_norm_group_size=self.batch_norm_group_size, dtype=self.dtype
        )
        if self.whiten_sentence:
            sentence = Whitening(name="whitening")(sentence)
        projected = Dense(self.z_dim, dtype=self.dtype, name="sentence")(sentence)
        condition = Condition(jnp.concatenate([projected, z.astype(self.dtype)], axis=-1))

        # Deviation: by default the first map sees the noise alone, as in the official code; the
        # paper feeds it noise and sentence.
        seed = jnp.concatenate([z, sentence], axis=-1) if self.sentence_in_first_map else z
        x = Dense(16 * self.width * 4 * 4, dtype=self.dtype, name="first_map")(seed)
        x = x.reshape(z.shape[0], 4, 4, 16 * self.width)
        multipliers = self.multipliers or WIDTH_MULTIPLIERS[self.image_size]
        for index, multiplier in enumerate(multipliers):
            if x.shape[1] == self.condition_size:
                condition = self._attend(x, words, word_mask, condition)
            x = block(multiplier * self.width, name=f"block_{index}")(x, condition, train)

        last_norm = ConditionalBatchNorm(self.batch_norm_group_size, self.dtype, name="last_norm")
        x = last_norm(x, condition, train=train)
        x = at_least_float32(Conv3x3(3, self.dtype, name="to_rgb")(x))
        return (jnp.tanh(x) + 1) / 2

    def _attend(self, x: Array, words: Array, word_mask: Array, condition: Condition) -> Condition:
        """Add to the global condition the words that each region attends to."""
        (batch, size, _, _), dim = x.shape, words.shape[-1]
        query = Conv1x1(dim, dtype=self.dtype, name="query")(x).reshape(batch, size * size, dim)
        context, shares = attend_to_words(query, words, word_mask, self.attention_gamma)
        # For those who ask for the collection; otherwise nothing is stored.
        self.sow("intermediates", "word_attention", shares.reshape(batch, size, size, -1))
        return condition._replace(context=context.reshape(batch, size, size, dim))
