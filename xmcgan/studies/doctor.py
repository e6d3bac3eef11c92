"""Diagnosis of an installation, of prepared data and of a run, in plain words; changes nothing.

Only the standard library is imported at the top: this has to work in a broken installation.
"""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmcgan.errors import CheckpointError, ConfigError, UserError
from xmcgan.utils.files import FILES, is_in_bucket, lock_holder

INSTALL = "python -m pip install -r requirements.txt"
_GB = 1e9
_MIN_FREE_BYTES = 2 * _GB  # a small run's checkpoints, its logs and compiled programs
_RECORDS_PER_SPLIT = 20  # the first, the last, and some between


class Examination:
    """Findings about one subject after the other, printed as they come; problems are counted."""

    def __init__(self) -> None:
        self.problems = 0
        self._subject = ""

    @contextlib.contextmanager
    def of(self, subject: str) -> Iterator[None]:
        """Name what the block's findings are about; an error that ends the block is a problem."""
        before, self._subject = self._subject, subject
        try:
            yield
        except (UserError, ImportError, OSError) as error:
            fix = f"; run\n{INSTALL}" if isinstance(error, ImportError) else ""
            self.problem(f"{error}{fix}")
        finally:
            self._subject = before

    def fine(self, text: str) -> None:
        """Print what is as it should be."""
        self._print("ok", text)

    def problem(self, text: str) -> None:
        """Print what is wrong and what to do, and count it."""
        self.problems += 1
        self._print("PROBLEM", text)

    def _print(self, mark: str, text: str) -> None:
        lines = text.splitlines()
        print(f"{mark:<8} {self._subject:<12}", f"\n{'':<22}".join(lines), flush=True)


# ---- the installation --------------------------------------------------------------------------


def check_installation(
    found: Examination, weights_dir: Path | None, needed: tuple[str, ...]
) -> None:
    """Check Python, packages, devices, disk, and fetched weights, some of which are `needed`."""
    with found.of("packages"):
        _check_packages(found)
    with found.of("devices"):
        _check_devices(found)
    with found.of("weights"):
        _check_weights(found, weights_dir, needed)
    check_disk(found, Path.cwd())


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


def _check_packages(found: Examination) -> None:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, packages = requirements()
    version = platform.python_version()
    if SpecifierSet(python).contains(version, prereleases=True):
        found.fine(f"Python {version} in {sys.prefix}")
    else:
        found.problem(f"Python {version} where {python} is needed; make .venv with another one")
    faults = []
    for wanted in map(Requirement, packages):
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            installed = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{wanted.name} is not installed")
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            faults.append(f"{wanted.name} is {installed}, tested with {wanted.specifier}")
    if faults:
        found.problem("\n".join([*faults, f"install what was tested: {INSTALL}"]))
    else:
        found.fine(f"all {len(packages)} in their tested ranges")


def _check_devices(found: Examination) -> None:
    import jax
    import jax.numpy as jnp

    try:
        devices = jax.local_devices()
        for device in devices:
            total = float(jnp.sum(jax.device_put(jnp.ones(1000), device)))
            if total != 1000:
                found.problem(f"{device} adds 1,000 ones to {total:,}: broken driver or hardware")
    except RuntimeError as error:  # what JAX raises for drivers and memory
        found.problem(f"JAX cannot use them: {error}; does the installed JAX fit the driver?")
        return
    kind, platform_name = devices[0].device_kind, devices[0].platform
    if platform_name == "cpu":
        num_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f"{num_bytes / _GB:.1f} GB of memory in this machine"
    else:
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        memory = "memory unknown" if limit is None else f"{limit / _GB:.1f} GB of memory each"
    found.fine(f"{len(devices)} x {kind}, {memory}, jax {jax.__version__}")
    has_gpu = Path("/dev/nvidia0").exists()
    if has_gpu and platform_name == "cpu" and "JAX_PLATFORMS" not in os.environ:
        found.problem('a GPU is there, but JAX does not use it; run: pip install -U "jax[cuda13]"')


def _check_weights(found: Examination, weights_dir: Path | None, needed: tuple[str, ...]) -> None:
    from xmcgan.pretrained import weights

    folder = weights_dir or weights.default_weights_dir()
    for name, source in weights.SOURCES.items():
        if not source.requirement:
            continue  # of publishers, verified where a score is made with them
        if (folder / name).is_dir() or name in needed:
            with found.of("weights"):
                weights.verify(source, folder / name)
                found.fine(f"{name} in {folder / name}, sha256 as published")
        else:
            fetch = weights.fetch_command(folder / name)
            found.fine(f"{name} not fetched; where a config asks for it: {fetch}")


