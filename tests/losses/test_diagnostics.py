"""Scalars for the logs against their formulas."""

import jax.numpy as jnp
import numpy as np

from xmcgan.losses.diagnostics import hinge_to_contrast, pairwise_similarity

RNG = np.random.default_rng(0)


def test_pairwise_similarity_is_the_mean_over_pairs():
    rows = RNG.normal(size=(5, 7)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i in range(5) for j in range(5) if i != j]
    np.testing.assert_allclose(pairwise_similarity(jnp.asarray(rows)), np.mean(cosines), rtol=1e-5)
    same = jnp.tile(rows[:1], (5, 1))
    np.testing.assert_allclose(pairwise_similarity(same), 1, rtol=1e-5)


def test_the_ratio_is_that_of_the_gradients_by_the_features():
    features = RNG.normal(size=(4, 3)).astype(np.float32)
    slopes, logit_grads = RNG.normal(size=(4, 3)), RNG.normal(size=4)
    expected = np.linalg.norm(logit_grads[:, None] * slopes) / np.linalg.norm(features)
    np.testing.assert_allclose(
        hinge_to_contrast(logit_grads, slopes, features), expected, rtol=1e-5
    )
