"""Preparation of data sets: build once, leave nothing half-written, say what was done."""

import collections
import contextlib
import functools
import io
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from xmcgan.data import coco, downloads
from xmcgan.data import localized_narratives as ln
from xmcgan.data.emoji import Emoji, read_emoji
from xmcgan.data.folder import Folder, FolderConfig, FolderData, check_images, read_folder
from xmcgan.data.official import (
    MAX_WORKERS,
    Coco,
    LnCoco,
    LnOpenImages,
    OfficialBuilder,
    OfficialConfig,
    OfficialData,
)
from xmcgan.data.sources import dataset_dir, find_version, is_prepared, list_splits
from xmcgan.errors import DataError
from xmcgan.shapes.dataset import STANDARD, Shapes, ShapesConfig
from xmcgan.shapes.scene import MAX_OBJECTS
from xmcgan.utils.files import lock_folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_OVERHEAD = 1.05  # of a prepared data set over its images, at most

OFFICIAL: dict[str, type[OfficialBuilder]] = {
    "coco": Coco,
    "ln_coco": LnCoco,
    "ln_open_images": LnOpenImages,
}


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


def _write(builder: Shapes | Folder | OfficialBuilder) -> None:
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


def _check_same(builder: Shapes | Folder | OfficialBuilder, recipe: dict[str, Any]) -> None:
    """Refuse to take a prepared data set for another one of the same name."""
    metadata = builder.info.metadata or {}
    stored = {key: metadata.get(key) for key in recipe}
    if stored != recipe:
        raise DataError(
            f"{builder.data_dir} was prepared from other data: {stored}, asked: {recipe}; "
            "choose another --name, or delete that folder to replace it"
        )