def check_disk(found: Examination, folder: Path, needed: float = _MIN_FREE_BYTES) -> None:
    """Check that an existing folder can be written to and has `needed` bytes free."""
    with found.of("disk"):
        free = shutil.disk_usage(folder).free
        text = f"{free / _GB:,.1f} GB free in {folder}"
        if not os.access(folder, os.W_OK):
            found.problem(f"{folder} cannot be written: change its owner")
        elif free < needed:
            found.problem(f"{text}, less than {needed / _GB:,.1f}: make room, or a save will fail")
        else:
            found.fine(text)


# ---- prepared data -----------------------------------------------------------------------------


def check_data(found: Examination, data_dir: Path) -> None:
    """Check every data set that is prepared in a folder."""
    with found.of("data"):
        from xmcgan.data import DATA_SETS

        names = [
            f"{builder}/{folder.name}"
            for builder in DATA_SETS
            for folder in sorted((data_dir / builder).glob("[!.]*/"))
        ]
        if not names:
            found.fine(f"nothing is prepared in {data_dir}; `emoji` and `shapes` are, on first use")
        for name in names:
            with found.of("data"):
                _check_records(found, name, data_dir)


def _check_records(found: Examination, name: str, data_dir: Path | str, **fields: Any) -> None:
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
        found.fine(f"{name} {split!r}: {len(source):,} examples, read {len(chosen)} of them")


# ---- a run -------------------------------------------------------------------------------------


def check_workdir(found: Examination, workdir: Path) -> None:
    """Check a run without touching it; it may be training."""
    with found.of("config"):
        from xmcgan.config import read_config, validate

        validate(read_config(workdir / "config.json"))
        found.fine(f"{workdir / 'config.json'} is valid")
    with found.of("lock"):
        users = {workdir: "a training run", workdir / "evaluation": "an evaluation"}
        for folder, user in users.items():
            if holder := lock_holder(folder):
                found.fine(f"{folder} is in use by {user}, process {holder}")
    with found.of("checkpoints"):
        _check_checkpoints(found, workdir)
    with found.of("data"):
        _check_run_data(found, workdir)
    with found.of("results"):
        from xmcgan.evaluation.results import ResultFile

        results = ResultFile(workdir / "evaluation").read()
        found.fine(f"{len(results)} scores of checkpoints in {workdir / 'evaluation'}")


def pinned_weights(workdir: Path) -> tuple[str, ...]:
    """Return the names of the pinned weights that a run needs; () if its config is unreadable."""
    from xmcgan.config import read_config
    from xmcgan.pretrained.sources import SOURCES

    try:
        config = read_config(workdir / "config.json")
    except ConfigError:
        return ()
    image = config.losses.image_pretrained
    names = [config.text.weights, *([image.weights or image.network] if image.enabled else [])]
    return tuple(name for name in names if name in SOURCES and SOURCES[name].requirement)


def _check_checkpoints(found: Examination, workdir: Path) -> None:
    from xmcgan.training.checkpoint import committed_steps, read_record, restore_subtree

    folder = workdir / "checkpoints"
    steps = committed_steps(folder)
    if not steps:
        found.fine(f"none in {folder} yet")
    for step in steps:
        with found.of("checkpoints"):
            trees = {name.split("/")[0] for name in read_record(folder, step).leaves}
            restore_subtree(folder, step, sorted(trees))
            found.fine(f"step {step:,}: every array has its digest")
    for aside in sorted(folder.glob("set-aside-*")):
        found.fine(f"{aside} was left behind by a run that went back; delete it if not wanted")
    if is_in_bucket(folder):  # which is never full
        return
    files = (folder / str(steps[-1])).rglob("*") if steps else ()
    newest = sum(path.stat().st_size for path in files if path.is_file())
    check_disk(found, workdir, max(1e9, 2 * newest))


def _check_run_data(found: Examination, workdir: Path) -> None:
    from xmcgan.config import read_config
    from xmcgan.data import DataSet
    from xmcgan.training.checkpoint import committed_steps, read_record

    data = read_config(workdir / "config.json").data
    with found.of("data"):
        _check_records(found, data.name, data.data_dir, **data.fields)
    stored: dict = {}
    with contextlib.suppress(CheckpointError):  # `_check_checkpoints` reports it
        for step in committed_steps(workdir / "checkpoints"):
            stored = read_record(workdir / "checkpoints", step).fingerprint
    source = DataSet(data.name, data.data_dir, **data.fields).load(data.train_split)
    if stored.get("data") not in (None, source.fingerprint()):
        found.problem(
            f"{data.name} in {data.data_dir} is not what this run was trained on; it will not "
            "resume unless the data are put back"
        )
