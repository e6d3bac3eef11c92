"""How far raters agree beyond chance: Krippendorff's alpha."""

from typing import Literal

import numpy as np
from jaxtyping import Float

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: Float[np.ndarray, "r u"], level: Level) -> float:
    """Return alpha = 1 - observed / expected disagreement.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011. 1 is perfect
    agreement, 0 that of chance; raters may have left out units.

    Args:
        ratings: value that each rater gave each unit, NaN where none.
        level: how disagreement grows with distance. "ordinal" counts the ratings that lie between
            two values, so that only their order matters.

    Returns:
        Alpha, or NaN where it is undefined: no unit has two ratings, or all ratings are equal.
    """
    known = ~np.isnan(ratings)
    ratings = ratings[:, known.sum(axis=0) >= 2]
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # (u, v)
    pairable = counts.sum(axis=1)
    # Coincidences: ordered pairs of values within a unit, weighted by 1 / (ratings - 1).
    weighted = counts / (pairable - 1)[:, None]
    coincidences = weighted.T @ counts - np.diag(weighted.sum(axis=0))
    margins = coincidences.sum(axis=1)
    distances = _distances(values, margins, level)
    expected = margins @ distances @ margins / (margins.sum() - 1) if len(values) > 1 else 0.0
    if expected == 0:
        return float("nan")
    return float(1 - (coincidences * distances).sum() / expected)


def _distances(
    values: Float[np.ndarray, "v"], margins: Float[np.ndarray, "v"], level: Level
) -> Float[np.ndarray, "v v"]:
    """Return the squared difference of each two values."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values) ** 2
    # The number of ratings from one value to the other, half of those at both ends.
    middle = np.cumsum(margins) - margins / 2
    return (middle[:, None] - middle) ** 2
