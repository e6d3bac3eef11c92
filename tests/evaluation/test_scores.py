"""Scores carry all metrics, their intervals, and what a reader should know."""

import math

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.inception_score import inception_score
from xmcgan.evaluation.kernel_distance import kernel_distance, rbf_distance
from xmcgan.evaluation.moments import Moments
from xmcgan.evaluation.neighbours import neighbour_scores
from xmcgan.evaluation.scores import Score, cmmd_score, frechet_score, image_scores
from xmcgan.evaluation.statistics import Statistics

ALL = ["fid", "kid", "is", "precision", "recall", "density", "coverage"]


def features(n: int = 120, d: int = 10, seed: int = 0, shift: float = 0.0) -> Features:
    """Return features and logits of random images."""
    values = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32) + shift
    return Features(values, 2 * values[:, :5])


def statistics(side: Features) -> Statistics:
    moments = Moments.of(side.values)
    return Statistics(moments.mean, moments.covariance(), moments.n, {})


def scores_of(real: Features, fake: Features, **options) -> dict[str, Score]:
    chosen = {"label": "FID", "resamples": 0, "seed": 0, **options}
    return {score.name: score for score in image_scores(real, fake, **chosen)}


def test_every_metric_is_there_with_its_value():
    real, fake = features(), features(seed=1, shift=0.4)
    found = scores_of(real, fake)
    assert list(found) == ALL
    values = [score.value for score in found.values()]
    ones = np.ones((1, len(real))), np.ones((1, len(fake)))
    expected = [
        frechet_score(real, fake, label="FID", resamples=0, seed=0).value,
        kernel_distance(real.values, fake.values)[0],
        inception_score(fake.logits)[0],
        *(value.item() for value in neighbour_scores(real.values, fake.values, *ones)),
    ]
    assert values == pytest.approx(expected, rel=1e-12)
    assert {name for name, score in found.items() if score.better == "lower"} == {"fid", "kid"}


def test_the_label_names_the_frechet_distance():
    assert "fd" in scores_of(features(), features(seed=1), label="FD")


def test_a_network_without_classes_has_no_inception_score():
    real, fake = Features(features().values, None), Features(features(seed=1).values, None)
    assert list(scores_of(real, fake)) == [name for name in ALL if name != "is"]


def test_no_resamples_give_no_intervals():
    assert all(
        score.low is score.high is None for score in scores_of(features(), features(90)).values()
    )


def test_intervals_hold_the_value_and_stay_in_range():
    found = scores_of(features(), features(seed=1, shift=0.3), resamples=10)
    for name, score in found.items():
        assert score.low <= score.value <= score.high, name
        assert score.low < score.high, name
    fractions = [found[name] for name in ("precision", "recall", "coverage")]
    assert all(score.low >= 0 and score.high <= 1 for score in fractions)
    assert found["fid"].low >= 0
    assert found["is"].low >= 1


def test_sides_are_resampled_independently_even_where_they_are_equal():
    score = frechet_score(features(), features(), label="FID", resamples=10, seed=0)
    assert score.value == pytest.approx(0, abs=1e-9)
    assert score.high > 0.01


def test_resampling_does_not_change_the_value():
    real, fake = features(), features(seed=1)
    without, with_them = scores_of(real, fake), scores_of(real, fake, resamples=7)
    for name, score in without.items():
        assert with_them[name].value == pytest.approx(score.value, rel=1e-12)


def test_order_and_rounding_change_neither_scores_nor_intervals():
    rng = np.random.default_rng(0)
    real, fake = features(200, 16), features(200, 16, seed=1, shift=0.2)
    order = rng.permutation(200)
    noise = 1 + 1e-6 * rng.standard_normal(fake.values.shape)
    shuffled = Features(real.values[rng.permutation(200)], None)
    moved = Features((fake.values * noise).astype(np.float32)[order], fake.logits[order])
    before = scores_of(real, fake, resamples=6)
    after = scores_of(shuffled, moved, resamples=6)
    for name, score in before.items():
        found = after[name].value, after[name].low, after[name].high
        assert found == pytest.approx((score.value, score.low, score.high), rel=1e-5), name


