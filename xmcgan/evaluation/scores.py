"""All scores of a set of generated images against real ones, with their intervals."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.bootstrap import (
    MIN_IMAGES,
    Interval,
    check_resamples,
    interval,
    resample_counts,
)
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.finite_rows import require_finite, require_pair
from xmcgan.evaluation.frechet import covariance_factor, frechet_distance
from xmcgan.evaluation.inception_score import split_scores
from xmcgan.evaluation.kernel_distance import SUBSET_SIZE, rbf_distances, subset_distances
from xmcgan.evaluation.moments import Moments
from xmcgan.evaluation.neighbours import neighbour_scores
from xmcgan.evaluation.statistics import Statistics

# A resample of the Frechet distance takes seconds at 2048 dimensions. 20 of them know the spread to
# 16 %, for which Student's t makes allowance.
FRECHET_RESAMPLES = 20

Direction = Literal["lower", "higher"]


@dataclass(frozen=True)
class Score:
    """Hold one score.

    Attributes:
        name: fid or fd, kid, is, precision, recall, density, coverage, cmmd, retrieval@1, ...
        value: of all images.
        low: lower bound of the 95 % interval; None where none was computed.
        high: upper bound.
        better: which direction is better.
        note: what a reader should know, such as too few images; empty when there is nothing.
        flattered: whether training used the network that the score is made with.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    better: Direction
    note: str = ""
    flattered: bool = False


def image_scores(
    real: Features, fake: Features, *, label: str, resamples: int, seed: int
) -> list[Score]:
    """Return every score that the features allow.

    Intervals are those of `bootstrap.interval`; the images of both sides are resampled. For
    precision, recall, density and coverage the balls around images stay as they are, because copies
    in a resample would have balls of radius zero.

    Args:
        real: of real images.
        fake: of generated images.
        label: "FID" or "FD", the name of the Frechet distance.
        resamples: of the bootstrap (Frechet: 20 at most), 0 for no intervals.
        seed: of the bootstrap and of the KID's subsets.

    Raises:
        EvaluationError: NaN, two protocols, too few images, or 1 to 4 resamples.
    """
    require_pair(real.values, fake.values, at_least=2)
    enough = _usable(resamples, real.values, fake.values)
    sides = _Side(real.values, enough, 2 * seed), _Side(fake.values, enough, 2 * seed + 1)
    scores = [
        frechet_score(real, fake, label=label, resamples=resamples, seed=seed),
        _kid(*sides, seed),
    ]
    if fake.logits is not None and label == "FID":  # another network's is no Inception score
        require_finite(fake.logits, "logits of the generated images")
        scores.append(_inception(_Side(fake.logits, enough, 2 * seed + 1)))
    return scores + _neighbour_scores(*sides)


def frechet_score(
    real: Features | Statistics,
    fake: Features | Statistics,
    *,
    label: str,
    resamples: int,
    seed: int,
) -> Score:
    """Return the Frechet distance.

    A side of which only statistics are at hand is held fixed in the bootstrap; the note says so.

    Args:
        real: features of real images, or their statistics.
        fake: features of generated images, or their statistics.
        label: "FID" or "FD".
        resamples: of the bootstrap, of which 20 at most are used; 0 for no interval.
        seed: of the bootstrap.

    Raises:
        EvaluationError: NaN, two protocols, too few images, or 1 to 4 resamples.
    """
    drawn = [side.values for side in (real, fake) if isinstance(side, Features)]
    enough = min(_usable(resamples, *drawn), FRECHET_RESAMPLES)
    a, b = _Gaussian(real, enough, 2 * seed), _Gaussian(fake, enough, 2 * seed + 1)
    notes = [a.too_few("real"), b.too_few("generated")]
    if b.fixed or (not a.fixed and b.rows < a.rows):
        # The distance is symmetric: the factor of a fixed side serves again, and that of the
        # smaller side has the fewest columns.
        a, b = b, a
    factor = covariance_factor(a.covariance)
    value = frechet_distance(a.mean, a.covariance, b.mean, b.covariance, factor_a=factor)
    if b.fixed or not enough:
        return _score(label.lower(), value, None, "lower", notes)
    replicates = [
        frechet_distance(*a.resample(i), *b.resample(i), factor_a=factor if a.fixed else None)
        for i in range(enough)
    ]
    if a.fixed:
        notes.append("interval with one side held fixed, of which there are statistics only")
    bounds = interval(value, np.array(replicates))
    return _score(label.lower(), value, bounds, "lower", notes, least=0.0)


