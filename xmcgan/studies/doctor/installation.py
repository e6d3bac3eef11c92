"""Python, packages, devices, weights, disk. Only the standard library is imported at the top: this
has to work where an installation is broken.
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from xmcgan.studies.doctor.findings import INSTALL, Finding, examine

_CHECKOUT = Path(__file__).resolve().parents[3]
_GB = 1e9
_LEAST_FREE = 2 * _GB  # a small run's checkpoints, its logs and compiled programs


def examine_installation(weights_dir: Path | None, needed: tuple[str, ...]) -> Iterator[Finding]:
    """Look at all that a run needs besides its data.

    Args:
        weights_dir: folder of fetched weights; None takes the default.
        needed: names of pinned weights that must be there.
    """
    yield from examine("Python", _look_at_python)
    yield from examine("packages", _look_at_packages)
    yield from examine("devices", _look_at_devices)
    yield from examine("weights", lambda: _look_at_weights(weights_dir, needed))
    yield from examine("disk", lambda: [free_disk(Path.cwd())])


def requirements() -> tuple[str, list[str]]:
    """Return which Python and which packages this version asks for, as pip writes them."""
    if (_CHECKOUT / "requirements.txt").is_file():
        lines = (_CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        project = tomllib.loads((_CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
        plain = (line.partition("#")[0].strip() for line in lines)
        return project["project"]["requires-python"], [line for line in plain if line]
    metadata = importlib.metadata.metadata("xmcgan")
    return metadata["Requires-Python"], importlib.metadata.requires("xmcgan") or []


def _look_at_python() -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted, found = requirements()[0], platform.python_version()
    if SpecifierSet(wanted).contains(found, prereleases=True):
        yield Finding("Python", f"{found} in {sys.prefix}")
    else:
        text = f"{found} where {wanted} is needed; make .venv with another Python"
        yield Finding("Python", text, is_problem=True)


def _look_at_packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    faults, good = [], 0
    for requirement in map(Requirement, requirements()[1]):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            good += 1
        else:
            faults.append(f"{requirement.name} is {found}, tested with {requirement.specifier}")
    if faults:
        text = "\n".join([*faults, f"install what was tested: {INSTALL}"])
        yield Finding("packages", text, is_problem=True)
    else:
        yield Finding("packages", f"{good} in their tested ranges")


def _look_at_devices() -> Iterator[Finding]:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.local_devices()
        for device in devices:
            total = float(jnp.sum(jax.device_put(jnp.ones(1000), device)))
            if total != 1000:
                text = f"{device} adds 1,000 ones to {total:,}: driver or hardware is broken"
                yield Finding("devices", text, is_problem=True)
    except RuntimeError as error:  # what JAX raises for drivers and memory
        text = f"JAX cannot use them: {error}; does the JAX that is installed fit the driver?"
        yield Finding("devices", text, is_problem=True)
        return
    kind, memory = devices[0].device_kind, _memory(devices[0])
    yield Finding("devices", f"{len(devices)} x {kind}, {memory}, jax {jax.__version__}")
    has_gpu = Path("/dev/nvidia0").exists()
    if has_gpu and devices[0].platform == "cpu" and "JAX_PLATFORMS" not in os.environ:
        text = 'a GPU is there, but JAX does not use it; run: pip install -U "jax[cuda13]"'
        yield Finding("devices", text, is_problem=True)


def _memory(device) -> str:
    if device.platform == "cpu":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return f"{pages / _GB:.1f} GB of memory in this machine"
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return "memory unknown" if limit is None else f"{limit / _GB:.1f} GB of memory each"


def _look_at_weights(weights_dir: Path | None, needed: tuple[str, ...]) -> Iterator[Finding]:
    from xmcgan.pretrained import weights

    folder = weights_dir or weights.default_weights_dir()
    for name, source in weights.SOURCES.items():
        if not (folder / name).is_dir() and name not in needed:
            fetch = weights.fetch_command(source, folder / name)
            yield Finding("weights", f"{name} not fetched; where a config asks for it: {fetch}")
            continue
        found = Finding("weights", f"{name} in {folder / name}, sha256 as published")
        yield from examine(
            "weights", lambda source=source, found=found: _verified(source, folder, found)
        )


def _verified(source, folder: Path, found: Finding) -> Iterator[Finding]:
    from xmcgan.pretrained import weights

    weights.verify(source, folder / source.name)
    yield found


def free_disk(folder: Path, needed: float = _LEAST_FREE) -> Finding:
    """Say how much room there is, and whether one can write.

    Args:
        folder: one that exists.
        needed: bytes that should be free.
    """
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{folder} cannot be written: change its owner", is_problem=True)
    text = f"{free / _GB:,.1f} GB free in {folder}"
    if free < needed:
        text += f", less than {needed / _GB:,.1f} GB: make room, or a save will fail"
    return Finding("disk", text, is_problem=free < needed)
