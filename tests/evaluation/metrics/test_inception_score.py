"""The inception score equals its definition in long double."""

import itertools

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.metrics.inception_score import split_scores


def inception_score(values: np.ndarray, **options) -> tuple[float, float]:
    """Return mean and standard deviation over splits of images that all count once."""
    splits = split_scores(values, np.ones((1, len(values))), **options)
    return splits.mean(), splits.std()


def logits(n: int = 230, k: int = 17, spread: float = 3.0) -> np.ndarray:
    return (spread * np.random.default_rng(n).standard_normal((n, k))).astype(np.float32)


def literal(values: np.ndarray) -> float:
    """Return exp of the mean KL divergence, image by image and class by class."""
    exact = values.astype(np.longdouble)
    p = np.exp(exact - exact.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    marginal = p.mean(axis=0)
    total = np.longdouble(0)
    for row in p:
        total += sum(q * np.log(q / r) for q, r in zip(row, marginal, strict=True) if q > 0)
    return float(np.exp(total / len(p)))


def test_one_split_equals_the_definition():
    values = logits()
    assert inception_score(values, num_splits=1) == pytest.approx((literal(values), 0), rel=1e-12)


def test_ten_splits_equal_the_definition_in_each():
    values = logits()
    order = np.random.default_rng(0).permutation(230)
    scores = [literal(values[order[i * 23 : (i + 1) * 23]]) for i in range(10)]
    mean, deviation = inception_score(values)
    assert mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert deviation == pytest.approx(np.std(scores), rel=1e-9)


def test_splits_leave_no_image_out():
    values = logits(103)
    order = np.random.default_rng(0).permutation(103)
    bounds = [0, *np.cumsum([11] * 3 + [10] * 7).tolist()]
    scores = [literal(values[order[a:b]]) for a, b in itertools.pairwise(bounds)]
    assert inception_score(values)[0] == pytest.approx(np.mean(scores), rel=1e-12)


def test_an_undecided_network_scores_one():
    assert inception_score(np.zeros((50, 9), np.float32)) == pytest.approx((1, 0), abs=1e-12)


def test_a_certain_network_scores_the_number_of_classes():
    certain = np.tile(1000 * np.eye(8, dtype=np.float32), (5, 1))
    assert inception_score(certain, num_splits=1)[0] == pytest.approx(8, rel=1e-12)


def test_logits_far_from_zero_lose_no_digits():
    values = np.round(logits() * 64) / 64
    far = values + np.float32(65536)
    assert inception_score(far)[0] == pytest.approx(inception_score(values)[0], rel=1e-12)


def test_rounding_does_not_change_the_score():
    values = logits(2000)
    noise = 1 + 1e-6 * np.random.default_rng(0).standard_normal(values.shape)
    found = inception_score((values * noise).astype(np.float32))
    assert found == pytest.approx(inception_score(values), rel=1e-5)


def test_splits_follow_the_seed():
    values = logits()
    assert inception_score(values, seed=1)[0] != inception_score(values)[0]


def test_weights_stand_for_repeated_images():
    values = logits(40)
    counts = np.random.default_rng(0).poisson(1.0, (3, 40))
    found = split_scores(values, counts, num_splits=1)[0]
    expected = [literal(np.repeat(values, c, axis=0)) for c in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_split_without_any_drawn_image_still_has_a_score():
    values = logits(10)
    assert np.isfinite(split_scores(values, np.eye(10))).all()


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(EvaluationError, match="9"):
        inception_score(logits(9))
