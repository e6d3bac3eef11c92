"""Retrieval: closed forms, chance, ties, order, and too few images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.metrics.retrieval import Retrieval, retrieval
from xmcgan.utils.statistics import Score

N = 300


NO_TWINS = np.full(2000, -1)


def rates(hits) -> tuple[float, float]:
    return float(hits[1].mean()), float(hits[10].mean())


def scores_of(real, fake, targets, twins, resamples=0) -> dict[str, Score]:
    context: Any = SimpleNamespace(
        features=lambda _: SimpleNamespace(recipe={}),
        num_real=len(real),
        targets=targets,
        find_twins=lambda: twins,
        resamples=resamples,
        seed=0,
    )
    return Retrieval(context, "").compute({"values": real}, {"values": fake})


def features(n: int = N, d: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_copies_of_the_real_images_are_found_whatever_their_length():
    real = features()
    assert rates(retrieval(real, 3 * real, 0, np.arange(N))) == (1, 1)


def test_the_rank_is_the_number_of_nearer_images():
    # Real image i lies at angle i, so that of 100 images k are nearer to angle 0 than image k is.
    angles = np.arange(100) * 0.01
    real = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fake = np.tile([1.0, 0.0], (100, 1))
    hits = retrieval(real, fake, 3, np.arange(100))  # 99 others are all the others
    assert hits[1].tolist() == [i < 1 for i in range(100)]
    assert hits[10].tolist() == [i < 10 for i in range(100)]


def test_unrelated_features_are_at_chance():
    real, targets = features(), np.arange(6000) % N
    at_1, at_10 = rates(retrieval(real, features(6000, seed=1), 0, targets))
    assert at_1 == pytest.approx(0.01, abs=0.005)
    assert at_10 == pytest.approx(0.1, abs=0.015)


def test_ties_count_against_the_generated_image():
    same = np.ones((N, 4))
    assert rates(retrieval(same, same, 0, np.arange(N))) == (0, 0)
    # Equal but for the rounding of float32.
    nearly = same + 1e-8 * features(d=4)
    assert rates(retrieval(nearly, nearly, 0, np.arange(N))) == (0, 0)


def test_order_of_generated_images_does_not_matter_and_the_seed_does():
    real, fake, targets = features(), features() + 3 * features(seed=1), np.arange(N)
    order = np.random.default_rng(0).permutation(N)
    hits = retrieval(real, fake, 0, targets)
    moved = retrieval(real, fake[order], 0, targets[order])
    for k in hits:
        assert 0 < hits[k].mean() < 1
        np.testing.assert_array_equal(moved[k], hits[k][order])
    assert any((retrieval(real, fake, 1, targets)[k] != hits[k]).any() for k in hits)


def test_several_captions_of_one_image_share_its_target():
    real = features()
    targets = np.repeat(np.arange(N), 2)
    assert rates(retrieval(real, real[targets], 0, targets)) == (1, 1)
    assert rates(retrieval(real, real[targets], 0, (targets + 1) % N)) < (0.1, 0.3)


def test_intervals_hold_the_value_and_shrink_with_more_images():
    real, widths = features(1600), []
    for n in (100, 1600):
        fake = real[:n] + 2 * features(n, seed=1)
        scores = scores_of(real, fake, np.arange(n), NO_TWINS, resamples=50)
        assert list(scores) == ["retrieval@1", "retrieval@10"]
        for score in scores.values():
            assert 0 <= score.low < score.value < score.high <= 1
        widths.append(score.high - score.low)
    assert widths[1] < 0.5 * widths[0]
    scores = scores_of(real, real, np.arange(1600), NO_TWINS)
    assert (scores["retrieval@1"].value, scores["retrieval@1"].low) == (1, None)


def test_99_real_images_are_too_few():
    with pytest.raises(EvaluationError, match="99 real"):
        Retrieval(SimpleNamespace(num_real=99, targets=np.arange(3)), "fid-2015")
    with pytest.raises(EvaluationError, match="--reference-split"):
        Retrieval(SimpleNamespace(num_real=200, targets=None), "fid-2015")
    real = features(100)
    assert rates(retrieval(real, real, 0, np.arange(100))) == (1, 1)


@pytest.mark.parametrize("value", [np.nan, 0])
def test_features_without_a_direction_are_an_error(value):
    fake = features()
    fake[7] = value
    with pytest.raises(EvaluationError, match="image 7 "):
        retrieval(features(), fake, 0, np.arange(N))


def test_real_images_with_the_same_caption_are_a_ruler():
    # Images 2 i and 2 i + 1 share a caption and look much the same; the others have none to share.
    real = np.repeat(features(100), 2, axis=0) + 0.1 * features(200, seed=1)
    targets, twins = np.arange(0, 200, 2), np.arange(1, 200, 2)
    twins[50:] = -1
    fake = features(100, seed=2)
    found = scores_of(real, fake, targets, twins)
    assert found["retrieval@1"].value < 0.1
    assert found["retrieval@1_real"].value == 1
    assert "50" in found["retrieval@1_real"].note
    twins[10:] = -1  # too few to say
    found = scores_of(real, fake, targets, twins)
    assert list(found) == ["retrieval@1", "retrieval@10"]


def test_a_real_image_is_not_ranked_against_itself():
    real = features(101)
    others = np.roll(np.arange(101), 1)  # each image's own row would be nearest
    nearby = real + 0.01 * real[others]
    hits = retrieval(
        np.concatenate([real, nearby]), nearby, 0, np.arange(101), 101 + np.arange(101)
    )
    assert hits[1].all()