def test_statistics_on_one_side_are_held_fixed():
    real, fake = features(), features(seed=1, shift=0.3)
    options = {"label": "FID", "resamples": 10, "seed": 0}
    both = frechet_score(real, fake, **options)
    one = frechet_score(statistics(real), fake, **options)
    other = frechet_score(real, statistics(fake), **options)
    neither = frechet_score(statistics(real), statistics(fake), **options)
    values = [score.value for score in (one, other, neither)]
    assert values == pytest.approx([both.value] * 3, rel=1e-9)
    assert one.high - one.low < both.high - both.low
    assert "held fixed" in one.note
    assert "held fixed" in other.note
    assert "held fixed" not in both.note
    assert neither.low is None


def test_fewer_images_than_dimensions_are_noted_by_side():
    score = frechet_score(features(30, 40), features(60, 40), label="FID", resamples=0, seed=0)
    assert "30 real images are too few for 40 dimensions" in score.note
    assert "generated" not in score.note
    equal = frechet_score(features(60, 40), features(40, 40), label="FID", resamples=0, seed=0)
    assert "40 generated images" in equal.note
    enough = frechet_score(features(41, 40), features(41, 40), label="FID", resamples=0, seed=0)
    assert enough.note == ""


def test_small_subsets_and_unequal_numbers_are_noted():
    found = scores_of(features(120), features(90, seed=1))
    assert "lowered from 1000 images to the 90" in found["kid"].note
    assert "120 real and 90 generated" in found["recall"].note
    assert "over 10 splits" in found["is"].note


def test_statistics_without_a_number_of_images_are_scored():
    known = statistics(features())
    foreign = Statistics(known.mu, known.sigma, None, {})
    score = frechet_score(foreign, features(seed=1), label="FID", resamples=0, seed=0)
    assert score.note == ""


def test_few_images_have_no_interval():
    found = scores_of(features(12), features(12, seed=1), resamples=10)
    assert all(score.low is None for score in found.values())


@pytest.mark.parametrize("resamples", [-1, 1, 4])
def test_resamples_that_tell_no_spread_are_refused(resamples: int):
    with pytest.raises(EvaluationError, match="at least 5 resamples"):
        scores_of(features(), features(), resamples=resamples)
    with pytest.raises(EvaluationError, match="at least 5 resamples"):
        frechet_score(features(), features(), label="FID", resamples=resamples, seed=0)


def test_features_that_are_not_finite_give_no_score():
    real, fake = features(), features(seed=1)
    fake.values[17, 3] = math.nan
    with pytest.raises(EvaluationError, match="generated images of image 17 "):
        scores_of(real, fake)
    fake = features(seed=1)
    fake.logits[5, 0] = math.inf
    with pytest.raises(EvaluationError, match="logits of the generated images of image 5 "):
        scores_of(real, fake)


def test_features_of_two_networks_give_no_score():
    with pytest.raises(EvaluationError, match="10 dimensions and generated ones 8"):
        scores_of(features(d=10), features(d=8))
    with pytest.raises(EvaluationError, match="10 and 8 dimensions"):
        frechet_score(features(d=10), features(d=8), label="FID", resamples=0, seed=0)


def test_cmmd_normalises_embeddings():
    real, fake = features().values, features(seed=1, shift=0.5).values
    units = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (real, fake)]
    score = cmmd_score(3 * real, fake * np.linspace(1, 9, len(fake))[:, None], resamples=8, seed=0)
    assert score.value == pytest.approx(rbf_distance(*units), rel=1e-5)
    assert score.low < score.value < score.high
    assert (score.name, score.better) == ("cmmd", "lower")
    assert cmmd_score(real, fake, resamples=0, seed=0).low is None


def test_an_embedding_of_no_length_is_refused():
    real, fake = features().values, features(seed=1).values
    fake[3] = 0
    with pytest.raises(EvaluationError, match="embedding 3 has length 0"):
        cmmd_score(real, fake, resamples=0, seed=0)
