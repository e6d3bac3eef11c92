"""Diagnosis of an installation, of prepared data and of a run, in plain words; changes nothing.

Only the standard library is imported at the top: this has to work in a broken installation.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xmcgan.errors import CheckpointError, ConfigError, UserError
from xmcgan.utils.files import FILES, is_in_bucket, lock_holder

INSTALL = "python -m pip install -r requirements.txt"
_GB = 1e9
_MIN_FREE_BYTES = 2 * _GB  # a small run's checkpoints, its logs and compiled programs
_RECORDS_PER_SPLIT = 20  # the first, the last, and some between


class Finding(NamedTuple):
    """Outcome of one check; the text of a problem also says what to do."""

    subject: str
    text: str
    is_problem: bool = False

    def __str__(self) -> str:
        mark = "PROBLEM" if self.is_problem else "ok"
        first, *rest = self.text.splitlines()
        lines = [f"{mark:<8} {self.subject:<12} {first}", *(f"{'':<21} {line}" for line in rest)]
        return "\n".join(lines)


class Problem(str):
    """Text of a check that found something wrong."""


Texts = Iterator[str | Finding]  # what a check yields


def check(subject: str) -> Callable[[Callable[..., Texts]], Callable[..., Iterator[Finding]]]:
    """Decorate a check: its texts become findings, and so does an error that it fails with."""

    def decorate(look: Callable[..., Texts]) -> Callable[..., Iterator[Finding]]:
        @functools.wraps(look)
        def guarded(*args: object) -> Iterator[Finding]:
            try:
                for found in look(*args):
                    if isinstance(found, str):
                        found = Finding(subject, found, isinstance(found, Problem))
                    yield found
            except UserError as error:
                yield Finding(subject, str(error), is_problem=True)
            except ImportError as error:
                yield Finding(subject, f"cannot be checked: {error}; run\n  {INSTALL}", True)
            except OSError as error:
                yield Finding(subject, f"cannot be read: {error}", is_problem=True)

        return guarded

    return decorate


# ---- the installation --------------------------------------------------------------------------


def check_installation(weights_dir: Path | None, needed: tuple[str, ...]) -> Iterator[Finding]:
    """Check Python, packages, devices, weights and disk.

    `weights_dir` holds fetched weights (None: the default folder), of which `needed` must be there.
    """
    yield from _check_packages()
    yield from _check_devices()
    yield from _check_weights(weights_dir, needed)
    yield from check_disk(Path.cwd())


def requirements() -> tuple[str, list[str]]:
    """Return the required range of Python and the required packages, as pip writes them."""
    if (FILES / "requirements.txt").is_file():
        lines = (FILES / "requirements.txt").read_text(encoding="utf-8").splitlines()
        project = tomllib.loads((FILES / "pyproject.toml").read_text(encoding="utf-8"))
        plain = (line.partition("#")[0].strip() for line in lines)
        return project["project"]["requires-python"], [line for line in plain if line]
    metadata = importlib.metadata.metadata("xmcgan")
    packages = importlib.metadata.requires("xmcgan") or []
    return metadata["Requires-Python"], [each for each in packages if "extra ==" not in each]


@check("packages")
def _check_packages() -> Texts:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, packages = requirements()
    version = platform.python_version()
    if SpecifierSet(python).contains(version, prereleases=True):
        yield f"Python {version} in {sys.prefix}"
    else:
        yield Problem(f"Python {version} where {python} is needed; make .venv with another one")
    faults = []
    for wanted in map(Requirement, packages):
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            if wanted.marker is None or wanted.marker.evaluate():
                faults.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            faults.append(f"{wanted.name} is {found}, tested with {wanted.specifier}")
    if faults:
        yield Problem("\n".join([*faults, f"install what was tested: {INSTALL}"]))
    else:
        yield f"all {len(packages)} in their tested ranges"


@check("devices")
def _check_devices() -> Texts:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.local_devices()
        for device in devices:
            total = float(jnp.sum(jax.device_put(jnp.ones(1000), device)))
            if total != 1000:
                yield Problem(f"{device} adds 1,000 ones to {total:,}: broken driver or hardware")
    except RuntimeError as error:  # what JAX raises for drivers and memory
        yield Problem(f"JAX cannot use them: {error}; does the installed JAX fit the driver?")
        return
    kind, platform_name = devices[0].device_kind, devices[0].platform
    if platform_name == "cpu":
        num_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f"{num_bytes / _GB:.1f} GB of memory in this machine"
    else:
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        memory = "memory unknown" if limit is None else f"{limit / _GB:.1f} GB of memory each"
    yield f"{len(devices)} x {kind}, {memory}, jax {jax.__version__}"
    has_gpu = Path("/dev/nvidia0").exists()
    if has_gpu and platform_name == "cpu" and "JAX_PLATFORMS" not in os.environ:
        yield Problem('a GPU is there, but JAX does not use it; run: pip install -U "jax[cuda13]"')


@check("weights")
def _check_weights(weights_dir: Path | None, needed: tuple[str, ...]) -> Texts:
    from xmcgan.pretrained import weights

    folder = weights_dir or weights.default_weights_dir()
    for name, source in weights.SOURCES.items():
        if (folder / name).is_dir() or name in needed:
            yield from _verify_weights(name, folder)
        else:
            fetch = weights.fetch_command(source.name, folder / name)
            yield f"{name} not fetched; where a config asks for it: {fetch}"


@check("weights")
def _verify_weights(name: str, folder: Path) -> Texts:
    from xmcgan.pretrained import weights

    weights.verify(weights.SOURCES[name], folder / name)
    yield f"{name} in {folder / name}, sha256 as published"


@check("disk")
def check_disk(folder: Path, needed: float = _MIN_FREE_BYTES) -> Texts:
    """Check that an existing folder can be written to and has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    found = f"{free / _GB:,.1f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        yield Problem(f"{folder} cannot be written: change its owner")
    elif free < needed:
        yield Problem(f"{found}, less than {needed / _GB:,.1f}: make room, or a save will fail")
    else:
        yield found


