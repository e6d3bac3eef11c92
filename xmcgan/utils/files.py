"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside `path` that takes its place when the block ends well.

    A reader, and whoever comes after a crash, finds the old file or the new one. Where the block
    fails, nothing is left; what a killed process leaves, `clear_leftovers` removes.

    Args:
        path: in a folder that exists.

    Yields:
        The file, for bytes.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text as an `atomic_file`, in UTF-8."""
    with atomic_file(path) as file:
        file.write(text.encode())


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of files that never appeared.

    Args:
        folder: in which nobody writes such a file now.
        name: of the file, or a pattern.
    """
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
