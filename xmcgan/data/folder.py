"""A user's own captioned images; and the emoji in `assets/`, which are stored the same way."""

import collections
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from xmcgan.data.images import decode_image
from xmcgan.data.readers import (
    TABLES,
    USUAL,
    Columns,
    collect,
    read_parquet,
    read_table,
    read_tables,
    read_tars,
)
from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents, ImageEntry, digest
from xmcgan.data.sources import CaptionedImage, ImageStore, parse_jsonl, read_text_files
from xmcgan.errors import DataError, listed
from xmcgan.utils.files import FILES

JSONL_NAME = "captions.jsonl"
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")  # of Hugging Face
EMOJI_ARCHIVE = FILES / "assets" / "emoji_64.zip"
# Scores are comparable only if everyone trains on the same images, captions and splits.
EMOJI_SHA256 = "d8951ef17e4711202ad42e6d038165a62283cda34410e43791ea275e05cb27c0"


class Folder(Prepared):
    """A user's own images, stored as they are, with their captions and splits."""

    name = "folder"
    source_flags = "--source DIR_OR_ZIP"

    @classmethod
    def read(cls, source: Path, captions: Path | None = None, columns: Columns = USUAL) -> Contents:
        """Read the file list and captions of a source; images are not opened yet.

        Captions are those of the file `captions` (JSON lines, CSV, TSV), whose paths are relative
        to `source`; else of the first form that is there: `captions.jsonl`, whose paths are
        relative to it; Hugging Face's metadata; WebDataset tars; one .txt per image; CSV or TSV;
        Parquet. Zips at the top of a directory count as if they were unpacked there.
        """
        store = ImageStore(source)
        images, num_empty = _read_captions(store, captions, columns)
        if not images:
            raise DataError(
                f"no captions for any image in {source}: give a {JSONL_NAME}, one .txt per image "
                "with one caption per line, or another form of docs/data.md"
            )
        repeated = [n for n, k in collections.Counter(i.image for i in images).items() if k > 1]
        if repeated:
            raise DataError(f"captions name the same image twice:{listed(repeated)}")
        splits: dict[str, list[ImageEntry]] = {}
        for image in images:
            # Decoded in full: nobody has looked at these images before.
            entry = ImageEntry(store[image.image], image.image, image.captions, check=decode_image)
            splits.setdefault(image.split, []).append(entry)
        num_without = len({*store.images()} - {i.image for i in images})
        left_out = +collections.Counter(
            {"images without captions": num_without, "empty captions dropped": num_empty}
        )
        rows = ((i.image, store[i.image].size, i.split, i.captions) for i in sorted(images))
        return Contents(splits, {"digest": digest(rows)}, [source], left_out)


class Emoji(Folder):
    """Emoji of 64 x 64 pixels on white; the captions are made of their names and keywords.

    Captions speak of left and right, and flags have a left and a right: train with `flip` off.
    """

    name = "emoji"
    source_flags = ""

    @classmethod
    def embedded(cls, variant: str) -> Contents | None:
        """Return all images and captions."""
        if variant not in ("", "default"):
            return None
        restore = f"restore it with `git checkout -- assets/{EMOJI_ARCHIVE.name}`"
        try:
            sha256 = hashlib.sha256(EMOJI_ARCHIVE.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {EMOJI_ARCHIVE}: {error.strerror}; {restore}") from error
        if sha256 != EMOJI_SHA256:
            raise DataError(
                f"{EMOJI_ARCHIVE} is damaged or from another version: its sha256 begins with "
                f"{sha256[:12]}, not with {EMOJI_SHA256[:12]}; {restore}"
            )
        return cls.read(EMOJI_ARCHIVE)


def default_name(source: Path) -> str:
    """Return a data set's name made of its source's: "My photos.zip" gives "My_photos"."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", source.resolve().stem).strip("_-")
    return stem or "images"


def _read_captions(
    store: ImageStore, captions: Path | None, columns: Columns
) -> tuple[list[CaptionedImage], int]:
    """Return images with captions, by path in the store, and how many captions were empty."""
    if captions is not None:
        if not captions.is_file():
            raise DataError(f"no caption file at {captions}")
        if captions.suffix.lower() in TABLES:
            rows = read_table(captions.read_bytes(), captions.name)
            return collect(rows, store, captions.name, columns)
        images, num_empty = parse_jsonl(captions.read_bytes(), str(captions))
        return _locate(images, "", store), num_empty
    found = sorted(name for name, ref in store.items() if ref.name == JSONL_NAME)
    if len(found) > 1:
        raise DataError(f"{store.source} has several {JSONL_NAME}: {', '.join(found)}; name one")
    if found:
        images, num_empty = parse_jsonl(store.read(found[0]), found[0])
        return _locate(images, found[0].rpartition("/")[0], store), num_empty
    if metadata := [name for name in sorted(store) if store[name].name in METADATA_NAMES]:
        return read_tables(store, metadata, columns)
    if tars := _named(store, ".tar"):  # beside which img2dataset leaves Parquet without images
        return read_tars(store, tars)
    images, num_empty = read_text_files(store)
    if not images and (tables := _named(store, *TABLES)):
        return read_tables(store, tables, columns)
    if not images and (tables := _named(store, ".parquet")):
        return read_parquet(store, tables, columns)
    return images, num_empty


def _named(store: ImageStore, *suffixes: str) -> list[str]:
    return [name for name in sorted(store) if name.lower().endswith(suffixes)]


def _locate(images: Sequence[CaptionedImage], base: str, store: ImageStore) -> list[CaptionedImage]:
    """Replace paths relative to the caption file by paths in the store."""
    located, missing = [], []
    for image in images:
        beside = (PurePosixPath(base) / image.image).as_posix()
        path = beside if beside in store else image.image
        if path not in store:
            missing.append(image.image)
        located.append(CaptionedImage(path, image.split, image.captions))
    if missing:
        raise DataError(
            f"captions name {len(missing)} images that are not in {store.source}:{listed(missing)}"
        )
    return located
