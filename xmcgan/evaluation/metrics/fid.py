"""Frechet distance of features (FID): Heusel et al., NeurIPS 2017 (TTUR), equation 6."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Arrays, require_images
from xmcgan.evaluation.metrics import FeatureMetric
from xmcgan.utils.statistics import MIN_IMAGES, Score, resample_counts, score

# A resample takes seconds at 2048 dimensions. 20 of them know the spread to 16 %, for which
# Student's t makes allowance.
MAX_RESAMPLES = 20
# Rounding gives a covariance eigenvalues below zero, at most this share of the largest one.
MAX_NEGATIVE = 1e-6
BLOCK = 4096  # rows that are centered at once: 64 MB of float64 at 2048 dimensions


class FrechetDistance(FeatureMetric):
    """Frechet distance, called `fid` for Inception features and `fd` for others."""

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Distance with its interval."""
        name = self.extractor.protocol.label.lower()
        return {name: frechet_score(real, fake, **self.resampling)}


def frechet_score(real: Arrays, fake: Arrays, *, resamples: int, seed: int) -> Score:
    """Frechet distance of two sides, each `values` (n, d), or `mu`, `sigma` and `n`.

    Statistics stay fixed in the bootstrap; the note says so.
    """
    if "values" in real and "values" in fake:
        require_images(real["values"], fake["values"])
    nums = [len(side["values"]) for side in (real, fake) if "values" in side]
    usable = min(resamples, MAX_RESAMPLES) if min(nums, default=0) >= MIN_IMAGES else 0
    notes = []
    num: Any
    for side, name in ((real, "real "), (fake, "generated ")):
        num, width = side["values"].shape if "values" in side else (side.get("n"), len(side["mu"]))
        notes.append(too_few(num, width, name))
    a, b = (real, [seed, 0]), (fake, [seed, 1])
    if "values" not in fake or ("values" in real and len(fake["values"]) < len(real["values"])):
        # The distance is symmetric: the factor of a fixed side is reused, and that of the smaller
        # side has the fewest columns.
        a, b = b, a
    is_fixed = "values" not in a[0]
    factor, distances = None, []
    moments_a, moments_b = (_moments(side, usable, side_seed) for side, side_seed in (a, b))
    for _ in range(usable + 1):
        (mean_a, sigma_a), (mean_b, sigma_b) = next(moments_a), next(moments_b)
        if factor is None or not is_fixed:
            factor = covariance_factor(sigma_a)
        distances.append(frechet_distance(mean_a, sigma_a, mean_b, sigma_b, factor_a=factor))
    if usable and is_fixed:
        notes.append("interval with one side fixed, of which there are statistics only")
    return score(distances, "lower", "; ".join(filter(None, notes)), least=0.0)


def _moments(side: Arrays, resamples: int, seed: list[int]) -> Iterator[tuple[Any, Any]]:
    """Mean and covariance of a side, then of its resamples; statistics repeat."""
    if "values" not in side:
        return itertools.repeat((side["mu"], side["sigma"]))
    values = side["values"]
    counts = [None, *resample_counts(len(values), resamples, seed)]
    return (mean_and_covariance(values, each) for each in counts)


def too_few(num: int | None, width: int, name: str = "") -> str:
    """Why a distance of `num` images (None: unknown) with `width` features misleads, or nothing."""
    if num is None or num > width:
        return ""
    return (
        f"{num} {name}images are too few for {width} dimensions: the distance is biased upwards "
        "and compares with no other number of images"
    )


def mean_and_covariance(
    values: Float[np.ndarray, "n d"], counts: Int[np.ndarray, "n"] | None = None
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Mean and unbiased covariance in float64, each row counting as often as `counts` says.

    `numpy.cov` would hold several copies of all rows in float64; this holds one block.
    """
    weights = np.ones(len(values)) if counts is None else counts.astype(np.float64)
    num = weights.sum()
    if num < 2:
        raise EvaluationError(f"a covariance needs at least 2 images, there are {num:.0f}")
    blocks = [slice(start, start + BLOCK) for start in range(0, len(values), BLOCK)]
    mean = sum(weights[block] @ values[block].astype(np.float64) for block in blocks) / num
    covariance = np.zeros((values.shape[1],) * 2)
    for block in blocks:
        centered = (values[block] - mean) * np.sqrt(weights[block])[:, None]
        covariance += centered.T @ centered
    return np.asarray(mean), covariance / (num - 1)


def frechet_distance(
    mu_a: Float[np.ndarray, "d"],
    sigma_a: Float[np.ndarray, "d d"],
    mu_b: Float[np.ndarray, "d"],
    sigma_b: Float[np.ndarray, "d d"],
    *,
    factor_a: Float[np.ndarray, "d r"] | None = None,
) -> float:
    """|mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a S_b), equation 6; all in float64.

    With S_a = R R^T (`factor_a`) the product S_a S_b has the eigenvalues of R^T S_b R, which is
    symmetric: two symmetric eigenproblems take the place of a matrix square root.
    """
    _require_symmetric(sigma_b)
    factor = covariance_factor(sigma_a) if factor_a is None else factor_a
    eigenvalues = np.linalg.eigvalsh(factor.T @ sigma_b @ factor) if factor.size else np.zeros(1)
    _require_positive(eigenvalues)
    trace = np.trace(sigma_a) + np.trace(sigma_b)
    trace -= 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    shift = mu_a - mu_b
    return max(0.0, float(shift @ shift + trace))


def covariance_factor(sigma: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """R with R R^T = sigma and as many columns as sigma has rank.

    Without the columns of rounding noise, fewer images than dimensions cost no accuracy.
    """
    _require_symmetric(sigma)
    eigenvalues, vectors = np.linalg.eigh(sigma)
    _require_positive(eigenvalues)
    kept = eigenvalues > len(sigma) * np.finfo(np.float64).eps * max(eigenvalues[-1], 0.0)
    return vectors[:, kept] * np.sqrt(eigenvalues[kept])


def _require_symmetric(sigma: np.ndarray) -> None:
    # LAPACK reads one triangle, and hangs or returns nonsense on NaN.
    tolerance = MAX_NEGATIVE * np.abs(sigma).max(initial=0)
    if not np.isfinite(sigma).all() or np.abs(sigma - sigma.T).max(initial=0) > tolerance:
        raise EvaluationError("a covariance is not symmetric, or holds NaN: compute it again")


def _require_positive(eigenvalues: np.ndarray) -> None:
    if eigenvalues[0] < -MAX_NEGATIVE * np.abs(eigenvalues).max():
        raise EvaluationError(
            f"a covariance has the eigenvalue {eigenvalues[0]:.3g}, below zero: compute it again, "
            "in float64"
        )
