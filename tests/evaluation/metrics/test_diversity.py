"""Diversity: closed forms, and a warning where samples of one caption are alike."""

from types import SimpleNamespace

import numpy as np
import pytest

from xmcgan.evaluation.metrics.diversity import Diversity

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((200, 64))


def scores(samples, resamples=0):
    extractor = SimpleNamespace(recipe={})
    context = SimpleNamespace(features=lambda _: extractor, resamples=resamples, seed=0)
    return Diversity(context, "fid-2015").compute({"values": REAL}, {"values": samples})


def test_orthogonal_samples_are_at_distance_1_and_opposite_ones_at_2():
    basis = 5 * np.eye(64)[:12].reshape(3, 4, 64)
    assert scores(basis)["diversity"].value == pytest.approx(1)
    pairs = np.stack([REAL, -3 * REAL], axis=1)
    assert scores(pairs)["diversity"].value == pytest.approx(2)


def test_distances_are_the_means_over_all_pairs():
    samples = RNG.standard_normal((5, 4, 64)) + 1
    rows = samples / np.linalg.norm(samples, axis=2, keepdims=True)
    pairs = [1 - row[i] @ row[j] for row in rows for i in range(4) for j in range(i)]
    real = REAL / np.linalg.norm(REAL, axis=1, keepdims=True)
    between = 1 - (real @ real.T)[np.triu_indices(len(real), 1)].mean()
    found = scores(samples)
    assert found["diversity"].value == pytest.approx(np.mean(pairs))
    assert found["diversity_real"].value == pytest.approx(between)
    assert found["diversity_ratio"].value == pytest.approx(np.mean(pairs) / between)


def test_alike_samples_are_warned_of_and_varied_ones_are_not():
    centers = RNG.standard_normal((20, 1, 64))
    noise = RNG.standard_normal((20, 4, 64))
    assert scores(centers + 0.05 * noise)["diversity_ratio"].note
    assert not scores(centers + 0.8 * noise)["diversity_ratio"].note


def test_interval_is_over_captions():
    centers = RNG.standard_normal((64, 1, 64))
    found = scores(centers + RNG.standard_normal((64, 4, 64)), resamples=20)
    for name in ("diversity", "diversity_ratio"):
        assert 0 < found[name].low < found[name].value < found[name].high
