"""Files that appear whole or not at all, and locks between processes."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from xmcgan.errors import CheckpointError, UserError, refuse_url

_PACKAGE = Path(__file__).resolve().parents[1]
# Has configs/, scripts/ and assets/: a folder of the wheel, or the checkout.
FILES = _PACKAGE / "_files" if (_PACKAGE / "_files").is_dir() else _PACKAGE.parent

SOFT_LOCKS = "XMCGAN_SOFT_LOCKS"  # set where the file system has no flock


def num_cores() -> int:
    """Return the number of cores that this process may use; of all where the system has no mask."""
    if hasattr(os, "sched_getaffinity"):  # macOS does not have it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def home() -> Path:
    """Return the checkout, or the current directory where the package was installed without."""
    return FILES if (FILES / "pyproject.toml").is_file() else Path.cwd()


@contextlib.contextmanager
def parsing(path: Path | str, error: type[UserError], what: str) -> Iterator[None]:
    """Raise `error` naming `path` if the block cannot read the file or its content is not `what`.

    `what` is a noun with its article: "a list of captions".
    """
    try:
        yield
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from None
    # What parsers raise for other content, and code for fields that are missing or mistyped.
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as cause:
        raise error(f"{path} is not {what}: {cause!r}") from None


def read_json(path: Path, error: type[UserError], what: str) -> Any:
    """Read a JSON file; errors as of `parsing`."""
    with parsing(path, error, what):
        return json.loads(path.read_bytes())


@contextlib.contextmanager
def writing(path: Path | str, error: type[UserError]) -> Iterator[None]:
    """Raise `error` naming `path` if the block cannot write."""
    try:
        yield
    except OSError as cause:
        raise error(f"cannot write to {path}: {cause.strerror or cause}") from None


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that replaces it if the block succeeds.

    A reader, also after a crash, finds the old file or the new one. A block that raises leaves
    nothing; what a killed process leaves, `clear_leftovers` removes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the new name is on the disk only after its folder is
        os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, atomically."""
    with atomic_file(path) as file:
        file.write(text.encode())


def clear_leftovers(folder: Path, name: str = "*") -> None:
    """Remove temporary files of killed processes; nobody may be writing `name` (a pattern) now."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def lock_folder(
    folder: Path, error: type[UserError], *, name: str = ".lock", wait: bool = True
) -> Iterator[None]:
    """Lock `folder`, created if missing, for this process, by the file `name` in it.

    The system releases the lock when its holder ends, however that happens: it cannot go stale.
    Raises `error` if the folder cannot be written, has no locks or (`wait=False`) is locked.
    """
    refuse_url(str(folder), error)
    with writing(folder, error):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+", encoding="utf-8")
    if os.environ.get(SOFT_LOCKS):
        file.close()
        with _soft_lock(folder / f"{name}.soft", error, wait):
            yield
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise error(
                f"{folder} is in use by process {file.read().strip() or 'unknown'}. Wait until it "
                "ends, stop it, or use another folder."
            ) from None
        except OSError as cause:
            raise error(
                f"{folder} is on a file system without locks ({cause.strerror}). Use another "
                f"folder, or set {SOFT_LOCKS}=1: a file is the lock, which a killed process leaves."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _soft_lock(path: Path, error: type[UserError], wait: bool) -> Iterator[None]:
    """Lock by the existence of a file; one who is killed leaves it, and the message says which."""
    while True:
        try:
            file = path.open("x", encoding="utf-8")
            break
        except FileExistsError:
            if not wait:
                raise error(
                    f"{path.parent} is in use by process {_read_soft_lock(path)}. Wait until it "
                    f"ends, or delete {path} if it is no more."
                ) from None
            time.sleep(0.2)
    try:
        with file:
            file.write(f"{os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        path.unlink(missing_ok=True)


def _read_soft_lock(path: Path) -> str:
    try:
        return path.read_text("utf-8") or "unknown"
    except FileNotFoundError:
        return ""


def lock_workdir(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock a workdir; a second process is refused with a CheckpointError and does not wait."""
    return lock_folder(workdir, CheckpointError, wait=False)


def require_shared(workdir: Path) -> None:
    """Raise a CheckpointError if process 0's workdir is not there."""
    if not workdir.exists():
        raise CheckpointError(
            f"{workdir}, made by process 0, is not there: all processes need one workdir, on a "
            "file system that they share"
        )


def lock_holder(folder: Path) -> str:
    """Return the id of the process that holds the lock of `folder`, or an empty string."""
    if holder := _read_soft_lock(folder / ".lock.soft"):
        return holder
    path = folder / ".lock"
    if not path.exists():
        return ""
    with path.open(encoding="utf-8") as file:
        try:
            # Shared, so that two who ask at once do not take each other for the holder.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return ""
