"""Random draws that follow what an image shows, not the place where it happens to stand.

Subsets, splits and resamples are drawn by these keys. So a score changes neither with the order of
the images nor, beyond a row in ten thousand, with the rounding that another batch size or device
count leaves in the features.
"""

import numpy as np
from jaxtyping import Float, UInt64

# Random directions that a row is read along, and the width of a step in standard deviations. A key
# changes where rounding carries a row over a step: 16 directions * 1e-6 / 0.5, about 3e-5 of rows.
DIRECTIONS = 16
STEP = 0.5
BLOCK = 4096


def content_keys(values: Float[np.ndarray, "n d"]) -> UInt64[np.ndarray, "n"]:
    """Return a pseudo-random number for each row that goes with the row wherever it stands.

    Args:
        values: finite features.

    Returns:
        Keys that differ, also between rows that are equal.
    """
    directions = np.random.default_rng(0).standard_normal((values.shape[1], DIRECTIONS))
    mean = values.mean(axis=0, dtype=np.float64)
    projections = np.concatenate(
        [(values[i : i + BLOCK] - mean) @ directions for i in range(0, len(values), BLOCK)]
    )
    width = STEP * np.sqrt(np.mean(projections**2, axis=0))
    steps = np.floor(projections / np.where(width > 0, width, 1)).astype(np.int64)
    codes = np.zeros(len(values), np.uint64)
    for column in steps.T:
        codes = mix(codes ^ column.astype(np.uint64))
    return mix(codes + _occurrences(codes, projections[:, 0]))


def keyed_order(keys: UInt64[np.ndarray, "n"]) -> np.ndarray:
    """Return the row numbers in a shuffled order that goes with the rows."""
    return np.argsort(keys, kind="stable")


def draw(keys: UInt64[np.ndarray, "n"], size: int, salt: int) -> np.ndarray:
    """Return the numbers of `size` distinct rows; each salt gives another draw.

    Args:
        keys: of `content_keys`.
        size: at most n.
        salt: number of the draw.
    """
    return np.argsort(salted(keys, salt), kind="stable")[:size]


def uniforms(keys: UInt64[np.ndarray, "n"], salt: int) -> Float[np.ndarray, "n"]:
    """Return for each row a number in [0, 1); each salt gives others."""
    return (salted(keys, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def salted(keys: UInt64[np.ndarray, "n"], salt: int) -> UInt64[np.ndarray, "n"]:
    """Return other keys for the same rows."""
    return mix(keys ^ mix(np.array([salt], np.uint64)))


def mix(numbers: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Scatter 64-bit numbers (SplitMix64: Steele et al., "Fast Splittable PRNGs", 2014)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _occurrences(
    codes: UInt64[np.ndarray, "n"], tie_breaker: Float[np.ndarray, "n"]
) -> UInt64[np.ndarray, "n"]:
    """Number the rows that share a code, so that copies of an image are drawn one by one."""
    order = np.lexsort((tie_breaker, codes))
    ordered = codes[order]
    first = np.searchsorted(ordered, ordered, side="left")
    numbers = np.empty(len(codes), np.uint64)
    numbers[order] = np.arange(len(codes)) - first
    return numbers
