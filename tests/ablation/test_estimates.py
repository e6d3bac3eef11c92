"""Means, differences and their intervals against the formulas written out."""

import math

import numpy as np
import pytest
from scipy import special, stats

from xmcgan.evaluation.scores import Score
from xmcgan.studies.ablation.estimates import Estimate, difference, mean_over_seeds


def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t from the incomplete beta function."""
    x = special.betaincinv(freedom / 2, 0.5, 0.05)
    return math.sqrt(freedom * (1 / x - 1))


def scores(*values: float) -> list[Score]:
    return [Score("fd", value, value - 1, value + 2, better="lower") for value in values]


def test_the_mean_of_seeds_has_students_interval():
    values = [61.0, 64.5, 58.25]
    found = mean_over_seeds(scores(*values))
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    spread = quantile(2) * deviation / math.sqrt(3)
    assert found.value == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - spread, mean + spread))
    assert found.source == "seeds"


def test_students_quantiles_are_those_of_the_tables():
    assert quantile(1) == pytest.approx(12.706, abs=1e-3)
    assert quantile(4) == pytest.approx(2.776, abs=1e-3)
    two = mean_over_seeds(scores(0.0, 2.0))
    assert two.high == pytest.approx(1 + 12.7062, abs=1e-3)


def test_one_seed_has_the_interval_of_the_evaluation():
    assert mean_over_seeds(scores(5.0)) == Estimate(5.0, 4.0, 7.0, "images")
    bare = Score("fd", 5.0, None, None, better="lower")
    assert mean_over_seeds([bare]) == Estimate(5.0, None, None, "")


def test_a_difference_has_the_paired_interval():
    row, baseline = {0: 3.0, 1: 4.0, 2: 8.0}, {2: 6.5, 0: 1.0, 1: 1.5, 9: 100.0}
    within = [2.0, 2.5, 1.5]  # seed 9 has no partner
    spread = quantile(2) * 0.5 / math.sqrt(3)
    found = difference(row, baseline)
    assert found is not None
    assert found.value == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 - spread, 2 + spread))
    other = stats.ttest_1samp(within, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((other.low, other.high))


def test_single_seeds_and_seeds_without_any_spread_have_no_interval_of_seeds():
    assert difference({0: 3.0, 1: 5.0}, {1: 1.0}) == Estimate(4.0)
    assert difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}) == Estimate(2.0)
    assert difference({0: 3.0}, {1: 1.0}) is None
    assert mean_over_seeds(scores(0.0, 0.0)) == Estimate(0.0)


def test_intervals_hold_the_true_difference_in_95_of_100_tables():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shared = rng.normal(0, 5, 4)  # what a seed does to all rows
        row, baseline = shared + rng.normal(5, 2, 4), shared + rng.normal(2, 1, 4)
        found = difference(dict(enumerate(row)), dict(enumerate(baseline)))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low < 20
        held += found.low <= 3 <= found.high
    assert 0.92 <= held / 400 <= 0.98
