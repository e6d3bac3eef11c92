"""Moments equal NumPy's in float64, however the rows come."""

import tracemalloc

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation import moments as module
from xmcgan.evaluation.moments import Moments


def rows(n: int = 500, d: int = 12, mean: float = 0.4) -> np.ndarray:
    """Return features of which some vary a lot and some hardly."""
    rng = np.random.default_rng(n + d)
    spread = np.geomspace(1, 1e-3, d)
    return (rng.standard_normal((n, d)) * spread + mean).astype(np.float32)


def assert_same(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    scale = np.sqrt(np.outer(np.diag(b.covariance()), np.diag(b.covariance())))
    assert np.abs((a.covariance() - b.covariance()) / scale).max() < 1e-11


def test_moments_are_the_mean_and_the_unbiased_covariance():
    values = rows()
    moments = Moments.of(values)
    deviations = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(moments.mean, values.astype(np.float64).mean(axis=0), rtol=1e-13)
    expected = sum(np.outer(row, row) for row in deviations) / (len(values) - 1)
    np.testing.assert_allclose(moments.covariance(), expected, rtol=1e-10, atol=1e-16)
    assert moments.n == len(values)
    assert moments.mean.dtype == moments.covariance().dtype == np.float64


def test_few_rows_show_the_divisor():
    moments = Moments.of(np.array([[0.0], [1.0], [2.0]], np.float32))
    assert moments.covariance() == [[1.0]]


def test_a_large_mean_takes_no_digits_from_a_small_spread():
    values = rows(mean=1000.0)
    expected = np.cov(values.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(
        np.diag(Moments.of(values).covariance()), np.diag(expected), rtol=1e-10
    )


@pytest.mark.parametrize("size", [1, 7, 32, 499, 500])
def test_batches_of_any_size_give_the_same(size: int):
    values = rows()
    moments = Moments(values.shape[1])
    for start in range(0, len(values), size):
        moments.update(values[start : start + size])
    assert_same(moments, Moments.of(values))


def test_the_order_of_rows_changes_nothing():
    values = rows()
    shuffled = np.random.default_rng(3).permutation(values)
    assert_same(Moments.of(shuffled), Moments.of(values))


@pytest.mark.parametrize("cut", [0, 1, 100, 499, 500])
def test_hosts_can_share_the_work(cut: int):
    values = rows()
    first, second = Moments(values.shape[1]), Moments(values.shape[1])
    first.update(values[:cut])
    second.update(values[cut:])
    first.merge(second)
    assert_same(first, Moments.of(values))


def test_blocks_of_a_large_array_are_merged(monkeypatch):
    values = rows()
    whole = Moments.of(values)
    monkeypatch.setattr(module, "BLOCK", 64)
    assert_same(Moments.of(values), whole)


def test_counts_stand_for_repeated_rows():
    values = rows()
    counts = np.random.default_rng(0).poisson(1.0, len(values))
    assert_same(Moments.of(values, counts), Moments.of(np.repeat(values, counts, axis=0)))


def test_memory_does_not_grow_with_the_number_of_rows():
    values = np.zeros((100_000, 16), np.float32)
    tracemalloc.start()
    Moments.of(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * module.BLOCK * 16 * 8  # the whole in float64 has 24 times BLOCK rows


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_by_the_number_of_its_row(bad: float):
    values = rows()
    moments = Moments(values.shape[1])
    moments.update(values[:100])
    values[321, 5] = bad
    with pytest.raises(EvaluationError, match="image 321 "):
        moments.update(values[100:])


def test_no_covariance_comes_of_one_row():
    with pytest.raises(EvaluationError, match="at least 2 images"):
        Moments.of(rows()[:1]).covariance()


def test_rows_of_another_width_are_refused():
    moments = Moments.of(rows(d=12))
    with pytest.raises(EvaluationError, match="5 dimensions, those before 12"):
        moments.update(rows(d=5))
