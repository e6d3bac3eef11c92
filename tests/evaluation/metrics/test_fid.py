"""The Frechet distance has its closed forms, refuses what is no covariance, and has an interval."""

import time
import tracemalloc

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.metrics import fid
from xmcgan.evaluation.metrics.fid import (
    covariance_factor,
    frechet_distance,
    frechet_score,
    mean_and_covariance,
)


def random_covariance(d: int, rank: int | None = None, seed: int = 0) -> np.ndarray:
    """Return a covariance of some rank."""
    factor = np.random.default_rng(seed).standard_normal((d, rank or 2 * d))
    return factor @ factor.T / factor.shape[1]


def square_root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric root."""
    eigenvalues, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0))) @ vectors.T


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of two sets of rows."""
    return frechet_distance(*mean_and_covariance(a), *mean_and_covariance(b))


@pytest.mark.parametrize("d", [1, 3, 40])
def test_equal_covariances_leave_the_squared_distance_of_the_means(d: int):
    sigma = random_covariance(d)
    mu = np.random.default_rng(1).standard_normal(d)
    shift = np.linspace(0.1, 1, d)
    found = frechet_distance(mu, sigma, mu + shift, sigma)
    assert found == pytest.approx(np.sum(shift**2), rel=1e-10)


def test_isotropic_gaussians_have_a_closed_form():
    d, s, t = 25, 0.7, 1.9
    found = frechet_distance(np.zeros(d), s**2 * np.eye(d), np.ones(d), t**2 * np.eye(d))
    assert found == pytest.approx(d + d * (s - t) ** 2, rel=1e-12)


def test_diagonal_covariances_are_compared_axis_by_axis():
    a, b = np.linspace(0.1, 2, 9), np.linspace(3, 0.2, 9)
    found = frechet_distance(np.zeros(9), np.diag(a), np.zeros(9), np.diag(b))
    assert found == pytest.approx(np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rel=1e-12)


def test_covariances_that_do_not_commute_agree_with_the_matrix_square_root():
    a, b = random_covariance(30, seed=1), random_covariance(30, seed=2)
    root = square_root(a)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(square_root(root @ b @ root))
    found = frechet_distance(np.zeros(30), a, np.zeros(30), b)
    assert found == pytest.approx(expected, rel=1e-10)
    # tr sqrt(A B) is not tr sqrt(A) sqrt(B); the test must tell them apart.
    assert abs(np.trace(root @ square_root(b)) - np.trace(square_root(root @ b @ root))) > 0.1


def test_the_distance_is_symmetric():
    a, b = random_covariance(20, seed=1), random_covariance(20, seed=2)
    mu = np.arange(20.0)
    assert frechet_distance(mu, a, -mu, b) == pytest.approx(frechet_distance(-mu, b, mu, a), 1e-12)


def test_a_set_has_no_distance_from_itself():
    values = np.random.default_rng(0).standard_normal((10_000, 64)) @ random_covariance(64)
    assert distance(values, values) <= 1e-9


def test_the_distance_grows_as_features_are_scaled():
    values = np.random.default_rng(0).standard_normal((300, 10))
    distances = [distance(values, values * scale) for scale in (1.0, 1.01, 1.1, 1.5, 3.0)]
    assert distances == sorted(distances)
    assert distances[0] < 1e-10 < distances[1]


@pytest.mark.parametrize("n", [2, 5, 31, 32, 33, 200])
@pytest.mark.parametrize("d", [1, 2, 32])
def test_any_numbers_of_images_and_dimensions_give_a_number(n: int, d: int):
    rng = np.random.default_rng(n * d)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((2 * n, d)) + 1
    assert np.isfinite(distance(a, b))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6)
    assert distance(a, a) <= 1e-9


