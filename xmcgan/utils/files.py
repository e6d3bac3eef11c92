"""Files that appear whole or not at all, and locks between processes: on disks and in buckets."""

import contextlib
import fcntl
import functools
import io
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from xmcgan.errors import BUCKET, EXIT_USER_ERROR, CheckpointError, UserError, refuse_url

_PACKAGE = Path(__file__).resolve().parents[1]
# Has configs/, scripts/ and assets/: a folder of the wheel, or the checkout.
FILES = _PACKAGE / "_files" if (_PACKAGE / "_files").is_dir() else _PACKAGE.parent

SOFT_LOCKS = "XMCGAN_SOFT_LOCKS"  # set where the file system has no flock
# The holder of a lock in a bucket renews it; another one takes it over when it is not renewed.
_RENEW_SECONDS, _EXPIRE_SECONDS = 20.0, 90.0


def num_cores() -> int:
    """Return the number of cores that this process may use; of all where the system has no mask."""
    if hasattr(os, "sched_getaffinity"):  # macOS does not have it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def home() -> Path:
    """Return the checkout, or the current directory where the package was installed without."""
    return FILES if (FILES / "pyproject.toml").is_file() else Path.cwd()


def path_of(text: str) -> Path:
    """Return the path that a flag or a setting names: on this machine, or gs://BUCKET/FOLDER.

    Raises UserError for another scheme, a missing package, and a bucket that cannot be read.
    """
    if not text.startswith(BUCKET):
        refuse_url(text)
        return Path(text)
    bucket, _, folder = text.removeprefix(BUCKET).partition("/")
    if not folder.strip("/"):
        raise UserError(f"{text}: name a folder of the bucket, such as {BUCKET}{bucket}/run")
    _check_bucket(bucket)
    from etils import epath

    path: Any = epath.Path(text.rstrip("/"))  # has the methods of `Path` that are used here
    return path


@functools.cache
def _check_bucket(bucket: str) -> None:
    os.environ.setdefault("EPATH_USE_TF", "false")  # etils would import TensorFlow if it is there
    try:
        from fsspec import config, get_filesystem_class

        names = get_filesystem_class("gcs").protocol
    except ImportError:
        text = f"{BUCKET}{bucket}: buckets need a missing package: pip install gcsfs"
        raise UserError(text) from None
    for name in names:  # else what other machines write is never seen
        config.conf.setdefault(name, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # a traceback per error, raised anyway
    try:
        # Not `exists`: it wants more rights than those for objects, and says less.
        _bucket_files().call("GET", "b/{}/o", bucket, maxResults=1)
    except FileNotFoundError:
        raise UserError(f"{BUCKET}{bucket}: there is no such bucket") from None
    except Exception as error:  # of the network, of the account, ...
        raise UserError(
            f"{BUCKET}{bucket} cannot be read: {error}. The account is that of `gcloud auth "
            "application-default login`, or of this virtual machine."
        ) from None


def _bucket_files() -> Any:
    import fsspec

    return fsspec.filesystem("gcs")


def is_in_bucket(path: Path) -> bool:
    """Whether `path_of` made the path of a URL."""
    return "://" in str(path)


@contextlib.contextmanager
def errors_of_bucket(path: Path) -> Iterator[None]:
    """Name a path in a bucket that has vanished, or that network or account do not reach."""
    try:
        yield
    except Exception as error:  # of many kinds
        raise CheckpointError(f"{path} cannot be reached: {error}") from error


def absolute(path: Path) -> Path:
    """Return the absolute path; one in a bucket is."""
    return path if is_in_bucket(path) else path.absolute()


def remove_tree(folder: Path) -> None:
    """Remove a folder as far as that is possible."""
    if is_in_bucket(folder):
        remote: Any = folder
        remote.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def local_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder for libraries that write to disks only: `folder`, unless it is in a bucket.

    Then it is a temporary one, whose files go to the bucket when the block ends.
    """
    if not is_in_bucket(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="xmcgan-") as temporary:
        yield Path(temporary)
        for path in filter(Path.is_file, Path(temporary).rglob("*")):
            with atomic_file(folder / path.relative_to(temporary)) as file:
                file.write(path.read_bytes())


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
    if is_in_bucket(path):
        content = io.BytesIO()
        yield content
        with errors_of_bucket(path):
            path.write_bytes(content.getvalue())
        return
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
    if is_in_bucket(folder):
        with _lock_in_bucket(folder / f"{name}.soft", error, wait):
            yield
        return
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


@contextlib.contextmanager
def _lock_in_bucket(path: Path, error: type[UserError], wait: bool) -> Iterator[None]:
    """Lock by an object that its holder keeps renewing, so that the lock of a killed one expires.

    Whoever loses the lock, because it could not renew it for too long, ends at once.
    """
    own = f"{os.getpid()} on {socket.gethostname()} ({secrets.token_hex(4)})"

    def write(**options: Any) -> None:
        text = f"{own}, renewed {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        _bucket_files().pipe_file(str(path), text.encode(), **options)

    found, since = "", time.monotonic()
    while True:
        try:
            write(mode="create")  # fails if it is there
            break
        except FileExistsError:
            before, found = found, _read_soft_lock(path)
        except Exception as cause:
            raise error(f"cannot write to {path.parent}: {cause}") from None
        if found != before:
            if before and found and not wait:
                raise error(f"{path.parent} is in use by process {found}. Wait until it ends.")
            if found and not wait:
                text = (
                    f"{path.parent} is locked by process {found}; waiting to see if it renews that"
                )
                print(text, file=sys.stderr, flush=True)
            since = time.monotonic()
        elif time.monotonic() - since > _EXPIRE_SECONDS:
            path.unlink(missing_ok=True)
        time.sleep(0.2 if wait else 1.0)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEW_SECONDS):
            with contextlib.suppress(Exception):  # of the network: the next one may come through
                if (holder := _read_soft_lock(path)) and not holder.startswith(own):
                    message = f"error: {path.parent} was taken over by process {holder}"
                    print(message, file=sys.stderr, flush=True)
                    os._exit(EXIT_USER_ERROR)
                write()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # it expires
            path.unlink(missing_ok=True)


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
    if (holder := _read_soft_lock(folder / ".lock.soft")) or is_in_bucket(folder):
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
