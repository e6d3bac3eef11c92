"""Preparation of data sets: build once, leave nothing half-written, say what was done."""

import contextlib
import fcntl
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from xmcgan.data.folder import Folder, FolderConfig, FolderData, check_images, read_folder
from xmcgan.data.shapes import Shapes, ShapesConfig
from xmcgan.data.sources import dataset_dir, find_version, is_prepared
from xmcgan.errors import DataError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@contextlib.contextmanager
def _alone(name: str, data_dir: Path | str) -> Iterator[None]:
    """Let one process at a time prepare a data set; a second waits, then finds it there."""
    root = dataset_dir(name, data_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise DataError(f"cannot write to {root}: {error}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Silence TFDS's talk of downloads, of which there are none; our own bar is on stderr."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _write(builder: Shapes | Folder) -> None:
    """Write a data set; TFDS works in a folder `incomplete.*` and renames it at the end."""
    final = Path(builder.data_dir)
    for leftover in final.parent.glob(f"incomplete.*_{final.name}"):
        shutil.rmtree(leftover)  # an earlier run was killed here
    if final.exists():  # renamed, so it was complete once
        raise DataError(f"{final} holds a damaged data set; delete it and prepare it again")
    try:
        with tempfile.TemporaryDirectory() as unused:  # TFDS wants a folder for downloads
            builder.download_and_prepare(file_format="array_record", download_dir=unused)
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as RuntimeError
        raise DataError(f"cannot write {final}: {error}") from error


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise DataError(f"the name {name!r} is not made of letters, digits, _ and - only")


def _check_same(builder: Shapes | Folder, recipe: dict[str, Any]) -> None:
    """Refuse to take a prepared data set for another one of the same name."""
    stored = builder.info.metadata or {}
    if any(stored.get(key) != value for key, value in recipe.items()):
        raise DataError(
            f"{builder.data_dir} was prepared from other data: {dict(stored)}, asked: {recipe}; "
            "choose another --name, or delete that folder to replace it"
        )


def prepare_shapes(
    data_dir: Path | str, config: ShapesConfig | None = None, *, progress: bool = False
) -> bool:
    """Draw the `shapes` data set unless it is there already.

    Args:
        data_dir: root of all prepared data sets.
        config: sizes and seed, under a name of its own; the default is `shapes/default`.
        progress: show a progress bar.

    Returns:
        True where the data set was built, False where it was there.

    Raises:
        DataError: the sizes or the seed cannot work, `data_dir` cannot be written, or a data set
            of that name was made with others.
    """
    config = ShapesConfig() if config is None else config
    _check_name(config.name)
    if min(config.num_train, config.num_validation) < 1 or config.seed < 0:
        raise DataError(f"shapes needs at least 1 image a split and a seed >= 0: {config.recipe()}")
    with _alone(f"shapes/{config.name}", data_dir), _quiet_tfds():
        builder = Shapes(data_dir=str(data_dir), config=config)
        builder.show_progress = progress
        if builder.is_prepared():
            _check_same(builder, config.recipe())
            return False
        _write(builder)
    return True


def default_name(source: Path | str) -> str:
    """Return a data set's name made of its source's: "My photos.zip" gives "My_photos"."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).resolve().stem).strip("_-")
    return stem or "images"


def prepare_folder(
    source: Path | str,
    data_dir: Path | str,
    *,
    name: str | None = None,
    captions: Path | str | None = None,
    progress: bool = False,
) -> tuple[bool, str]:
    """Store a user's captioned images as `folder/NAME` unless they are there already.

    Args:
        source: a directory or a zip; see `read_folder`.
        data_dir: root of all prepared data sets.
        name: NAME, of letters, digits, _ and -; by default that of the source.
        captions: a JSON-lines file outside the source.
        progress: show progress bars.

    Returns:
        True where the data set was written, False where it was there; and a line on what the
        source holds.

    Raises:
        DataError: any fault of files, captions or images, or another data set of that name.
    """
    name = default_name(source) if name is None else name
    _check_name(name)
    data = read_folder(source, captions)
    with _alone(f"folder/{name}", data_dir), _quiet_tfds():
        builder = Folder(data_dir=str(data_dir), config=FolderConfig(name=name, data=data))
        builder.show_progress = progress
        if builder.is_prepared():
            _check_same(builder, {"digest": data.digest()})
            return False, _summary(data)
        check_images(data, progress=progress)
        _write(builder)
    return True, _summary(data)


def _summary(data: FolderData) -> str:
    num_captions = sum(len(entry.captions) for entry in data.entries)
    return (
        f"{len(data.entries):,} images with {num_captions:,} captions; "
        f"{data.num_uncaptioned:,} images without captions left out, "
        f"{data.num_empty_captions:,} empty captions dropped"
    )


def ensure_prepared(name: str, data_dir: Path | str, *, progress: bool = False) -> None:
    """Draw `shapes` on first use; for any other data set, check that it is prepared.

    Args:
        name: "shapes" or "folder/NAME".
        data_dir: root of all prepared data sets.
        progress: show a progress bar.

    Raises:
        DataError: a data set that needs a source is not prepared; the message gives the command.
    """
    if name in ("shapes", "shapes/default") and not is_prepared(name, data_dir):
        prepare_shapes(data_dir, progress=progress)
    find_version(name, data_dir)
