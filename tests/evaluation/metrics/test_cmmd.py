"""CMMD equals literal loops over pairs of normalized embeddings."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.metrics import cmmd
from xmcgan.evaluation.metrics.cmmd import CMMD, rbf_distances
from xmcgan.utils.statistics import Score


def pair(n: int = 40, m: int = 40, d: int = 6, shift: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Return features of two sets."""
    rng = np.random.default_rng(n + m + d)
    a, b = rng.standard_normal((n, d)), rng.standard_normal((m, d)) + shift
    return a.astype(np.float32), b.astype(np.float32)


def rbf_distance(a: np.ndarray, b: np.ndarray, **options) -> float:
    """Return the distance of images that all count once."""
    return rbf_distances(a, b, np.ones((1, len(a))), np.ones((1, len(b))), **options).item()


def literal_cmmd(a: np.ndarray, b: np.ndarray, sigma: float = 10, scale: float = 1000) -> float:
    """Return the mean over all pairs, an image with itself included."""

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        squares = [np.sum((p.astype(np.float64) - q) ** 2) for p in x for q in y]
        return float(np.mean(np.exp(-np.array(squares) / (2 * sigma**2))))

    return scale * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("sigma", [0.5, 10.0])
def test_rbf_distance_equals_the_double_loop(sigma: float, monkeypatch):
    monkeypatch.setattr(cmmd, "BLOCK", 16)
    a, b = pair(40, 33)
    found = rbf_distance(a, b, sigma=sigma)
    assert found == pytest.approx(literal_cmmd(a, b, sigma), rel=1e-9)


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


@pytest.fixture
def score_of(monkeypatch):
    """Return a function that scores embeddings."""
    monkeypatch.setattr(cmmd, "ClipExtractor", lambda *_: SimpleNamespace(recipe={}))

    def score(real: np.ndarray, fake: np.ndarray, resamples: int = 0) -> Score:
        context: Any = SimpleNamespace(networks=None, resamples=resamples, seed=0)
        return CMMD(context, "").compute({"embeddings": real}, {"embeddings": fake})["cmmd"]

    return score


def test_cmmd_normalizes_embeddings(score_of):
    real, fake = pair(120, 120, shift=0.5)
    units = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (real, fake)]
    score = score_of(3 * real, fake * np.linspace(1, 9, len(fake))[:, None], resamples=8)
    assert score.value == pytest.approx(rbf_distance(*units), rel=1e-5)
    assert score.low < score.value < score.high
    assert score.better == "lower"
    assert score_of(real, fake).low is None


@pytest.mark.parametrize(("value", "row"), [(0, 3), (np.nan, 7)])
def test_an_embedding_of_no_length_or_not_finite_is_refused(score_of, value: float, row: int):
    real, fake = pair()
    fake[row] = value
    with pytest.raises(EvaluationError, match=f"image {row} "):
        score_of(real, fake)
