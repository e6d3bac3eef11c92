"""How a number was made: code, libraries, device, command line, and how two recipes differ."""

import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

import xmcgan


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
        head = _git(checkout, "rev-parse", "HEAD")
        return head + "+" * bool(_git(checkout, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def fingerprint_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line `field: stored -> now` per field of two nested JSON objects that differs."""
    old, new = dict(_flat(stored)), dict(_flat(now))
    return [
        f"{field}: {old.get(field, 'absent')} -> {new.get(field, 'absent')}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, "absent") != new.get(field, "absent")
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
