"""What the networks take and return."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Captions(NamedTuple):
    """Encoded captions of a batch; special tokens count as words."""

    words: Float[Array, "b t d"]
    word_mask: Bool[Array, "b t"]  # false on padding
    sentence: Float[Array, "b e"]


class DiscriminatorOutput(NamedTuple):
    """Discriminator outputs, all at least float32."""

    logits: Float[Array, "b *k"]  # one per image, or one per image and scale
    feature: Float[Array, "b c"]  # global, for the sentence and image losses
    regions: Float[Array, "b r d"]  # for the word loss
    sentence: Float[Array, "b c"]  # projected, the captions' side of the sentence loss


def at_least_float32(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Widen bfloat16; float32 and float64, of `verify_reference.py`, stay as they are."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
