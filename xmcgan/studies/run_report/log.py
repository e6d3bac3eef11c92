"""Curves from `metrics.jsonl`, which may be of a run that goes on."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

# By name: steps and values, equally long. A value that is not finite is NaN.
Curves = dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]
_MOST_POINTS = 400  # of a curve: more than the pixels that a panel is wide
_NO_CURVES = ("step", "time")


def read_curves(path: Path) -> Curves:
    """Read a log; lines and values that cannot be read are left out.

    Args:
        path: of JSON lines, as `JsonLinesWriter` writes them; may be missing.

    Returns:
        The curves by name, in the order in which they appear.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            step = float(values["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        for name, value in values.items():
            if name not in _NO_CURVES and (number := _number(value)) is not None:
                points.setdefault(name, []).append((step, number))
    return {name: _columns(pairs) for name, pairs in points.items()}


def thinned(
    steps: Float[np.ndarray, " n"], values: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Return at most 400 points, each the mean of as many neighbours; NaN spreads."""
    size = -(-len(steps) // _MOST_POINTS)
    starts = np.arange(0, len(steps), max(size, 1))
    counts = np.diff(starts, append=len(steps))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts) / counts


def _columns(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = np.array(pairs).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _number(value: object) -> float | None:
    """Return a number of the log, which writes those that JSON lacks as strings."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
