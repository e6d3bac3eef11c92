"""A user's own captioned images as the data set `folder/NAME`."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from xmcgan.data.caption_files import JSONL_NAME, CaptionedImage, parse_jsonl, read_text_files
from xmcgan.data.image_store import ImageStore
from xmcgan.data.images import decode_image
from xmcgan.errors import DataError, listed


@dataclasses.dataclass(frozen=True)
class FolderData:
    """Hold what was found in a source, before any image is decoded.

    Attributes:
        store: the files.
        entries: images with captions, in the order of the caption file.
        num_uncaptioned: images that no caption names; they are left out.
        num_empty_captions: captions without words; dropped where the image has others.
    """

    store: ImageStore
    entries: list[CaptionedImage]
    num_uncaptioned: int
    num_empty_captions: int

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of images of every split."""
        return dict(collections.Counter(entry.split for entry in self.entries))

    def digest(self) -> str:
        """Return 16 hex digits of paths, file sizes, splits and captions."""
        sha = hashlib.sha256()
        for e in sorted(self.entries, key=lambda entry: entry.image):
            sha.update(repr((e.image, self.store.size(e.image), e.split, e.captions)).encode())
        return sha.hexdigest()[:16]


def _from_jsonl(source: Path, captions: Path | None) -> tuple[ImageStore, bytes, str]:
    """Return the files, and the caption file's bytes and name (empty where there is none)."""
    if captions is not None:
        if not captions.is_file():
            raise DataError(f"no caption file at {captions}")
        return ImageStore(source), captions.read_bytes(), str(captions)
    store = ImageStore(source)
    found = store.find(JSONL_NAME)
    if len(found) > 1:
        raise DataError(f"{source} has several {JSONL_NAME}: {', '.join(found)}; name one")
    if not found:
        return store, b"", ""
    return store, store.read(found[0]), found[0]


def _locate(entries: list[CaptionedImage], base: str, store: ImageStore) -> list[CaptionedImage]:
    """Replace paths relative to the caption file by paths of the store."""
    located, missing = [], []
    for entry in entries:
        beside = (PurePosixPath(base) / entry.image).as_posix()
        path = beside if beside in store else entry.image
        if path not in store:
            missing.append(entry.image)
        located.append(dataclasses.replace(entry, image=path))
    if missing:
        raise DataError(
            f"captions name {len(missing)} images that are not in {store.source}:{listed(missing)}"
        )
    return located


def read_folder(source: Path | str, captions: Path | str | None = None) -> FolderData:
    """Read a source's file list and captions; images are not opened yet.

    Args:
        source: a directory or a zip. Captions are looked for in `captions.jsonl` inside it (in
            any folder; image paths are relative to it), else in one .txt per image. Zips at the
            top of a directory count as if they were unpacked there.
        captions: a JSON-lines file elsewhere; its paths are relative to `source`.

    Returns:
        The files and captions.

    Raises:
        DataError: for every fault of files or captions, naming file and line.
    """
    store, data, file = _from_jsonl(Path(source), Path(captions) if captions else None)
    if file:
        entries, dropped = parse_jsonl(data, file)
        base = "" if captions else PurePosixPath(file).parent.as_posix()
        entries = _locate(entries, base, store)
    else:
        entries, dropped = read_text_files(store)
    if not entries:
        raise DataError(
            f"no captions for any image in {source}: give a {JSONL_NAME}, or one .txt per image "
            "with a caption a line"
        )
    repeated = [n for n, k in collections.Counter(e.image for e in entries).items() if k > 1]
    if repeated:
        raise DataError(f"captions name the same image twice:{listed(repeated)}")
    uncaptioned = len(set(store.images()) - {entry.image for entry in entries})
    return FolderData(store, entries, uncaptioned, dropped)


def check_images(data: FolderData, *, progress: bool = False) -> None:
    """Decode every captioned image fully.

    Raises:
        DataError: naming the images that cannot be used, all of them counted.
    """
    faults = []
    # None: a bar on a terminal, nothing in a file of logs.
    for entry in tqdm(
        data.entries, desc="checking images", unit="img", disable=None if progress else True
    ):
        try:
            decode_image(data.store.read(entry.image), entry.image)
        except DataError as error:
            faults.append(str(error))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(data.entries)} images in {data.store.source} cannot be used; "
            f"mend them or remove their captions:{listed(faults)}"
        )


@dataclasses.dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """Hold the name of a user's data set and what to write into it."""

    data: FolderData


class Folder(tfds.core.GeneratorBasedBuilder):
    """A user's own images, stored as they are, with their captions and splits."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: FolderConfig
    show_progress = False

    def _info(self) -> tfds.core.DatasetInfo:
        data = self.builder_config.data
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "captions": tfds.features.Sequence(tfds.features.Text()),
                    "name": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(
                source=str(data.store.source.resolve()), digest=data.digest()
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {s: self._generate_examples(s) for s in self.builder_config.data.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        data = self.builder_config.data
        entries = [entry for entry in data.entries if entry.split == split]
        bar = tqdm(
            entries,
            desc=f"writing {split}",
            unit="img",
            disable=None if self.show_progress else True,
        )
        for entry in bar:
            image = data.store.read(entry.image)
            captions = list(entry.captions)
            yield entry.image, {"image": image, "captions": captions, "name": entry.image}
