"""Intervals are as wide as scores scatter between sets of images."""

import numpy as np
import pytest

from xmcgan.evaluation.bootstrap import interval, resample_counts, student_quantile
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.scores import frechet_score, image_scores


def rows(n: int, d: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_counts_are_poisson_numbers_of_mean_one():
    counts = resample_counts(content_keys(rows(5000)), 20, seed=0)
    shares = np.bincount(counts.ravel(), minlength=4)[:4] / counts.size
    expected = np.exp(-1) / np.array([1, 1, 2, 6])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / counts.size)
    assert counts.mean() == pytest.approx(1, abs=5 / np.sqrt(counts.size))
    assert counts.var() == pytest.approx(1, abs=0.03)


def test_resamples_seeds_and_images_are_independent():
    keys = content_keys(rows(5000))
    counts = np.concatenate([resample_counts(keys, 4, seed) for seed in range(3)])
    correlation = np.corrcoef(counts) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)


def test_counts_go_with_the_images():
    keys = content_keys(rows(300))
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(
        resample_counts(keys[order], 5, 0), resample_counts(keys, 5, 0)[:, order]
    )


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = rows(2000, 1)[:, 0].astype(np.float64)
    counts = resample_counts(content_keys(values[:, None]), 400, seed=0)
    low, high = interval(values.mean(), counts @ values / counts.sum(axis=1))
    assert (low + high) / 2 == pytest.approx(values.mean(), rel=1e-9)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.12)


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(4, 2.7764), (9, 2.2622), (19, 2.0930), (49, 2.0096), (999, 1.9623)],
)
def test_quantiles_agree_with_the_table_of_student(freedom: int, quantile: float):
    assert student_quantile(freedom) == pytest.approx(quantile, rel=3e-3)


def test_intervals_hold_the_expected_frechet_distance():
    rng = np.random.default_rng(0)

    def draw() -> tuple[Features, Features]:
        real, fake = rng.standard_normal((2, 200, 8)).astype(np.float32)
        return Features(real, None), Features(1.1 * fake + 0.3, None)

    scores = [frechet_score(*draw(), label="FD", resamples=10, seed=0) for _ in range(100)]
    expected = np.mean([score.value for score in scores])
    low, high = np.array([(score.low, score.high) for score in scores]).T
    # Nominally 95; a percentile interval, displaced by the copies in resamples, holds it in 49.
    assert np.mean((low <= expected) & (expected <= high)) >= 0.87
    assert np.mean(high - low) < 2 * 2.26 * 1.5 * np.std([score.value for score in scores])


def test_intervals_of_all_scores_are_as_wide_as_scores_scatter():
    rng = np.random.default_rng(0)

    def draw() -> list:
        real, fake = rng.standard_normal((2, 150, 8)).astype(np.float32)
        sides = Features(real, real), Features(1.1 * fake + 0.3, fake)
        return image_scores(*sides, label="FD", resamples=10, seed=0)

    runs = [draw() for _ in range(25)]
    for name, scores in zip(
        [score.name for score in runs[0]], zip(*runs, strict=True), strict=True
    ):
        half = np.mean([(score.high - score.low) / 2 for score in scores])
        ratio = half / student_quantile(9) / np.std([score.value for score in scores])
        assert 0.5 < ratio < 2, name
