"""Signs of trouble: their formulas, and that a warning comes once and not too early."""

import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.training.health import (
    HealthWatch,
    diversity_warning,
    hinge_to_contrast,
    pairwise_similarity,
    sample_diversity,
)

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


def test_a_warning_comes_after_several_lines_and_once_an_episode():
    watch = HealthWatch()
    bad = {"d_hinge_loss": 0.01, "fake_similarity": 0.5, "real_similarity": 0.5}
    good = bad | {"d_hinge_loss": 1.0}
    found = [watch.warnings(x) for x in [bad, bad, bad, bad, good, bad, bad, bad]]
    assert [len(x) for x in found] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert "discriminator" in found[2][0]


def test_samples_that_look_alike_are_named_beside_real_ones():
    watch = HealthWatch()
    averages = {"d_hinge_loss": 1.0, "fake_similarity": 0.999, "real_similarity": 0.9}
    assert "look alike (similarity 0.999" in [watch.warnings(averages) for _ in range(3)][2][0]
    watch = HealthWatch()
    averages |= {"real_similarity": 0.998}  # so are the real ones
    assert [watch.warnings(averages) for _ in range(3)] == [[], [], []]


def test_diversity_is_the_distance_between_samples_beside_that_of_real_images():
    real = np.array([0, 100, 40, 20], np.uint8)[:, None, None, None] * np.ones(
        (4, 2, 2, 3), np.uint8
    )
    # From one image to the next: 20, 100, 60 and 20.
    assert sample_diversity(real, real, real) == 0
    assert sample_diversity(real, real + 5, real) == pytest.approx(5 / 50)
    assert sample_diversity(real + 5, real, real) == pytest.approx(5 / 50)


def test_samples_that_are_alike_are_warned_of():
    assert "alike" in diversity_warning(0.01)
    assert diversity_warning(0.3) == ""
