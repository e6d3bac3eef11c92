"""Arrays in .npz files that appear whole or not at all."""

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from xmcgan.errors import EvaluationError
from xmcgan.utils.files import atomic_file


def check_writable(path: Path) -> None:
    """Fail now, not after hours of work, where a file could not be written.

    Raises:
        EvaluationError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise EvaluationError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}: {path.parent}") from None


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays; a file of this name is replaced only by a complete one.

    Raises:
        EvaluationError: the file cannot be written.
    """
    try:
        with atomic_file(path) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise EvaluationError(f"cannot write {path}: {error.strerror}") from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; nothing in it is run.

    Raises:
        EvaluationError: the file is missing, damaged, or holds Python objects.
    """
    try:
        # np.load alone would take a single array, or text, for something else.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # damaged archives and headers raise many types
        raise EvaluationError(f"{path} cannot be read as .npz: {error}") from None
