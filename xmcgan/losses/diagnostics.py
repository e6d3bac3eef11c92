"""Scalars for the logs that tell how a training goes; no loss uses them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.losses.context import Features, Metrics
from xmcgan.models.attention import l2_normalize


def output_statistics(real: Features, fake: Features) -> Metrics:
    """Mean logits, their margin, and how alike the global features of a batch are."""
    real_logit, fake_logit = jnp.mean(real.output.logits), jnp.mean(fake.output.logits)
    return {
        "d_real_logit": real_logit,
        "d_fake_logit": fake_logit,
        "d_margin": real_logit - fake_logit,
        "real_similarity": pairwise_similarity(real.output.feature),
        "fake_similarity": pairwise_similarity(fake.output.feature),
    }


def pairwise_similarity(features: Float[Array, "b c"]) -> Float[Array, ""]:
    """Mean cosine similarity of two different rows: 1 if all are the same."""
    count = features.shape[0]
    total = jnp.sum(l2_normalize(features), axis=0)
    return (jnp.sum(total * total) - count) / max(count * (count - 1), 1)


def hinge_to_contrast(
    logit_grads: Float[Array, "*b"],
    logit_slopes: Float[Array, "... b c"],
    feature_grads: Float[Array, "... b c"],
) -> Float[Array, ""]:
    """Ratio of hinge to contrastive gradient norm at the generated images' global features."""
    # With one logit per scale, each owns an equal part of the feature.
    slopes = logit_slopes.reshape(*logit_grads.shape, -1)
    hinge = jnp.linalg.norm(logit_grads[..., None] * slopes)
    return hinge / (jnp.linalg.norm(feature_grads) + 1e-12)
