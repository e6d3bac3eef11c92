"""Who started a run, with what, and how it ended: `WORKDIR/run.json`, an entry a start."""

import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from xmcgan.utils.files import write_text
from xmcgan.utils.provenance import provenance

FILE = "run.json"
# What decides the numbers of a run, beside this package.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint", "pillow",
             "tokenizers")  # fmt: skip
_TEXTS = ("time", "command", "device", "jax_version", "python")
_VARIABLES = ("JAX_", "XLA_", "NCCL_")  # beginnings of names that change how JAX computes


def record_start(workdir: Path, first_step: int, num_steps: int) -> None:
    """Add an entry for the start of this process.

    Args:
        workdir: of the run, which this process holds.
        first_step: the step it goes on from, 0 for a new run.
        num_steps: how many steps the run is to have.
    """
    start = {
        "time": _now(),
        "first_step": first_step,
        "num_train_steps": num_steps,
        **provenance(),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)
        },
    }
    path = workdir / FILE
    starts = read_starts(workdir)
    if not starts and path.exists():
        print(f"warning: {path} is damaged and was set aside", file=sys.stderr)
        os.replace(path, path.with_name(f"{FILE}.damaged-{int(time.time())}"))
    _write(path, [*starts, start])


def record_end(workdir: Path, step: int, how: str) -> None:
    """Say in the newest entry how this process ended; a killed one leaves none.

    Args:
        workdir: of the run.
        step: the last step done.
        how: "finished", or the name of the signal that stopped it.
    """
    starts = read_starts(workdir)
    if starts:
        starts[-1]["end"] = {"time": _now(), "step": step, "how": how}
        _write(workdir / FILE, starts)


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Return the entries, oldest first; none where the file is missing or damaged."""
    try:
        starts = json.loads((workdir / FILE).read_text(encoding="utf-8"))["starts"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
    return starts if isinstance(starts, list) and all(map(_is_start, starts)) else []


def _is_start(entry: object) -> bool:
    """Return whether an entry has what readers of it count on."""
    if not isinstance(entry, dict):
        return False
    end = entry.get("end", {"step": 0, "how": ""})
    return (
        all(isinstance(entry.get(name), str) for name in _TEXTS)
        and all(isinstance(entry.get(name), int) for name in ("first_step", "num_train_steps"))
        and isinstance(end, dict)
        and isinstance(end.get("step"), int)
        and isinstance(end.get("how"), str)
    )


def _write(path: Path, starts: list[dict[str, Any]]) -> None:
    write_text(path, json.dumps({"starts": starts}, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
