"""Files in directories and zips: found by name, read one at a time, never extracted."""

import contextlib
import functools
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xmcgan.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_FILE_BYTES = 256 * 1024**2  # a zip member that unpacks to more is taken for a bomb


class FileRef(NamedTuple):
    """The place of one file; small, and can be sent to another process.

    Attributes:
        path: the file itself, or the zip that holds it.
        size: in bytes.
        member: name in the zip, if it is in one.
    """

    path: str
    size: int
    member: str | None = None

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            DataError: it is too large, damaged, or cannot be read.
        """
        where = self.path if self.member is None else f"{self.member} in {self.path}"
        if self.size > MAX_FILE_BYTES:
            raise DataError(f"{where} is larger than {MAX_FILE_BYTES // 1024**2} MiB")
        try:
            if self.member is None:
                return Path(self.path).read_bytes()
            return _open_zip(self.path, os.stat(self.path).st_mtime_ns).read(self.member)
        except Exception as error:  # damaged or unsupported zip members raise many types
            raise DataError(f"{where} cannot be read: {error}") from error


@functools.lru_cache(maxsize=16)
def _open_zip(path: str, changed: int) -> zipfile.ZipFile:
    """Open a zip once per process: the directory of a large one takes a second to read."""
    del changed  # the key of the cache; a zip that was replaced is opened again
    return zipfile.ZipFile(path)


def list_files(sources: Iterable[Path]) -> Iterator[tuple[str, FileRef]]:
    """Yield each file's path within its source, with "/", and its place.

    Args:
        sources: directories (their files, then the members of zips at their top), zips, or single
            files.

    Raises:
        DataError: no such source, or a zip that is truncated, damaged, encrypted, or has members
            that point outside it.
    """
    for source in sources:
        if source.is_dir():
            yield from _walk(source)
            for path in sorted(source.glob("*.zip")):
                yield from _list_zip(path)
        elif source.is_file() and (source.suffix.lower() == ".zip" or zipfile.is_zipfile(source)):
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
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            within = os.path.relpath(path, root).replace(os.sep, "/")
            if _is_litter(within) or name.lower().endswith((".zip", ".part")):
                continue
            with contextlib.suppress(FileNotFoundError):  # a link to nothing
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield within, FileRef(path, status.st_size)


def _is_litter(path: str) -> bool:
    """Return whether a file is one that archivers and desktops leave behind."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def _list_zip(path: Path) -> Iterator[tuple[str, FileRef]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(
            f"{path} is not a readable zip, as when a download was cut off: {error}; fetch it again"
        ) from error
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename.split("/")[0]:
            raise DataError(f"{path}: member {member.filename!r} points outside the zip")
        if member.flag_bits & 1:
            raise DataError(f"{path}: member {member.filename!r} is encrypted")
        if not member.is_dir() and not _is_litter(member.filename):
            yield member.filename, FileRef(str(path), member.file_size, member.filename)


class ImageStore:
    """The files of a directory or zip by their path in it.

    Args:
        source: a directory (its own files, and the members of zips at its top) or a zip.

    Raises:
        DataError: as of `list_files`, or the same path twice.
    """

    def __init__(self, source: Path) -> None:
        if source.is_file() and source.suffix.lower() != ".zip" and not zipfile.is_zipfile(source):
            raise DataError(f"{source} is neither a directory nor a zip file")
        self.source = source
        self._files: dict[str, FileRef] = {}
        for name, ref in list_files([source]):
            if name in self._files:
                raise DataError(f"{source}: the name {name!r} occurs twice")
            self._files[name] = ref

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> FileRef:
        return self._files[name]

    def images(self) -> list[str]:
        """Return the paths of all files that are named like images, sorted."""
        return [name for name in sorted(self._files) if name.lower().endswith(IMAGE_SUFFIXES)]

    def find(self, file_name: str) -> list[str]:
        """Return the paths, in any folder, of the files called `file_name`."""
        return [name for name in sorted(self._files) if name.rpartition("/")[2] == file_name]

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            DataError: as of `FileRef.read`.
        """
        return self._files[name].read()
