"""What the log files of a run say: `metrics.jsonl` as curves, `run.json` as a table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

# By name: steps and values. A value that is not finite is NaN.
Curves = dict[str, tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]]


def read_curves(path: Path) -> Curves:
    """Read the JSON lines of `JsonLinesWriter`, by name in order of appearance.

    The file may be missing or growing: lines and values that cannot be read are left out.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
            step = float(values["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        for name, value in values.items():
            if name not in ("step", "time") and isinstance(value, int | float | str):
                try:  # numbers that JSON lacks are written as strings
                    points.setdefault(name, []).append((step, float(value)))
                except ValueError:
                    continue
    columns = {name: np.array(pairs).T for name, pairs in points.items() if pairs}
    return {n: (steps, np.where(np.isfinite(v), v, np.nan)) for n, (steps, v) in columns.items()}


def starts_table(starts: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows about the starts of a run (`utils.provenance.read_starts`), the header first."""
    rows = [("started (UTC)", "from step", "ended", "commit", "devices", "Python, JAX")]
    for start in starts:
        end, commit = start.get("end"), start.get("commit")
        time, first_step = start["time"].replace("+00:00", ""), f"{start['first_step']:,}"
        how = f"{end['how']}, step {end['step']:,}" if end else "not recorded"
        code = commit[:10] + "+" * commit.endswith("+") if commit else "unknown"
        versions = f"{start['python']}, {start['jax_version']}"
        rows.append((time, first_step, how, code, start["device"], versions))
    return rows
