"""A user's image files, in a directory, a zip, or a directory with zips in it, read by path."""

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from xmcgan.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_FILE_BYTES = 256 * 1024**2  # a zip entry that unpacks to more is taken for a bomb


def is_hidden(path: str) -> bool:
    """Tell the files that archivers and desktops leave behind from the user's own."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(path).parts)


def check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    """Refuse a zip member that points outside the archive or is encrypted.

    Raises:
        DataError: names the archive and the member.
    """
    parts = PurePosixPath(entry.filename.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename.split("/")[0]:
        raise DataError(f"{archive}: entry {entry.filename!r} points outside the archive")
    if entry.flag_bits & 1:
        raise DataError(f"{archive}: entry {entry.filename!r} is encrypted")


class ImageStore:
    """Read files by their path relative to the source; nothing is ever extracted to disk.

    Args:
        source: a directory (its own files, and the entries of zips at its top) or a zip.

    Raises:
        DataError: no such source, a zip that is damaged, encrypted or has entries that point
            outside, or the same path twice.
    """

    def __init__(self, source: Path):
        self._sizes: dict[str, int] = {}
        self._places: dict[str, Path | zipfile.ZipFile] = {}
        self.source = source
        if source.is_dir():
            for path in sorted(source.rglob("*")):
                if path.is_file() and path.suffix.lower() != ".zip":
                    self._add(path.relative_to(source).as_posix(), path.stat().st_size, path)
            for path in sorted(source.glob("*.zip")):
                self._add_zip(path)
        elif zipfile.is_zipfile(source):
            self._add_zip(source)
        elif source.exists():
            raise DataError(f"{source} is neither a directory nor a zip file")
        else:
            raise DataError(f"{source} does not exist")

    def _add(self, name: str, size: int, place: Path | zipfile.ZipFile) -> None:
        if is_hidden(name):
            return
        if name in self._places:
            raise DataError(f"{self.source}: the name {name!r} occurs twice")
        self._sizes[name], self._places[name] = size, place

    def _add_zip(self, path: Path) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path} is not a readable zip: {error}") from error
        for entry in archive.infolist():
            check_entry(path, entry)
            if not entry.is_dir():
                self._add(entry.filename, entry.file_size, archive)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def images(self) -> Iterator[str]:
        """Yield the paths of all files that are named like images, sorted."""
        return (n for n in sorted(self._places) if n.lower().endswith(IMAGE_SUFFIXES))

    def find(self, file_name: str) -> list[str]:
        """Return the paths, in any folder, of the files called `file_name`."""
        return [n for n in sorted(self._places) if PurePosixPath(n).name == file_name]

    def size(self, name: str) -> int:
        """Return the length of a file in bytes."""
        return self._sizes[name]

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            DataError: it is too large, its checksum is wrong, or the disk fails.
        """
        place = self._places[name]
        if self._sizes[name] > MAX_FILE_BYTES:
            raise DataError(f"{name} is larger than {MAX_FILE_BYTES // 1024**2} MiB")
        try:
            return place.read_bytes() if isinstance(place, Path) else place.read(name)
        except Exception as error:  # damaged or unsupported entries raise many types
            raise DataError(f"{name} in {self.source} cannot be read: {error}") from error
