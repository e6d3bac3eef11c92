"""The inception score equals its definition in long double, whatever the order."""

import itertools

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.content_keys import content_keys, keyed_order
from xmcgan.evaluation.inception_score import inception_score, split_scores


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
    order = keyed_order(content_keys(values))
    scores = [literal(values[order[i * 23 : (i + 1) * 23]]) for i in range(10)]
    mean, deviation = inception_score(values)
    assert mean == pytest.approx(np.mean(scores), rel=1e-12)
    assert deviation == pytest.approx(np.std(scores), rel=1e-9)


def test_splits_leave_no_image_out():
    values = logits(103)
    order = keyed_order(content_keys(values))
    bounds = [i * 103 // 10 for i in range(11)]
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


def test_order_and_rounding_do_not_change_the_score():
    rng = np.random.default_rng(0)
    values = logits(2000)
    expected = inception_score(values)
    assert inception_score(rng.permutation(values)) == pytest.approx(expected, rel=1e-12)
    noisy = values * (1 + 1e-6 * rng.standard_normal(values.shape))
    assert inception_score(noisy.astype(np.float32))[0] == pytest.approx(expected[0], rel=1e-5)


def test_weights_stand_for_repeated_images():
    values = logits(40)
    counts = np.random.default_rng(0).poisson(1.0, (3, 40))
    found = split_scores(values, content_keys(values), counts, num_splits=1)[0]
    expected = [literal(np.repeat(values, c, axis=0)) for c in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_split_without_any_drawn_image_still_has_a_score():
    values = logits(10)
    assert np.isfinite(split_scores(values, content_keys(values), np.eye(10))).all()


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(EvaluationError, match="10 splits; there are 9"):
        inception_score(logits(9))


def test_logits_that_are_not_finite_are_refused():
    values = logits()
    values[4, 0] = np.nan
    with pytest.raises(EvaluationError, match="logits of image 4 "):
        inception_score(values)