def cmmd_score(
    real: Float[np.ndarray, "n e"], fake: Float[np.ndarray, "m e"], *, resamples: int, seed: int
) -> Score:
    """Return the CMMD of CLIP embeddings (Jayasumana et al., "Rethinking FID", 2024).

    Args:
        real: image embeddings of real images, of any length; they are normalised here.
        fake: of generated images.
        resamples: of the bootstrap over both sides, 0 for no interval.
        seed: of the bootstrap.

    Raises:
        EvaluationError: NaN, two widths, an embedding of length 0, or 1 to 4 resamples.
    """
    require_pair(real, fake, at_least=1)
    enough = _usable(resamples, real, fake)
    a = _Side(_normalised(real), enough, 2 * seed)
    b = _Side(_normalised(fake), enough, 2 * seed + 1)
    value, *replicates = rbf_distances(a.values, b.values, a.weights, b.weights)
    return _score("cmmd", value, _interval(value, replicates), "lower", [], least=0.0)


class _Side:
    """Hold one side's rows and how often each counts: once in row 0, then in each resample."""

    def __init__(self, values: Float[np.ndarray, "n d"], resamples: int, seed: int) -> None:
        self.values = values
        self.keys = content_keys(values)
        self.counts = resample_counts(self.keys, resamples, seed)
        self.weights = np.concatenate([np.ones((1, len(values))), self.counts])


class _Gaussian:
    """Hold mean and covariance of a side, and of its resamples unless it is fixed."""

    def __init__(self, side: Features | Statistics, resamples: int, seed: int) -> None:
        self.fixed = isinstance(side, Statistics)
        if isinstance(side, Statistics):
            self.mean, self.covariance, self.n = side.mu, side.sigma, side.n
            self.rows = 0
        else:
            moments = Moments.of(side.values)
            self.mean, self.covariance, self.n = moments.mean, moments.covariance(), moments.n
            self._values, self.rows = side.values, len(side.values)
            self._counts = resample_counts(content_keys(side.values), resamples, seed)

    def resample(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        if self.fixed:
            return self.mean, self.covariance
        moments = Moments.of(self._values, self._counts[number])
        return moments.mean, moments.covariance()

    def too_few(self, name: str) -> str:
        if self.n is None or self.n > len(self.mean):
            return ""
        return (
            f"{self.n} {name} images are too few for {len(self.mean)} dimensions: the distance is "
            "biased upwards and compares with no other number of images"
        )


def _kid(real: _Side, fake: _Side, seed: int) -> Score:
    distances = subset_distances(
        real.values, fake.values, real.keys, fake.keys, real.weights, fake.weights, seed=seed
    )
    size = min(SUBSET_SIZE, len(real.values), len(fake.values))
    notes = [f"standard deviation {distances[:, 0].std():.3g} over subsets of {size}"]
    if size < SUBSET_SIZE:
        notes.append(f"subsets lowered from {SUBSET_SIZE} images to the {size} there are")
    value, *replicates = distances.mean(axis=0)
    return _score("kid", value, _interval(value, replicates), "lower", notes)


def _inception(logits: _Side) -> Score:
    splits = split_scores(logits.values, logits.keys, logits.weights)
    value, *replicates = splits.mean(axis=0)
    notes = [f"standard deviation {splits[:, 0].std():.3g} over {len(splits)} splits"]
    return _score("is", value, _interval(value, replicates), "higher", notes, least=1.0)


def _neighbour_scores(real: _Side, fake: _Side) -> list[Score]:
    found = neighbour_scores(real.values, fake.values, real.weights, fake.weights)
    n, m = len(real.values), len(fake.values)
    notes = [f"{n} real and {m} generated images; use equal numbers"] if n != m else []
    scores = []
    for name, (value, *replicates) in found._asdict().items():
        bounds = _interval(value, replicates)
        most = np.inf if name == "density" else 1.0
        scores.append(_score(name, value, bounds, "higher", notes, least=0.0, most=most))
    return scores


def _interval(value: float, replicates: list[float]) -> Interval | None:
    return interval(float(value), np.array(replicates)) if replicates else None


def _score(
    name: str,
    value: float,
    bounds: Interval | None,
    better: Direction,
    notes: list[str],
    *,
    least: float = -np.inf,
    most: float = np.inf,
) -> Score:
    """Return a score whose interval ends where the score's own range does."""
    low = None if bounds is None else max(bounds.low, least)
    high = None if bounds is None else min(bounds.high, most)
    return Score(name, float(value), low, high, better, "; ".join(note for note in notes if note))


def _usable(resamples: int, *sides: Float[np.ndarray, "n d"]) -> int:
    """Return the resamples, none where a side has too few images to tell a spread."""
    check_resamples(resamples)
    return resamples if min(map(len, sides), default=0) >= MIN_IMAGES else 0


def _normalised(values: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n e"]:
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    if not lengths.all():
        raise EvaluationError(f"embedding {int(np.argmin(lengths))} has length 0")
    return values / lengths
