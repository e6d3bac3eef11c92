"""What several seeds say together: means, differences, and how sure they are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from xmcgan.utils.statistics import Score

_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Hold a number and its 95 % confidence interval.

    Attributes:
        value: the number.
        low: lower bound; None where nothing tells.
        high: upper bound.
        source: what the interval is about: "seeds" (how training varies), "images" (how one
            model's score varies with the images that are drawn), or "" where there is none.
    """

    value: float
    low: float | None = None
    high: float | None = None
    source: Literal["seeds", "images", ""] = ""


def mean_over_seeds(scores: Sequence[Score]) -> Estimate:
    """Return the mean of a score over seeds.

    The interval is Student's t interval of the mean. One seed says nothing of how training varies:
    there it is the bootstrap interval of the evaluation, where that has one. Seeds that agree to
    the last digit, such as shares of 0 %, say nothing of it either.

    Args:
        scores: of one row and one measure, a seed each; at least one.
    """
    if len(scores) == 1:
        (score,) = scores
        return Estimate(score.value, score.low, score.high, "" if score.low is None else "images")
    return _students([score.value for score in scores])


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """Return how far a row lies from the baseline, None where they have no seed in common.

    Runs of one seed begin with the same parameters, as far as they have them in common, and see the
    same batches, so that their scores go up and down together: the interval is Student's for the
    differences within seeds. One seed gives none.

    Args:
        values: of the row, by seed.
        baseline: of the baseline, by seed.
    """
    within = [values[seed] - baseline[seed] for seed in values.keys() & baseline.keys()]
    if not within:
        return None
    return Estimate(within[0]) if len(within) == 1 else _students(within)


def _students(values: Sequence[float]) -> Estimate:
    mean, error = float(np.mean(values)), float(stats.sem(values))
    if error == 0:
        return Estimate(mean)
    low, high = stats.t.interval(_CONFIDENCE, len(values) - 1, loc=mean, scale=error)
    return Estimate(mean, float(low), float(high), "seeds")
