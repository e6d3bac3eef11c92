"""What a number was made with: code, libraries, device and command line."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import xmcgan


def provenance() -> dict[str, Any]:
    """Return what stands in the recipe of every score, as JSON values."""
    return {
        "package_version": xmcgan.__version__,
        "commit": commit(),
        "jax_version": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "command": _command(),
    }


def _command() -> str:
    """Return the command line as it was typed, but for the name of Python."""
    spec = sys.modules["__main__"].__spec__
    program = [sys.argv[0]] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *program, *sys.argv[1:]])


def commit(checkout: Path = Path(xmcgan.__file__).parents[1]) -> str | None:
    """Return the commit of a checkout, with "+" where files differ from it; None elsewhere."""
    if not (checkout / ".git").exists():
        return None
    try:
        head = _git(checkout, "rev-parse", "HEAD")
        return head + "+" * bool(_git(checkout, "status", "--porcelain"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Entries in which two recipes differ, such as `seed: 0 -> 1`."""
    return [
        f"{name}: {stored.get(name)} -> {wanted.get(name)}"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
