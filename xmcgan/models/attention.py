"""Word-region attention, used by the generator (over words) and by the word loss (over regions)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmcgan.models.outputs import at_least_float32

MASKED_LOGIT = -1e9  # the official code's value; exp of it is exactly 0


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Scale vectors to unit length over the last axis, at least in float32; zero stays zero."""
    x = at_least_float32(x)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def attend_to_words(
    query: Float[Array, "b r d"],
    words: Float[Array, "b t d"],
    word_mask: Bool[Array, "b t"],
    gamma: float,
) -> tuple[Float[Array, "b r d"], Float[Array, "b r t"]]:
    """Gather for each region the words that it looks like.

    Paper, "Attentional self-modulation generator": its c_j, with the sharpness gamma as its rho_0.
    Also returns the share of each word in it: 1 over all words, exactly 0 on padding.

    Deviation: the context is a mixture of the L2-normalized words, as in the official code; the
    paper mixes the plain word vectors.
    """
    query, words = l2_normalize(query), l2_normalize(words)
    logits = gamma * jnp.einsum("brd,btd->brt", query, words)
    logits = jnp.where(word_mask[:, None, :], logits, MASKED_LOGIT)
    shares = jax.nn.softmax(logits, axis=-1)
    return jnp.einsum("brt,btd->brd", shares, words), shares
