"""The Frechet distance has its closed forms, and refuses what is no covariance."""

import time

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.frechet import covariance_factor, frechet_distance
from xmcgan.evaluation.moments import Moments


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
    of_a, of_b = Moments.of(a), Moments.of(b)
    return frechet_distance(of_a.mean, of_a.covariance(), of_b.mean, of_b.covariance())


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


@pytest.mark.parametrize("side", ["mu_a", "sigma_a", "mu_b", "sigma_b"])
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


def test_statistics_of_two_networks_are_refused():
    with pytest.raises(EvaluationError, match="3 and 4 dimensions"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(4), np.eye(4))


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
