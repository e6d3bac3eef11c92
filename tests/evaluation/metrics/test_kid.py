"""KID and CMMD equal literal loops over pairs, and keep their statistical promises."""

import itertools

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation import kernel_distance as module
from xmcgan.evaluation.content_keys import content_keys, draw
from xmcgan.evaluation.kernel_distance import (
    kernel_distance,
    rbf_distance,
    rbf_distances,
    subset_distances,
)


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
    chosen = [
        literal_kid(a[draw(content_keys(a), 20, 2 * s)], b[draw(content_keys(b), 20, 2 * s + 1)])
        for s in range(4)
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


def test_order_and_rounding_do_not_change_kid():
    rng = np.random.default_rng(0)
    a, b = pair(800, 900, 32)
    options = {"num_subsets": 30, "subset_size": 100}
    mean, deviation = kernel_distance(a, b, **options)
    shuffled = kernel_distance(rng.permutation(a), rng.permutation(b), **options)
    assert shuffled == pytest.approx((mean, deviation), rel=1e-10)
    noisy = (a * (1 + 1e-6 * rng.standard_normal(a.shape))).astype(np.float32)
    assert kernel_distance(noisy, b, **options)[0] == pytest.approx(mean, abs=1e-5)


def test_an_image_that_counts_twice_is_not_paired_with_itself():
    a, b = pair(12, 10)
    weights = np.random.default_rng(0).integers(0, 4, (1, 12)).astype(float)
    found = subset_distances(
        a, b, content_keys(a), content_keys(b), weights, np.ones((1, 10)), num_subsets=1
    )
    # Subsets of 10 of the 12 rows: repeat the same draw.
    rows = draw(content_keys(a), 10, 0)
    w = weights[0, rows]
    pairs = list(itertools.permutations(range(10), 2))
    within = sum(w[i] * w[j] * cubic(a[rows[i]], a[rows[j]]) for i, j in pairs)
    within /= sum(w[i] * w[j] for i, j in pairs)
    others = sum(cubic(b[i], b[j]) for i, j in pairs) / 90
    across = sum(w[i] * cubic(a[rows[i]], y) for i in range(10) for y in b) / (w.sum() * 10)
    assert found.item() == pytest.approx(within + others - 2 * across, rel=1e-10)


def literal_cmmd(a: np.ndarray, b: np.ndarray, sigma: float = 10, scale: float = 1000) -> float:
    """Return the mean over all pairs, an image with itself included."""

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        squares = [np.sum((p.astype(np.float64) - q) ** 2) for p in x for q in y]
        return float(np.mean(np.exp(-np.array(squares) / (2 * sigma**2))))

    return scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("sigma", [0.5, 10.0])
def test_rbf_distance_equals_the_double_loop(sigma: float, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)
    a, b = pair(40, 33)
    found = rbf_distance(a, b, sigma=sigma, scale=7.0)
    assert found == pytest.approx(literal_cmmd(a, b, sigma, 7.0), rel=1e-9)


def test_cmmd_has_width_ten_and_scale_a_thousand():
    a, b = pair()
    assert rbf_distance(a, b) == pytest.approx(literal_cmmd(a, b), rel=1e-9)


def test_rbf_distance_is_zero_for_equal_sets_and_never_negative():
    a, b = pair(shift=0.0)
    assert abs(rbf_distance(a, a[::-1])) < 1e-9
    assert rbf_distance(a, b) > 0


def test_rbf_distance_grows_with_the_shift():
    distances = [rbf_distance(*pair(shift=shift)) for shift in (0.2, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)


def test_weights_stand_for_repeated_rows():
    a, b = pair(20, 15)
    counts = np.random.default_rng(0).integers(0, 3, (4, 20))
    found = rbf_distances(a, b, counts, np.ones((4, 15)))
    expected = [rbf_distance(np.repeat(a, c, axis=0), b) for c in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("distance", [kernel_distance, rbf_distance])
def test_features_that_cannot_be_compared_are_refused(distance):
    a, b = pair()
    with pytest.raises(EvaluationError, match="6 dimensions and generated ones 5"):
        distance(a, b[:, :5])
    with pytest.raises(EvaluationError, match="at least"):
        distance(a, b[:0])
    b[7, 2] = np.nan
    with pytest.raises(EvaluationError, match=r"generated images of image 7 "):
        distance(a, b)