def _prepare(
    builder_class: type[Shapes | Folder | OfficialBuilder],
    config: Any,
    data_dir: Path | str,
    recipe: dict[str, Any],
    *,
    progress: bool,
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Write a data set unless it is there already, and return whether it was written.

    Args:
        builder_class: of the data set.
        config: of the builder; its name is the data set's.
        data_dir: root of all prepared data sets.
        recipe: what must be the same in a data set that is there.
        progress: show progress bars.
        check: raises `DataError` if the data cannot be written.
    """
    with (
        lock_folder(dataset_dir(f"{builder_class.name}/{config.name}", data_dir), DataError),
        _quiet_tfds(),
    ):
        builder = builder_class(data_dir=str(data_dir), config=config)
        builder.show_progress = progress
        if builder.is_prepared():
            _check_same(builder, recipe)
            return False
        check()
        _write(builder)
    return True


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
    if not 1 <= config.max_objects <= MAX_OBJECTS:
        raise DataError(f"max_objects is {config.max_objects}: it must be from 1 to {MAX_OBJECTS}")
    return _prepare(Shapes, config, data_dir, config.recipe(), progress=progress)


def prepare_emoji(data_dir: Path | str, *, progress: bool = False) -> bool:
    """Store the `emoji` data set of the checkout unless it is there already.

    Args:
        data_dir: root of all prepared data sets.
        progress: show progress bars.

    Returns:
        True if the data set was written, False if it was there.

    Raises:
        DataError: the file in `assets/` is missing or damaged, or `data_dir` cannot be written.
    """
    data = read_emoji()
    config = FolderConfig(name="default", data=data)
    return _prepare(Emoji, config, data_dir, {"digest": data.digest()}, progress=progress)


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
    built = _prepare(
        Folder,
        FolderConfig(name=name, data=data),
        data_dir,
        {"digest": data.digest()},
        progress=progress,
        check=lambda: check_images(data, progress=progress),
    )
    return built, _summary(data)


def _summary(data: FolderData) -> str:
    num_captions = sum(len(entry.captions) for entry in data.entries)
    return (
        f"{len(data.entries):,} images with {num_captions:,} captions; "
        f"{data.num_uncaptioned:,} images without captions left out, "
        f"{data.num_empty_captions:,} empty captions dropped"
    )


def read_official(
    dataset: str, sources: Sequence[Path], *, year: str = "", karpathy: Path | None = None
) -> OfficialData:
    """Read captions and find images of one of the paper's data sets.

    Args:
        dataset: "coco", "ln_coco" or "ln_open_images".
        sources: directories or zips, in the official layout or another.
        year: of COCO's captions; see `coco.read_coco`.
        karpathy: a file of COCO's splits; see `coco.read_coco`.

    Raises:
        DataError: for every fault of files or captions.
    """
    if dataset == "coco":
        return coco.read_coco(sources, year=year, karpathy=karpathy)
    return ln.read_narratives(sources, ln.COCO if dataset == "ln_coco" else ln.OPEN_IMAGES)


def download_official(dataset: str, directory: Path, *, progress: bool = False) -> Path:
    """Fetch the official files of one of the paper's data sets.

    Args:
        dataset: "coco", "ln_coco" or "ln_open_images".
        directory: where downloads are kept, a folder of it for each data set.
        progress: show bars.

    Returns:
        The folder, which can be read as a source.

    Raises:
        DataError: see `downloads.download`.
    """
    folder = directory / dataset
    if dataset == "coco":
        downloads.download(coco.ARCHIVES, folder, progress=progress)
        return folder
    edition = ln.COCO if dataset == "ln_coco" else ln.OPEN_IMAGES
    downloads.download((*edition.narratives, *edition.images), folder, progress=progress)
    if edition is ln.OPEN_IMAGES:
        for split, images in ln.read_texts([folder], edition, collections.Counter()).items():
            urls = (f"{ln.OPEN_IMAGES_HOST}/{split}/{i}.jpg" for i in images)
            downloads.download_images(urls, folder / split, progress=progress)
    return folder


def prepare_official(
    dataset: str,
    data: OfficialData,
    data_dir: Path | str,
    *,
    name: str = "default",
    num_workers: int = 0,
    skip_damaged: bool = False,
    progress: bool = False,
) -> bool:
    """Store one of the paper's data sets unless it is there already.

    Args:
        dataset: "coco", "ln_coco" or "ln_open_images".
        data: what `read_official` found.
        data_dir: root of all prepared data sets.
        name: to keep several side by side, as DATASET/NAME.
        num_workers: processes that write; 0 takes as many as there are cores, at most
            `MAX_WORKERS`.
        skip_damaged: leave out images that cannot be decoded, and count them.
        progress: show a progress bar.

    Returns:
        True where the data set was written, False where it was there.

    Raises:
        DataError: no images, damaged ones, too little disk, or other data of that name.
    """
    _check_name(name)
    if not data.splits:
        raise DataError("no image with captions was found")
    config = OfficialConfig(
        name=name,
        data=data,
        num_workers=num_workers or min(len(os.sched_getaffinity(0)), MAX_WORKERS),
        skip_damaged=skip_damaged,
    )
    return _prepare(
        OFFICIAL[dataset],
        config,
        data_dir,
        {"digest": data.digest()},
        progress=progress,
        check=lambda: downloads.check_free(Path(data_dir), int(data.num_bytes * _OVERHEAD)),
    )


def official_summary(dataset: str, data: OfficialData, name: str, data_dir: Path | str) -> str:
    """Return the counts of a prepared data set beside the published ones, and its size."""
    full_name = f"{dataset}/{name}"
    directory = find_version(full_name, data_dir)
    splits = list_splits(full_name, data_dir)
    lines = []
    for split, num in splits.items():
        entries = data.splits.get(split, ())
        num_captions = sum(len(entry.captions) for entry in entries)
        what = f"narratives of {len(entries):,} images"
        what = what if data.narratives else f"images with {num_captions:,} captions"
        published = f" (published: {data.published[split]:,})" if split in data.published else ""
        lines.append(f"  {split:<12}{num:>9,} {what}{published}")
    if splits == dict(data.published):
        lines.append("  these are the full published data")
    else:
        lines.append("  not the published numbers: a part of the data, or another release")
    left_out = json.loads((directory / "metadata.json").read_bytes()).get("left_out", {})
    lines += [f"  left out    {num:>9,} {reason}" for reason, num in sorted(left_out.items())]
    size = sum(path.stat().st_size for path in directory.iterdir())
    lines.append(f"  in {directory}, {size / 1e9:,.3f} GB")
    return "\n".join(lines)


# What training and `show` prepare on first use.
EMBEDDED: dict[str, Callable[..., bool]] = {
    **{name: functools.partial(prepare_shapes, config=config) for name, config in STANDARD.items()},
    "emoji": prepare_emoji,
    "emoji/default": prepare_emoji,
}


def ensure_prepared(name: str, data_dir: Path | str, *, progress: bool = False) -> None:
    """Prepare an embedded data set on first use; for any other, check that it is prepared.

    Args:
        name: "emoji", "shapes", "folder/NAME", "coco" and so on.
        data_dir: root of all prepared data sets.
        progress: show a progress bar.

    Raises:
        DataError: a data set that needs a source is not prepared; the message gives the command.
    """
    if name in EMBEDDED and not is_prepared(name, data_dir):
        EMBEDDED[name](data_dir, progress=progress)
    find_version(name, data_dir)
