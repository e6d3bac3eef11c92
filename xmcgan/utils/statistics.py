"""Values with 95 % confidence intervals, by the bootstrap over images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from xmcgan.errors import EvaluationError

MIN_IMAGES = 20  # fewer say too little about the spread to give an interval
MIN_RESAMPLES = 5

Direction = Literal["lower", "higher"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Value of a metric with its 95 % interval; `low` and `high` are None if not computed."""

    value: float
    low: float | None = None
    high: float | None = None
    better: Direction = "lower"
    note: str = ""  # what a reader should know, such as too few images
    flattered: bool = False  # training used the network that the score is made with


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Value with its 95 % interval, if there is one; `source` says over what it was taken."""

    value: float
    low: float | None = None
    high: float | None = None
    source: str = ""  # "seeds", "images" or "captions"

    def text(self, digits: int = 2, scale: float = 1, sign: str = "") -> str:
        """Return such as `12.34 (11.20 to 13.48)`; `sign` "+" shows the sign of positive values."""
        values = (self.value, self.low, self.high)
        shown = [f"{scale * each:{sign}.{digits}f}" for each in values if each is not None]
        return shown[0] if len(shown) < 3 else f"{shown[0]} ({shown[1]} to {shown[2]})"


def check_resamples(resamples: int) -> None:
    """Raise EvaluationError if `resamples` is neither 0 nor enough to estimate a spread."""
    if resamples != 0 and resamples < MIN_RESAMPLES:
        raise EvaluationError(
            f"an interval needs at least {MIN_RESAMPLES} resamples, or 0 for none; got {resamples}"
        )


def resample_counts(num: int, resamples: int, seed: int | Sequence[int]) -> Int[np.ndarray, "r n"]:
    """How often each of `num` images counts in each bootstrap resample."""
    check_resamples(resamples)
    # Poisson numbers of mean 1, the limit of drawing n of n with replacement (Hanley and MacGibbon,
    # "Creating non-parametric bootstrap samples using Poisson frequencies", 2006).
    return np.random.default_rng(seed).poisson(1.0, (resamples, num))


def resample_pair(
    num_real: int, num_fake: int, resamples: int, seed: int
) -> tuple[Int[np.ndarray, "1+r n"], Int[np.ndarray, "1+r m"]]:
    """Weights of both sides, resampled independently; the first row counts every image once."""
    usable = resamples if min(num_real, num_fake) >= MIN_IMAGES else 0
    real, fake = (
        np.concatenate([np.ones((1, num), int), resample_counts(num, usable, [seed, side])])
        for side, num in enumerate((num_real, num_fake))
    )
    return real, fake


def score(
    values: Sequence[float] | Float[np.ndarray, "1+r"],
    better: Direction,
    note: str = "",
    *,
    least: float = -np.inf,
    most: float = np.inf,
) -> Score:
    """Score of a whole set (the first value) with an interval from its resamples (the others).

    The interval is value -+ t * standard deviation of the resamples (Efron and Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13), cut off at `least` and `most`. Not their
    percentiles: resamples hold copies and act like smaller sets, so that their Frechet distances
    lie above that of the set. Of 300 such intervals with Gaussian features and 20 resamples, 96 %
    (500 images, 16 dimensions) to 99.7 % (64 dimensions) held the expected distance; of those of
    percentiles 22 % and 0 %, of basic ones 30 % and 0 %. For the other scores it is 94 to 100 %.
    """
    value, *resampled = map(float, values)
    if not resampled:
        return Score(value, better=better, note=note)
    quantile = float(scipy.stats.t.ppf(0.975, len(resampled) - 1))
    spread = quantile * float(np.std(resampled, ddof=1))
    return Score(value, max(value - spread, least), min(value + spread, most), better, note)


def mean_score(
    per_example: Float[np.ndarray, "n"],
    *,
    resamples: int,
    seed: int,
    most: float = 1.0,
    note: str = "",
) -> Score:
    """Mean over examples of numbers from 0 to `most`, the higher the better."""
    counts = resample_counts(len(per_example), resamples, seed)
    if len(per_example) < MIN_IMAGES:
        counts = counts[:0]
    means = counts @ per_example / counts.sum(axis=1)
    return score([per_example.mean(), *means], "higher", note, least=0.0, most=most)


def mean_of_draws(draws: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    """Mean of each score over several sets of captions and noise, with Student's t interval.

    A single draw stays as it is. The note says the standard deviation (ddof 1).
    """
    if len(draws) == 1:
        return dict(draws[0])
    quantile = float(scipy.stats.t.ppf(0.975, len(draws) - 1))
    means = {}
    for name, first in draws[0].items():
        if all(name in scores for scores in draws):
            values = np.array([scores[name].value for scores in draws])
            deviation = float(values.std(ddof=1))
            margin = quantile * deviation / np.sqrt(len(values))
            note = f"standard deviation {deviation:.3g} over {len(values)} draws"
            means[name] = dataclasses.replace(
                first,
                value=float(values.mean()),
                low=float(values.mean() - margin),
                high=float(values.mean() + margin),
                note="; ".join(filter(None, [note, first.note])),
            )
    return means
