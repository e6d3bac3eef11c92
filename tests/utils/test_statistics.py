"""Intervals are as wide as scores scatter between sets of images."""

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.utils.statistics import (
    MIN_IMAGES,
    check_resamples,
    mean_score,
    resample_counts,
    resample_pair,
    score,
)


def test_counts_are_poisson_numbers_of_mean_one_and_follow_the_seed():
    counts = resample_counts(5000, 20, seed=0)
    shares = np.bincount(counts.ravel(), minlength=4)[:4] / counts.size
    expected = np.exp(-1) / np.array([1, 1, 2, 6])
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / counts.size)
    assert counts.var() == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(counts, resample_counts(5000, 20, seed=0))


def test_resamples_seeds_sides_and_images_are_independent():
    counts = np.concatenate(
        [side[1:] for seed in range(3) for side in resample_pair(5000, 5000, 5, seed)]
    )
    correlation = np.corrcoef(counts) - np.eye(30)
    assert np.abs(correlation).max() < 5 / np.sqrt(5000)


def test_the_first_weights_count_every_image_once_and_few_images_have_no_others():
    real, fake = resample_pair(30, 40, 6, seed=0)
    assert real.shape == (7, 30)
    assert fake.shape == (7, 40)
    assert real[0].tolist() == [1] * 30
    real, fake = resample_pair(30, MIN_IMAGES - 1, 6, seed=0)
    assert len(real) == len(fake) == 1
    assert mean_score(np.ones(MIN_IMAGES - 1), resamples=6, seed=0).low is None


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).uniform(0, 2, 2000)
    found = mean_score(values, most=2.0, resamples=400, seed=0)
    assert (found.low + found.high) / 2 == pytest.approx(values.mean(), rel=1e-9)
    width = 2 * 1.96 * values.std() / np.sqrt(2000)
    assert found.high - found.low == pytest.approx(width, rel=0.12)
    assert found.value == pytest.approx(values.mean())


def test_intervals_are_students_and_end_where_the_score_does():
    resampled = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = score([3.0, *resampled], "lower", "a note")
    spread = 2.7764 * np.std(resampled, ddof=1)  # Student's t, 4 degrees of freedom, 97.5 %
    assert (found.low, found.high) == pytest.approx((3 - spread, 3 + spread), rel=1e-4)
    assert (found.better, found.note) == ("lower", "a note")
    bounded = score([3.0, *resampled], "lower", least=2.5, most=3.5)
    assert (bounded.low, bounded.high) == (2.5, 3.5)
    assert score([3.0], "higher").low is None


@pytest.mark.parametrize("resamples", [-1, 1, 4])
def test_resamples_that_tell_no_spread_are_refused(resamples: int):
    with pytest.raises(EvaluationError, match=str(resamples)):
        check_resamples(resamples)
    with pytest.raises(EvaluationError, match=str(resamples)):
        mean_score(np.ones(50), resamples=resamples, seed=0)
