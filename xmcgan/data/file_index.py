"""Where files lie in directories and zips: found by name, read one at a time, never extracted."""

import contextlib
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from xmcgan.data.image_store import MAX_FILE_BYTES, check_entry, is_hidden
from xmcgan.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")  # of a zip member, before its name and its bytes
_LOCAL_MAGIC = b"PK\3\4"


class FileRef(NamedTuple):
    """Say where one file's bytes are; small, and can be sent to another process.

    Attributes:
        path: the file itself, or the zip that holds it.
        size: bytes of the file.
        member: of a zip member: offset of its header, bytes it takes there, checksum, compression.
    """

    path: str
    size: int
    member: tuple[int, int, int, int] | None = None

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            DataError: it is too large, damaged, or cannot be read.
        """
        if self.size > MAX_FILE_BYTES:
            raise DataError(f"a file in {self.path} is larger than {MAX_FILE_BYTES // 1024**2} MiB")
        try:
            with open(self.path, "rb", buffering=0) as file:
                return file.read() if self.member is None else _read_member(file, self)
        except (OSError, zlib.error, struct.error) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error


def _read_member(file: io.RawIOBase, ref: FileRef) -> bytes:
    """Read one zip member without the zip's directory, which would cost each process a copy."""
    assert ref.member is not None
    offset, stored_size, checksum, method = ref.member
    file.seek(offset)
    header = _LOCAL_HEADER.unpack(_read_exactly(file, _LOCAL_HEADER.size))
    if header[0] != _LOCAL_MAGIC:
        raise DataError(f"{ref.path} is damaged: no zip member begins at byte {offset:,}")
    file.seek(header[-2] + header[-1], os.SEEK_CUR)
    data = _read_exactly(file, stored_size)
    if method == zipfile.ZIP_DEFLATED:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, ref.size + 1)
    if len(data) != ref.size or zlib.crc32(data) != checksum:
        raise DataError(f"{ref.path} is damaged: wrong checksum of the member at byte {offset:,}")
    return data


def _read_exactly(file: io.RawIOBase, size: int) -> bytes:
    data = file.read(size)
    if data is None or len(data) != size:
        raise OSError(f"ends {size - len(data or b''):,} bytes too early")
    return data


def list_files(sources: Iterable[Path]) -> Iterator[tuple[str, FileRef]]:
    """Yield the files of directories and of zips, one after the other.

    Args:
        sources: directories (their files, then the members of zips at their top), zips, or single
            files.

    Yields:
        A file's path within its source, with "/", and where it is.

    Raises:
        DataError: no such source, or a zip that is truncated, damaged, encrypted, compressed in an
            unknown way, or has members that point outside it.
    """
    for source in sources:
        if source.is_dir():
            yield from _walk(source)
            for path in sorted(source.glob("*.zip")):
                yield from _list_zip(path)
        elif source.suffix.lower() == ".zip" and source.exists():
            yield from _list_zip(source)
        elif source.is_file():
            yield source.name, FileRef(str(source), source.stat().st_size)
        else:
            raise DataError(f"{source} does not exist")


def _walk(root: Path) -> Iterator[tuple[str, FileRef]]:
    """List a directory; linked directories are followed, each real one once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_litter(name))
        within = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if within == "." else f"{within}/"
        for name in sorted(names):
            if not _is_litter(name) and not name.lower().endswith((".zip", ".part")):
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):  # a link to nothing
                    status = os.stat(path)
                    if stat.S_ISREG(status.st_mode):
                        yield prefix + name, FileRef(path, status.st_size)


def _is_litter(name: str) -> bool:
    """Tell what archivers and desktops leave behind, by one part of a path."""
    return name.startswith(".") or name == "__MACOSX"


def _list_zip(path: Path) -> Iterator[tuple[str, FileRef]]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is not a readable zip, as when a download was cut off: {error}; fetch it again"
        ) from error
    for entry in entries:
        check_entry(path, entry)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: member {entry.filename!r} is not stored or deflated")
        if not entry.is_dir() and not is_hidden(entry.filename):
            member = (entry.header_offset, entry.compress_size, entry.CRC, entry.compress_type)
            yield entry.filename, FileRef(str(path), entry.file_size, member)
