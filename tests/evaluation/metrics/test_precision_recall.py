"""Precision, recall, density and coverage equal literal loops over all pairs."""

import tracemalloc

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.metrics import precision_recall as module
from xmcgan.evaluation.metrics.precision_recall import neighbor_scores


def pair(n: int = 60, m: int = 50, d: int = 4, shift: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + m + d)
    a, b = rng.standard_normal((n, d)), 1.2 * rng.standard_normal((m, d)) + shift
    return a.astype(np.float32), b.astype(np.float32)


def scores(real: np.ndarray, fake: np.ndarray, **neighbors: int) -> list[float]:
    """Return precision, recall, density and coverage of images that all count once."""
    ones = np.ones((1, len(real))), np.ones((1, len(fake)))
    return [value.item() for value in neighbor_scores(real, fake, *ones, **neighbors).values()]


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, ...]:
    return tuple(scores(real, fake, precision_k=k, density_k=k)[:2])


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, ...]:
    return tuple(scores(real, fake, precision_k=k, density_k=k)[2:])


def between(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.sum((x.astype(np.float64) - y.astype(np.float64)) ** 2)))


def radius(values: np.ndarray, i: int, k: int) -> float:
    """Return the distance to the k-th nearest of the others."""
    return sorted(between(values[i], values[j]) for j in range(len(values)) if j != i)[k - 1]


def literal_precision(real: np.ndarray, fake: np.ndarray, k: int) -> float:
    radii = [radius(real, i, k) for i in range(len(real))]
    hits = [any(between(f, r) <= s for r, s in zip(real, radii, strict=True)) for f in fake]
    return float(np.mean(hits))


