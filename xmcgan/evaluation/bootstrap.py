"""Confidence intervals by the bootstrap: how far a score would move with other images."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt64

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.content_keys import uniforms

NORMAL_QUANTILE = 1.959964  # 97.5 % of the standard normal distribution
# Fewer images than this say too little about the spread.
MIN_IMAGES = 20
# Fewer resamples than this say too little about it, and the series of Student's t fails.
MIN_RESAMPLES = 5


class Interval(NamedTuple):
    """Hold the bounds of a 95 % confidence interval."""

    low: float
    high: float


def check_resamples(resamples: int) -> None:
    """Refuse a number of resamples that tells no spread.

    Raises:
        EvaluationError: it is neither 0 nor `MIN_RESAMPLES` or more.
    """
    if resamples != 0 and resamples < MIN_RESAMPLES:
        raise EvaluationError(
            f"an interval needs at least {MIN_RESAMPLES} resamples, or 0 for none; got {resamples}"
        )


def resample_counts(
    keys: UInt64[np.ndarray, "n"], resamples: int, seed: int
) -> Int[np.ndarray, "r n"]:
    """Draw how often each image stands in each bootstrap resample.

    Counts are independent Poisson numbers of mean 1, the limit of drawing n of n images with
    replacement (Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson
    frequencies", 2006). So the count of an image depends on its own key only, and neither the order
    of the images nor rounding in one of them changes the resample.

    Args:
        keys: content keys of the images.
        resamples: r.
        seed: of the draw; sides that are drawn independently take different seeds.

    Returns:
        Counts; the sum of a resample is n on average.
    """
    terms = [math.exp(-1) / math.factorial(count) for count in range(18)]
    bounds = np.cumsum(terms)
    counts = np.empty((resamples, len(keys)), np.int64)
    for resample in range(resamples):
        salt = (seed + 1) * 2**32 + resample  # apart from the salts of the KID's subsets
        counts[resample] = np.searchsorted(bounds, uniforms(keys, salt), side="right")
    return counts


def interval(estimate: float, replicates: Float[np.ndarray, "r"]) -> Interval:
    """Return estimate -+ t * standard deviation of the bootstrap replicates.

    The normal interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13)
    with Student's t for the few replicates. It is about the score that other sets of as many images
    would have, not about the score of infinitely many.

    Resamples hold copies and act like smaller sets, so that the Frechet distance of a resample lies
    above that of the set: only the spread of the replicates is of use, not where they lie. Measured
    with Gaussian features and 20 resamples, how many of 300 intervals held the expected distance:

        images, dimensions      normal   percentile   basic
        500, 16                 96 %     22 %         30 %
        500, 64                 99.7 %   0 %          0 %
        200, 64                 99.7 %   0 %          0 %
        500, 64, one side fixed 99.3 %   0 %          0 %

    and at 500, 16 for the other scores: 94 to 97 % for sets that differ, 95 to 100 % for sets of
    one distribution.

    Args:
        estimate: score of the whole set.
        replicates: scores of at least two resamples.
    """
    spread = student_quantile(len(replicates) - 1) * float(np.std(replicates, ddof=1))
    return Interval(estimate - spread, estimate + spread)


def student_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5, three terms).

    Args:
        freedom: degrees of freedom; at least 4, where the error is 0.3 %.
    """
    z = NORMAL_QUANTILE
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