# ---- prepared data -----------------------------------------------------------------------------


@check("data")
def check_data(data_dir: Path) -> Texts:
    """Check every data set that is prepared in a folder."""
    from xmcgan.data import DATA_SETS

    names = [
        f"{builder}/{folder.name}"
        for builder in DATA_SETS
        for folder in sorted((data_dir / builder).glob("[!.]*/"))
    ]
    if not names:
        yield f"nothing is prepared in {data_dir}; `emoji` and `shapes` are, on first use"
    for name in names:
        yield from _check_records(name, data_dir)


@check("data")
def _check_records(name: str, data_dir: Path | str, **fields: Any) -> Texts:
    """Decode some records of each split, with their images."""
    from xmcgan.data import DataSet
    from xmcgan.data.images import decode_image

    data_set = DataSet(name, data_dir, **fields)
    for split in data_set.splits():
        source = data_set.load(split)
        last, parts = len(source) - 1, _RECORDS_PER_SPLIT - 1
        chosen = sorted({last * part // parts for part in range(_RECORDS_PER_SPLIT)})
        for index in chosen:
            example = source[index]
            decode_image(example.image, f"{example.name} (record {index} of {split!r})")
        yield f"{name} {split!r}: {len(source):,} examples, read {len(chosen)} of them"


# ---- a run -------------------------------------------------------------------------------------


@check("lock")
def check_workdir(workdir: Path) -> Texts:
    """Check a run without touching it; it may be training."""
    yield from _check_config(workdir)
    for folder, user in ((workdir, "a training run"), (workdir / "evaluation", "an evaluation")):
        if holder := lock_holder(folder):
            yield f"{folder} is in use by {user}, process {holder}"
    yield from _check_checkpoints(workdir)
    yield from _check_run_data(workdir)
    yield from _check_results(workdir)


def pinned_weights(workdir: Path) -> tuple[str, ...]:
    """Return the names of the pinned weights that a run needs; () if its config is unreadable."""
    from xmcgan.config import read_config
    from xmcgan.pretrained.weights import SOURCES

    try:
        config = read_config(workdir / "config.json")
    except ConfigError:
        return ()
    image = config.losses.image_pretrained
    names = [config.text.weights, *([image.weights or image.network] if image.enabled else [])]
    return tuple(name for name in names if name in SOURCES)


@check("config")
def _check_config(workdir: Path) -> Texts:
    from xmcgan.config import read_config, validate

    validate(read_config(workdir / "config.json"))
    yield f"{workdir / 'config.json'} is valid"


@check("checkpoints")
def _check_checkpoints(workdir: Path) -> Texts:
    from xmcgan.training.checkpoint import committed_steps

    folder = workdir / "checkpoints"
    steps = committed_steps(folder)
    if not steps:
        yield f"none in {folder} yet"
    for step in steps:
        yield from _verify_checkpoint(folder, step)
    for aside in sorted(folder.glob("set-aside-*")):
        yield f"{aside} was left behind by a run that went back; delete it if it is not wanted"
    if is_in_bucket(folder):  # which is never full
        return
    files = (folder / str(steps[-1])).rglob("*") if steps else ()
    newest = sum(path.stat().st_size for path in files if path.is_file())
    yield from check_disk(workdir, max(1e9, 2 * newest))


@check("checkpoints")
def _verify_checkpoint(folder: Path, step: int) -> Texts:
    from xmcgan.training.checkpoint import read_record, restore_subtree

    trees = {name.split("/")[0] for name in read_record(folder, step).leaves}
    restore_subtree(folder, step, sorted(trees))
    yield f"step {step:,}: every array has its digest"


@check("data")
def _check_run_data(workdir: Path) -> Texts:
    from xmcgan.config import read_config
    from xmcgan.data import DataSet
    from xmcgan.training.checkpoint import committed_steps, read_record

    data = read_config(workdir / "config.json").data
    yield from _check_records(data.name, data.data_dir, **data.fields)
    stored: dict = {}
    with contextlib.suppress(CheckpointError):  # `_check_checkpoints` reports it
        for step in committed_steps(workdir / "checkpoints"):
            stored = read_record(workdir / "checkpoints", step).fingerprint
    source = DataSet(data.name, data.data_dir, **data.fields).load(data.train_split)
    if stored.get("data") not in (None, source.fingerprint()):
        yield Problem(
            f"{data.name} in {data.data_dir} is not what this run was trained on; it will not "
            "resume unless the data are put back"
        )


@check("results")
def _check_results(workdir: Path) -> Texts:
    from xmcgan.evaluation.results import ResultFile

    found = ResultFile(workdir / "evaluation").read()
    yield f"{len(found)} scores of checkpoints in {workdir / 'evaluation'}"