def test_covariances_of_lower_rank_agree_with_the_singular_values():
    a = np.random.default_rng(0).standard_normal((50, 6))
    b = np.random.default_rng(1).standard_normal((50, 9))
    nuclear = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    expected = np.trace(a @ a.T) + np.trace(b @ b.T) - 2 * nuclear
    found = frechet_distance(np.zeros(50), a @ a.T, np.zeros(50), b @ b.T)
    assert found == pytest.approx(expected, rel=1e-7)
    assert covariance_factor(a @ a.T).shape == (50, 6)


def test_constant_features_have_only_the_distance_of_their_means():
    zero = np.zeros((4, 4))
    assert frechet_distance(np.zeros(4), zero, np.ones(4), zero) == 4
    assert frechet_distance(np.zeros(4), zero, np.zeros(4), np.eye(4)) == 4
    assert frechet_distance(np.zeros(4), np.eye(4), np.zeros(4), zero) == 4


def test_a_factor_at_hand_saves_work_and_changes_nothing():
    a, b, mu = random_covariance(8, seed=1), random_covariance(8, seed=2), np.zeros(8)
    factor = covariance_factor(a)
    assert frechet_distance(mu, a, mu, b, factor_a=factor) == frechet_distance(mu, a, mu, b)


@pytest.mark.parametrize("side", ["sigma_a", "sigma_b"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(side: str, bad: float):
    statistics = {"mu_a": np.zeros(3), "sigma_a": np.eye(3), "mu_b": np.zeros(3)}
    statistics["sigma_b"] = np.eye(3)
    statistics[side].flat[0] = bad
    with pytest.raises(EvaluationError, match="NaN"):
        frechet_distance(**statistics)


def test_an_indefinite_matrix_is_refused_on_either_side():
    indefinite, mu = np.diag([1.0, 1.0, -1e-5]), np.zeros(3)
    with pytest.raises(EvaluationError, match="eigenvalue"):
        frechet_distance(mu, indefinite, mu, np.eye(3))
    with pytest.raises(EvaluationError, match="eigenvalue"):
        frechet_distance(mu, np.eye(3), mu, indefinite)


def test_an_eigenvalue_below_zero_by_rounding_is_taken_as_zero():
    rounded = np.diag([1.0, 1.0, -1e-9])
    found = frechet_distance(np.zeros(3), rounded, np.zeros(3), np.eye(3))
    assert found == pytest.approx(1, abs=1e-8)


def test_a_matrix_that_is_not_symmetric_is_refused():
    skewed, mu = np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2)
    with pytest.raises(EvaluationError, match="not symmetric"):
        frechet_distance(mu, skewed, mu, np.eye(2))
    with pytest.raises(EvaluationError, match="not symmetric"):
        frechet_distance(mu, np.eye(2), mu, skewed)


@pytest.mark.slow
def test_2048_dimensions_take_at_most_three_seconds_of_two_cores():
    values = np.random.default_rng(0).standard_normal((6000, 2048))
    a, b = np.cov(values[:3000], rowvar=False), np.cov(values[3000:], rowvar=False)
    mu, taken = np.zeros(2048), []
    for _ in range(3):
        start = time.process_time()
        frechet_distance(mu, a, mu, b)
        taken.append(time.process_time() - start)
    assert min(taken) <= 2 * 3


def rows(n: int = 500, d: int = 12, mean: float = 0.4) -> np.ndarray:
    """Return features of which some vary a lot and some hardly."""
    rng = np.random.default_rng(n + d)
    spread = np.geomspace(1, 1e-3, d)
    return (rng.standard_normal((n, d)) * spread + mean).astype(np.float32)


def assert_same(found: tuple[np.ndarray, np.ndarray], exact: np.ndarray) -> None:
    """Compare with NumPy on float64 rows."""
    np.testing.assert_allclose(found[0], exact.mean(axis=0), rtol=1e-12)
    covariance = np.cov(exact, rowvar=False)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert np.abs((found[1] - covariance) / scale).max() < 1e-11


@pytest.mark.parametrize("block", [64, 4096])
def test_moments_are_those_of_numpy_in_float64_in_any_blocks(block: int, monkeypatch):
    monkeypatch.setattr(fid, "BLOCK", block)
    found = mean_and_covariance(rows())
    assert_same(found, rows().astype(np.float64))
    assert found[0].dtype == found[1].dtype == np.float64


def test_a_large_mean_takes_no_digits_from_a_small_spread():
    values = rows(mean=1000.0)
    expected = np.cov(values.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(
        np.diag(mean_and_covariance(values)[1]), np.diag(expected), rtol=1e-10
    )


def test_counts_stand_for_repeated_rows():
    counts = np.random.default_rng(0).poisson(1.0, 500)
    repeated = np.repeat(rows(), counts, axis=0).astype(np.float64)
    assert_same(mean_and_covariance(rows(), counts), repeated)


def test_memory_does_not_grow_with_the_number_of_rows():
    values = np.zeros((100_000, 16), np.float32)
    tracemalloc.start()
    mean_and_covariance(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    weights = values.shape[0] * 8
    assert peak < weights + 4 * fid.BLOCK * 16 * 8  # all rows in float64 have 24 times BLOCK rows


def test_no_covariance_comes_of_one_row():
    with pytest.raises(EvaluationError, match="1"):
        mean_and_covariance(rows()[:1])


def features(n: int = 120, d: int = 10, seed: int = 0, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Return features of random images."""
    values = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + shift
    return {"values": values}


def statistics(side: dict[str, np.ndarray], *, n: int | None = None) -> dict:
    """Return a side of which only mean and covariance are at hand."""
    mu, sigma = mean_and_covariance(side["values"])
    return {"mu": mu, "sigma": sigma, "n": n}


def test_sides_are_resampled_independently_even_if_they_are_equal():
    score = frechet_score(features(), features(), resamples=10, seed=0)
    assert score.value == pytest.approx(0, abs=1e-9)
    assert score.low == 0
    assert score.high > 0.01


def test_statistics_on_one_side_are_held_fixed():
    real, fake = features(), features(seed=1, shift=0.3)
    options = {"resamples": 10, "seed": 0}
    both = frechet_score(real, fake, **options)
    one = frechet_score(statistics(real), fake, **options)
    other = frechet_score(real, statistics(fake), **options)
    neither = frechet_score(statistics(real), statistics(fake), **options)
    values = [score.value for score in (one, other, neither)]
    assert values == pytest.approx([both.value] * 3, rel=1e-9)
    assert one.high - one.low < both.high - both.low
    assert [bool(score.note) for score in (both, one, other)] == [False, True, True]
    assert neither.low is None


def test_fewer_images_than_dimensions_are_noted_by_side():
    def note(real: int, fake: int) -> str:
        sides = features(real, 40), features(fake, 40)
        return frechet_score(*sides, resamples=0, seed=0).note

    assert "30 real images" in note(30, 60)
    assert "generated" not in note(30, 60)
    assert "40 generated images" in note(60, 40)
    assert note(41, 41) == ""
    known = statistics(features(30, 40), n=30)
    assert "30 real" in frechet_score(known, features(60, 40), resamples=0, seed=0).note
    unknown = statistics(features(30, 40))
    assert frechet_score(unknown, features(60, 40), resamples=0, seed=0).note == ""


def test_intervals_hold_the_expected_frechet_distance():
    rng = np.random.default_rng(0)

    def sample() -> tuple[dict, dict]:
        real, fake = rng.standard_normal((2, 200, 8)).astype(np.float32)
        return {"values": real}, {"values": 1.1 * fake + 0.3}

    scores = [frechet_score(*sample(), resamples=10, seed=0) for _ in range(100)]
    expected = np.mean([score.value for score in scores])
    low, high = np.array([(score.low, score.high) for score in scores]).T
    # Nominally 95; a percentile interval, displaced by the copies in resamples, holds it in 49.
    assert np.mean((low <= expected) & (expected <= high)) >= 0.87
    assert np.mean(high - low) < 2 * 2.26 * 1.5 * np.std([score.value for score in scores])
