"""How a number was made: code, libraries, device, command line, and how two recipes differ."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import xmcgan
from xmcgan.utils.files import write_text

RUN_FILE = "run.json"
# What readers of the run log rely on.
_START_FIELDS = {"time", "command", "device", "jax_version", "python", "first_step",
                 "num_train_steps"}  # fmt: skip


def provenance() -> dict[str, Any]:
    """Return JSON values that are stored with every score."""
    spec = sys.modules["__main__"].__spec__
    program = [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return {
        "package_version": xmcgan.__version__,
        "commit": commit(),
        "jax_version": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": shlex.join(["python", *program, *sys.argv[1:]]),
    }


def commit(checkout: Path = Path(xmcgan.__file__).parents[1]) -> str | None:
    """Return the commit of a checkout, with "+" if files differ from it; None elsewhere."""
    if not (checkout / ".git").exists():
        return None
    try:
        git = partial(subprocess.check_output, cwd=checkout, stderr=subprocess.DEVNULL, text=True)
        head = git(["git", "rev-parse", "HEAD"]).strip()
        return head + "+" * bool(git(["git", "status", "--porcelain"]))
    except (OSError, subprocess.CalledProcessError):
        return None


def record_start(
    workdir: Path, first_step: int, num_steps: int, init_from: Mapping[str, Any] | None = None
) -> None:
    """Add an entry for this launch to WORKDIR/run.json; `init_from`: what its state began with."""
    # The packages and variables, beside xmcgan itself, that decide the numbers of a run.
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "grain", "orbax-checkpoint", "pillow",
                "tokenizers")  # fmt: skip
    variables = {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "NCCL_"))}
    start = {
        "time": _now(),
        "first_step": first_step,
        "num_train_steps": num_steps,
        **provenance(),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "variables": dict(sorted(variables.items())),
        **({"init_from": dict(init_from)} if init_from else {}),
    }
    path, starts = workdir / RUN_FILE, read_starts(workdir)
    if not starts and path.exists():
        print(f"warning: {path} is damaged and was set aside", file=sys.stderr)
        path.rename(path.with_name(f"{RUN_FILE}.damaged-{int(time.time())}"))
    _write_starts(workdir, [*starts, start])


def record_end(workdir: Path, step: int, how: str) -> None:
    """Record how this launch ended, "finished" or the name of a signal; a killed one has no end."""
    if starts := read_starts(workdir):
        starts[-1]["end"] = {"time": _now(), "step": step, "how": how}
        _write_starts(workdir, starts)


def read_starts(workdir: Path) -> list[dict[str, Any]]:
    """Return the entries of WORKDIR/run.json, oldest first; none if it is missing or damaged."""
    try:
        starts = json.loads((workdir / RUN_FILE).read_text(encoding="utf-8"))["starts"]
        is_complete = all(start.keys() >= _START_FIELDS for start in starts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return starts if is_complete else []


def starts_table(starts: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return rows about the starts of a run, the header first."""
    rows = [("started (UTC)", "from step", "ended", "commit", "devices", "Python, JAX")]
    for start in starts:
        end, head = start.get("end"), start.get("commit")
        begun, first_step = start["time"].replace("+00:00", ""), f"{start['first_step']:,}"
        how = f"{end['how']}, step {end['step']:,}" if end else "not recorded"
        code = head[:10] + "+" * head.endswith("+") if head else "unknown"
        versions = f"{start['python']}, {start['jax_version']}"
        rows.append((begun, first_step, how, code, start["device"], versions))
    return rows


def _write_starts(workdir: Path, starts: list[dict[str, Any]]) -> None:
    write_text(workdir / RUN_FILE, json.dumps({"starts": starts}, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def fingerprint_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line `field: stored -> now` per field of two nested JSON objects that differs."""
    old, new = flatten(stored), flatten(now)
    pairs = {f: (old.get(f, "absent"), new.get(f, "absent")) for f in sorted(old.keys() | new)}
    return [f"{field}: {a} -> {b}" for field, (a, b) in pairs.items() if a != b]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested JSON object by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        is_group = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return flat
