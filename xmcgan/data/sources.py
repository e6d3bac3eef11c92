"""Images and captions where users have them: in directories and zips, read without extracting."""

import collections
import contextlib
import functools
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xmcgan.errors import DataError, listed

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_FILE_BYTES = 256 * 1024**2  # a zip member that unpacks to more is taken for a bomb
MAX_CAPTION_CHARS = 2_000  # a page of text; what a tokenizer cuts is far shorter


class FileRef(NamedTuple):
    """The place of one file; small, and can be sent to another process."""

    path: str  # of the file itself, or of the zip that holds it
    size: int
    member: str | None = None  # its path in the zip or tar; of a Parquet file, the column
    position: int = 0  # in a tar, its first byte; in a Parquet file, the row

    @property
    def name(self) -> str:
        return (self.member or self.path).rpartition("/")[2]

    @property
    def where(self) -> str:
        return self.path if self.member is None else f"{self.member} in {self.path}"

    def read(self) -> bytes:
        """Return the bytes of the file."""
        if self.size > MAX_FILE_BYTES:
            raise DataError(f"{self.where} is larger than {MAX_FILE_BYTES // 1024**2} MiB")
        try:
            return self.load()
        except Exception as error:  # damaged or unsupported zip members raise many types
            raise DataError(f"{self.where} cannot be read: {error}") from error

    def load(self) -> bytes:
        """Return the bytes; raises what it meets."""
        if self.member is None:
            return Path(self.path).read_bytes()
        return _open_zip(self.path, os.stat(self.path).st_mtime_ns).read(self.member)


@functools.lru_cache(maxsize=16)
def _open_zip(path: str, changed: int) -> zipfile.ZipFile:
    """Open a zip once per process: the directory of a large one takes a second to read."""
    del changed  # the key of the cache; a zip that was replaced is opened again
    return zipfile.ZipFile(path)


def list_files(sources: Iterable[Path]) -> Iterator[tuple[str, FileRef]]:
    """Yield each file's path within its source, with "/", and its place.

    A source is a directory (its files, then the members of zips at its top), a zip, or a file.
    """
    for source in sources:
        if source.is_dir():
            yield from _walk(source)
            for path in sorted(source.glob("*.zip")):
                yield from _list_zip(path)
        elif source.is_file() and _is_zip(source):
            yield from _list_zip(source)
        elif source.is_file():
            yield source.name, FileRef(str(source), source.stat().st_size)
        else:
            raise DataError(f"{source} does not exist")


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip" or zipfile.is_zipfile(path)


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
        check_member(path, member.filename)
        if member.flag_bits & 1:
            raise DataError(f"{path}: member {member.filename!r} is encrypted")
        if not member.is_dir() and not _is_litter(member.filename):
            yield member.filename, FileRef(str(path), member.file_size, member.filename)


def check_member(archive: Path | str, member: str) -> None:
    """Refuse a member of a zip or tar that would be outside it."""
    parts = PurePosixPath(member.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in member.split("/")[0]:
        raise DataError(f"{archive}: member {member!r} points outside the archive")


class ImageStore(dict[str, FileRef]):
    """The files of a directory, zip, tar or Parquet file by their path, which must be unique."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        known = source.suffix.lower() in (".tar", ".parquet")
        if source.is_file() and not known and not _is_zip(source):
            raise DataError(f"{source} is neither a directory nor a zip, tar or Parquet file")
        self.source = source
        for name, ref in list_files([source]):
            if name in self:
                raise DataError(f"{source}: the name {name!r} occurs twice")
            self[name] = ref

    def read(self, name: str) -> bytes:
        """Return the bytes of a file."""
        return self[name].read()

    def images(self) -> list[str]:
        """Return the paths of all files that are named like images, sorted."""
        return [name for name in sorted(self) if name.lower().endswith(IMAGE_SUFFIXES)]


def _caption_fault(text: str, max_chars: int = MAX_CAPTION_CHARS) -> str:
    """Return why a caption cannot be used, in words after "a caption"; empty for a good one."""
    start = f"{text[:40]!r}"
    if "\0" in text:
        return f"has a NUL character: {start}"
    if len(text) > max_chars:
        return f"has {len(text):,} characters, more than the {max_chars:,} allowed: {start}..."
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return f"is not valid Unicode: {start}"
    return ""


def clean_captions(
    texts: Sequence[str],
    where: str,
    counts: collections.Counter[str] | None = None,
    *,
    may_be_none: bool = False,
) -> tuple[str, ...]:
    """Strip a user's captions, and return those with words; empty ones are counted."""
    kept = tuple(filter(None, (text.strip() for text in texts)))
    for fault in filter(None, map(_caption_fault, kept)):
        raise DataError(f"{where}: a caption {fault}")
    if not kept and not may_be_none:
        raise DataError(f"{where}: every caption is empty or white space")
    if counts is not None:
        counts["empty captions dropped"] += len(texts) - len(kept)
    return kept


def clean_caption(text: str, max_chars: int, counts: collections.Counter[str]) -> str:
    """Strip a caption of an official data set; one that cannot be used is counted, and empty."""
    text = text.strip()
    if text and not _caption_fault(text, max_chars):
        return text
    counts["unusable captions dropped" if text else "empty captions dropped"] += 1
    return ""


def find_images(
    sources: Sequence[Path],
    wanted: Mapping[str, str],
    key: Callable[[str], str],
    counts: collections.Counter[str],
) -> dict[str, FileRef]:
    """Find images by id, wherever they are; DataError if more than half are absent.

    Args:
        wanted: the official file name by id, which is preferred if several files have the id.
        key: from a file name's stem to an id; empty for other files.
        counts: of what is left out.
    """
    found: dict[str, FileRef] = {}
    for _, ref in list_files(sources):
        stem, dot, suffix = ref.name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES:
            continue
        image_id = key(stem)
        if image_id not in wanted:
            counts["images without captions"] += 1
        elif image_id not in found or ref.name == wanted[image_id] != found[image_id].name:
            found[image_id] = ref
    absent = [name for image_id, name in wanted.items() if image_id not in found]
    if 2 * len(absent) > len(wanted):
        raise DataError(
            f"{len(absent):,} of the {len(wanted):,} images that the captions name are not in "
            f"{', '.join(map(str, sources))}; is an archive missing?{listed(absent)}"
        )
    counts["images absent"] += len(absent)
    return found
