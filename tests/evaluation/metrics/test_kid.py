"""KID equals literal loops over pairs, and keeps its statistical promises."""

import itertools

import numpy as np
import pytest

from xmcgan.evaluation.metrics.kid import subset_distances


def kernel_distance(a: np.ndarray, b: np.ndarray, **options) -> tuple[float, float]:
    """Return mean and standard deviation over subsets of images that all count once."""
    distances = subset_distances(a, b, np.ones((1, len(a))), np.ones((1, len(b))), **options)
    return distances.mean(), distances.std()


def pair(n: int = 40, m: int = 40, d: int = 6, shift: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Return features of two sets."""
    rng = np.random.default_rng(n + m + d)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((m, d)) + shift
    return a.astype(np.float32), b.astype(np.float32)


def cubic(x: np.ndarray, y: np.ndarray) -> float:
    return (sum(float(p) * float(q) for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3


def literal_kid(a: np.ndarray, b: np.ndarray) -> float:
    """Return the unbiased estimate by two loops (Binkowski et al. 2018, equation 4)."""
    n, m = len(a), len(b)
    within_a = sum(cubic(a[i], a[j]) for i, j in itertools.permutations(range(n), 2))
    within_b = sum(cubic(b[i], b[j]) for i, j in itertools.permutations(range(m), 2))
    across = sum(cubic(x, y) for x in a for y in b)
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


def test_kid_of_whole_sets_equals_the_double_loop():
    a, b = pair()
    mean, deviation = kernel_distance(a, b, num_subsets=3)
    assert mean == pytest.approx(literal_kid(a, b), rel=1e-12)
    assert deviation < 1e-12


def test_kid_of_subsets_equals_the_double_loop_over_each():
    a, b = pair(60, 50)
    rng = np.random.default_rng(0)
    chosen = [
        literal_kid(a[rng.choice(60, 20, replace=False)], b[rng.choice(50, 20, replace=False)])
        for _ in range(4)
    ]
    mean, deviation = kernel_distance(a, b, num_subsets=4, subset_size=20)
    assert mean == pytest.approx(np.mean(chosen), rel=1e-12)
    assert deviation == pytest.approx(np.std(chosen), rel=1e-9)
    assert deviation > 0


def test_subsets_are_as_large_as_the_smaller_side():
    a, b = pair(30, 25)
    assert kernel_distance(a, b, num_subsets=2) == kernel_distance(
        a, b, num_subsets=2, subset_size=25
    )


def test_subsets_average_to_the_whole():
    a, b = pair(200, 200, shift=0.5)
    whole, _ = kernel_distance(a, b, num_subsets=1)
    mean, deviation = kernel_distance(a, b, num_subsets=2000, subset_size=20)
    assert abs(mean - whole) < 5 * deviation / np.sqrt(2000)


def test_kid_of_one_distribution_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(*rng.standard_normal((2, 30, 4)), num_subsets=1)[0] for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(400)
    assert min(values) < 0


def test_kid_follows_the_seed_and_hardly_depends_on_it():
    a, b = pair(500, 500, shift=1.0)
    options = {"num_subsets": 20, "subset_size": 100}
    first, deviation = kernel_distance(a, b, **options)
    assert kernel_distance(a, b, **options) == (first, deviation)
    second, _ = kernel_distance(a, b, **options, seed=1)
    assert second != first
    assert abs(second - first) < 5 * deviation / np.sqrt(20) * np.sqrt(2)


def test_rounding_does_not_change_kid():
    rng = np.random.default_rng(0)
    a, b = pair(800, 900, 32)
    options = {"num_subsets": 30, "subset_size": 100}
    noisy = (a * (1 + 1e-6 * rng.standard_normal(a.shape))).astype(np.float32)
    expected = kernel_distance(a, b, **options)
    assert kernel_distance(noisy, b, **options) == pytest.approx(expected, abs=1e-5)


def test_an_image_that_counts_twice_is_not_paired_with_itself():
    a, b = pair(12, 10)
    weights = np.random.default_rng(0).integers(0, 4, (1, 12)).astype(float)
    found = subset_distances(a, b, weights, np.ones((1, 10)), num_subsets=1)
    # Subsets of 10 of the 12 rows: repeat the same draw.
    rows = np.random.default_rng(0).choice(12, 10, replace=False)
    w = weights[0, rows]
    pairs = list(itertools.permutations(range(10), 2))
    within = sum(w[i] * w[j] * cubic(a[rows[i]], a[rows[j]]) for i, j in pairs)
    within /= sum(w[i] * w[j] for i, j in pairs)
    others = sum(cubic(b[i], b[j]) for i, j in pairs) / 90
    across = sum(w[i] * cubic(a[rows[i]], y) for i in range(10) for y in b) / (w.sum() * 10)
    assert found.item() == pytest.approx(within + others - 2 * across, rel=1e-10)