def literal_density_coverage(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    radii = [radius(real, i, k) for i in range(len(real))]
    inside = np.array(
        [[between(r, f) <= s for f in fake] for r, s in zip(real, radii, strict=True)]
    )
    return float(inside.sum() / (k * len(fake))), float(inside.any(axis=1).mean())


@pytest.mark.parametrize("tile", [(7, 5), (64, 3), (1024, 4096)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_scores_equal_loops_over_pairs(tile: tuple[int, int], k: int, monkeypatch):
    monkeypatch.setattr(module, "ROWS", tile[0])
    monkeypatch.setattr(module, "COLUMNS", tile[1])
    real, fake = pair()
    expected = literal_precision(real, fake, k), literal_precision(fake, real, k)
    assert precision_recall(real, fake, k) == pytest.approx(expected, abs=1e-12)
    expected = literal_density_coverage(real, fake, k)
    assert density_coverage(real, fake, k) == pytest.approx(expected, rel=1e-6)
    assert 0 < precision_recall(real, fake, k)[0] < 1


def test_three_and_five_neighbors_are_the_defaults():
    real, fake = pair()
    expected = [*precision_recall(real, fake, k=3), *density_coverage(real, fake, k=5)]
    assert scores(real, fake) == expected


def test_a_ball_reaches_its_kth_neighbor_and_includes_its_surface():
    real = np.array([[0.0], [1.0], [3.0], [7.0]], np.float32)
    fake = np.array([[-3.0], [-3.1], [13.0], [13.1]], np.float32)
    # With k = 2 the radii are 3, 2, 3 and 6: -3 and 13 lie on the surface of balls.
    assert precision_recall(real, fake, k=2)[0] == 0.5
    assert precision_recall(fake, real, k=2)[1] == 0.5
    # Ball counts of the four are 1, 0, 1 and 0; the balls around 0 and 7 hold a generated image.
    assert density_coverage(real, fake, k=2) == (2 / (2 * 4), 0.5)


def test_equal_sets_have_full_precision_and_recall_and_far_sets_none():
    real, _ = pair()
    assert precision_recall(real, real[::-1]) == (1, 1)
    assert density_coverage(real, real)[1] == 1
    assert precision_recall(real, real + 100) == (0, 0)
    assert density_coverage(real, real + 100) == (0, 0)


def test_copies_of_images_are_found_in_their_balls_of_radius_zero():
    images = np.random.default_rng(0).uniform(0, 1, (60, 300)).astype(np.float32)
    real = np.repeat(images, 6, axis=0)
    assert precision_recall(real, images, k=5)[0] == 1
    assert density_coverage(real, images, k=5) == (6 / 5, 1)
    rounded = np.nextafter(images, np.float32(2))
    assert density_coverage(real, rounded, k=5) == (6 / 5, 1)
    assert density_coverage(real, images + np.float32(0.01), k=5) == (0, 0)


def test_distances_do_not_suffer_from_a_common_offset():
    real, fake = (np.round(side * 64) / 64 for side in pair())
    far = np.float32(65536)
    assert precision_recall(real + far, fake + far) == precision_recall(real, fake)
    assert density_coverage(real + far, fake + far) == density_coverage(real, fake)


def test_the_order_of_images_changes_nothing():
    rng = np.random.default_rng(0)
    real, fake = pair()
    shuffled = rng.permutation(real), rng.permutation(fake)
    assert precision_recall(*shuffled) == precision_recall(real, fake)
    assert density_coverage(*shuffled) == pytest.approx(density_coverage(real, fake), rel=1e-12)


def test_equal_distributions_have_the_expected_density_and_coverage():
    rng = np.random.default_rng(0)
    n, k = 500, 5
    found = [density_coverage(*rng.standard_normal((2, n, 8)), k=k) for _ in range(10)]
    density, coverage = np.mean(found, axis=0)
    errors = np.std(found, axis=0) / np.sqrt(len(found))
    # Naeem et al. 2020, lemmas 1 and 2; for many images the product tends to 1 / 2^k.
    uncovered = np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert uncovered == pytest.approx(1 / 2**k, rel=0.02)
    assert abs(density - 1) < 4 * errors[0]
    assert abs(coverage - (1 - uncovered)) < 4 * errors[1]


def test_fewer_modes_lower_recall_and_coverage_but_not_precision():
    real, _ = pair(400, 400)
    half = real[real[:, 0] > 0]
    precision, recall = precision_recall(real, half)
    assert precision == 1
    assert recall < 0.9
    assert density_coverage(real, half)[1] < 0.9


def test_an_image_of_weight_zero_is_absent_and_so_is_its_ball():
    real, fake = pair()
    weights = np.ones((2, len(real)))
    weights[1, 10:] = 0
    found = neighbor_scores(real, fake, weights, np.ones((2, len(fake))))
    radii = [radius(real, i, 3) for i in range(10)]
    hits = [any(between(f, real[i]) <= radii[i] for i in range(10)) for f in fake]
    assert found["precision"][1] == pytest.approx(np.mean(hits), abs=1e-12)
    covered = [any(between(real[i], f) <= radius(real, i, 5) for f in fake) for i in range(10)]
    assert found["coverage"][1] == pytest.approx(np.mean(covered), abs=1e-12)
    assert found["precision"][0] == precision_recall(real, fake)[0]


def test_only_the_proportions_of_weights_matter():
    real, fake = pair()
    twice = np.tile([[1.0], [2.0]], len(real)), np.tile([[1.0], [3.0]], len(fake))
    for once, more in neighbor_scores(real, fake, *twice).values():
        assert more == pytest.approx(once, rel=1e-6)


def test_the_matrix_of_all_distances_is_never_in_memory(monkeypatch):
    monkeypatch.setattr(module, "ROWS", 128)
    monkeypatch.setattr(module, "COLUMNS", 256)
    real = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    tracemalloc.start()
    precision_recall(real, real)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 128 * 256 * 8 < 2000 * 2000 * 8 / 8


def test_no_more_images_than_neighbors_are_refused():
    real, fake = pair(10, 3)
    with pytest.raises(EvaluationError, match="4"):
        precision_recall(real, fake)
