"""Official archives over HTTP: resumed where they were cut off, and checked before they are used.

TFDS's download manager writes into a folder of a random name and begins anew after a fault, which
does not do for 20 GB; its file of checksums is kept.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from xmcgan.errors import DataError

_BLOCK = 1024**2
_TIMEOUT_S = 60
_TRIES = 5  # in a row without a new byte
_RECORD = "checksums.tsv"  # of files whose publisher gives no hash: as they first came


@dataclasses.dataclass(frozen=True)
class Archive:
    """Hold the address of an official file, and its size and sha256 where they are known."""

    url: str
    size: int | None = None
    sha256: str | None = None

    @property
    def file_name(self) -> str:
        """Return the last part of the address."""
        return PurePosixPath(urllib.parse.urlparse(self.url).path).name


def download(
    archives: Sequence[Archive], directory: Path, *, progress: bool = False, pause_s: float = 2.0
) -> list[Path]:
    """Fetch files that are not there yet.

    A file stands under its name only when it is whole; until then it is NAME.part, and the next
    call goes on from its end. Where no sha256 is known, that of the first download is written to
    checksums.tsv (TFDS's form) in the directory, and holds from then on.

    Args:
        archives: what to fetch.
        directory: where to.
        progress: show a bar.
        pause_s: seconds between tries after a fault.

    Returns:
        The files, in the order of `archives`.

    Raises:
        DataError: too little disk, no answer after several tries, or other bytes than expected.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [a for a in archives if not (directory / a.file_name).exists()]
    have = sum(_size(_part(directory / a.file_name)) for a in missing)
    check_free(directory, sum(a.size or 0 for a in missing) - have)
    for archive in missing:
        _fetch(archive, directory / archive.file_name, progress=progress, pause_s=pause_s)
    return [directory / archive.file_name for archive in archives]


def check_free(directory: Path, needed: int) -> None:
    """Check that a disk has room, before anything is written.

    Raises:
        DataError: it has not; both numbers are given.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise DataError(
            f"{directory} needs {needed / 1e9:,.1f} GB, its disk has {free / 1e9:,.1f} GB free"
        )


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(archive: Archive, path: Path, *, progress: bool, pause_s: float) -> None:
    part = _part(path)
    # None: a bar on a terminal, nothing in a file of logs.
    quiet = None if progress else True
    with tqdm(desc=path.name, unit="B", unit_scale=True, total=archive.size, disable=quiet) as bar:
        _transfer(archive, part, bar, pause_s)
        bar.set_description(f"checking {path.name}")
        _check(archive, part)
    os.replace(part, path)


def _transfer(archive: Archive, part: Path, bar: tqdm, pause_s: float) -> None:
    """Append to the partial file until it is whole."""
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
    headers = {"User-Agent": "xmcgan"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(archive.url, headers=headers)
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
    """Compare a finished file with its hash, or write the hash down."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
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


def download_images(
    urls: Iterable[str], directory: Path, *, progress: bool = False, num_threads: int = 16
) -> int:
    """Fetch many small files side by side; those that are there are left as they are.

    Args:
        urls: their last part is the file's name.
        directory: where to.
        progress: show a bar.
        num_threads: connections at a time.

    Returns:
        How many the server does not have.

    Raises:
        DataError: the server fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = [a for a in map(Archive, urls) if not (directory / a.file_name).exists()]
    absent = 0
    quiet = None if progress else True
    with (
        concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
        tqdm(desc="fetching images", unit="img", total=len(missing), disable=quiet) as bar,
    ):
        for found in _bounded(pool, missing, directory, 4 * num_threads):
            absent += not found
            bar.update()
    return absent


def _bounded(
    pool: concurrent.futures.Executor, archives: Sequence[Archive], directory: Path, most: int
) -> Iterator[bool]:
    waiting: set[concurrent.futures.Future[bool]] = set()
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for archive in archives:
            waiting.add(pool.submit(_fetch_image, archive, directory))
            if len(waiting) >= most:
                done, waiting = concurrent.futures.wait(
                    waiting, return_when=concurrent.futures.FIRST_COMPLETED
                )
                yield from (future.result() for future in done)
        yield from (future.result() for future in concurrent.futures.as_completed(waiting))


def _fetch_image(archive: Archive, directory: Path) -> bool:
    path = directory / archive.file_name
    part = _part(path)
    try:
        _transfer(archive, part, tqdm(disable=True), pause_s=1.0)
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, urllib.error.HTTPError) and cause.code in (403, 404):
            return False
        raise
    os.replace(part, path)
    return True
