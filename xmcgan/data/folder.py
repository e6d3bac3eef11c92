"""A user's own captioned images; and the emoji in `assets/`, which are stored the same way."""

import collections
import re
from pathlib import Path

from xmcgan.data.images import decode_image
from xmcgan.data.readers import JSONL_NAME, USUAL, Columns, read_captions
from xmcgan.data.records import Prepared
from xmcgan.data.shards import Contents, ImageEntry, digest
from xmcgan.data.sources import ImageStore
from xmcgan.errors import DataError
from xmcgan.utils.download import PinnedFile, fault_of
from xmcgan.utils.files import FILES

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

        Captions are those of the file `captions`, whose paths are relative to `source`, or see
        `read_captions`. Zips at the top of a directory count as if they were unpacked there.
        """
        store = ImageStore(source)
        counts: collections.Counter[str] = collections.Counter()
        images = read_captions(store, captions, columns, counts)
        if not images:
            raise DataError(
                f"no captions for any image in {source}: give a {JSONL_NAME}, one .txt per image "
                "with one caption per line, or another form of docs/data.md"
            )
        splits: dict[str, list[ImageEntry]] = {}
        for image in images:
            # Decoded in full: nobody has looked at these images before.
            entry = ImageEntry(store[image.image], image.image, image.captions, check=decode_image)
            splits.setdefault(image.split, []).append(entry)
        counts["images without captions"] = len({*store.images()} - {i.image for i in images})
        rows = ((i.image, store[i.image].size, i.split, i.captions) for i in sorted(images))
        return Contents(splits, {"digest": digest(rows)}, [source], +counts)


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
        if fault := fault_of(EMOJI_ARCHIVE, PinnedFile(EMOJI_ARCHIVE.name, sha256=EMOJI_SHA256)):
            restore = f"git checkout -- assets/{EMOJI_ARCHIVE.name}"
            raise DataError(f"{EMOJI_ARCHIVE} {fault}; restore it with `{restore}`")
        return cls.read(EMOJI_ARCHIVE)


def default_name(source: Path) -> str:
    """Return a data set's name made of its source's: "My photos.zip" gives "My_photos"."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", source.resolve().stem).strip("_-")
    return stem or "images"
