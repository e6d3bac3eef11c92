"""Captions of images: cleaned, parsed from the user's files, joined with the images they name."""

import collections
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from xmcgan.data.archives import IMAGE_SUFFIXES, FileRef, ImageStore, list_files
from xmcgan.errors import DataError, listed

MAX_CAPTION_CHARS = 2_000  # a page of text; what a tokenizer cuts is far shorter
DEFAULT_SPLIT = "train"

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FIELDS = '{"image": "images/a.jpg", "split": "train", "captions": ["..."]}'


class CaptionedImage(NamedTuple):
    """An image's path, split and captions, as a caption file states them."""

    image: str
    split: str
    captions: tuple[str, ...]


def caption_fault(text: str, max_chars: int = MAX_CAPTION_CHARS) -> str:
    """Return why a caption cannot be used, in words after "a caption"; empty for a good one."""
    if "\0" in text:
        return f"has a NUL character: {text[:40]!r}"
    if len(text) > max_chars:
        return (
            f"has {len(text):,} characters, more than the {max_chars:,} allowed: {text[:40]!r}..."
        )
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return f"is not valid Unicode: {text[:40]!r}"
    return ""


def clean_captions(texts: Sequence[str], where: str) -> tuple[tuple[str, ...], int]:
    """Strip a user's captions; return those that have words, and how many were empty.

    Raises:
        DataError: names `where` (file and line) and the fault; also if no caption is left.
    """
    kept = []
    for text in texts:
        stripped = text.strip()
        if fault := caption_fault(stripped):
            raise DataError(f"{where}: a caption {fault}")
        if stripped:
            kept.append(stripped)
    if not kept:
        raise DataError(f"{where}: every caption is empty or white space")
    return tuple(kept), len(texts) - len(kept)


class CaptionCleaner:
    """Strips the captions of an official data set, and counts those that it drops by reason."""

    def __init__(self, max_chars: int, counts: collections.Counter[str]):
        self._max_chars, self._counts = max_chars, counts

    def __call__(self, text: str) -> str:
        """Return a caption without white space at its ends; empty if it cannot be used."""
        text = text.strip()
        fault = caption_fault(text, self._max_chars) if text else "is empty"
        if fault:
            self._counts["unusable captions dropped" if text else "empty captions dropped"] += 1
        return "" if fault else text


def parse_jsonl(data: bytes, file: str) -> tuple[list[CaptionedImage], int]:
    """Parse JSON lines with `image`, `captions` and optionally `split`.

    Other fields are ignored, as are blank lines.

    Returns:
        The entries in order, and how many empty captions were dropped.

    Raises:
        DataError: names `file` and the line that is broken or repeats an image.
    """
    entries: list[CaptionedImage] = []
    lines: dict[str, int] = {}
    total_dropped = 0
    # Not splitlines: JSON strings may hold U+2028 and its like unescaped.
    for number, line in enumerate(_decode(data, file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        entry, dropped = _parse_line(line, where)
        if entry.image in lines:
            raise DataError(
                f"{where}: image {entry.image!r} already has captions in line "
                f"{lines[entry.image]}; put all captions of an image in one line"
            )
        lines[entry.image] = number
        entries.append(entry)
        total_dropped += dropped
    return entries, total_dropped


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line}: not UTF-8 text ({error.reason})") from error


def _parse_line(line: str, where: str) -> tuple[CaptionedImage, int]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON ({error}); expected {_FIELDS}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: expected a JSON object such as {_FIELDS}")
    image, split = fields.get("image"), fields.get("split", DEFAULT_SPLIT)
    texts = fields.get("captions")
    if not isinstance(image, str) or not image:
        raise DataError(f'{where}: "image" must be a path; expected {_FIELDS}')
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f'{where}: "captions" must be a list of strings; expected {_FIELDS}')
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split) or split == "all":
        raise DataError(
            f'{where}: "split" is {split!r}; use letters, digits and _, such as "train" ("all" is '
            "taken)"
        )
    captions, dropped = clean_captions(texts, where)
    return CaptionedImage(PurePosixPath(image).as_posix(), split, captions), dropped


def read_text_files(store: ImageStore) -> tuple[list[CaptionedImage], int]:
    """Read captions from one .txt file beside each image (`a/b.jpg`, `a/b.txt`), one per line.

    Returns:
        The entries, all of the split "train", and how many empty lines within them were dropped.

    Raises:
        DataError: two images share a stem, or a text file has no caption.
    """
    entries = []
    images: dict[str, str] = {}
    total_dropped = 0
    for image in store.images():
        text = PurePosixPath(image).with_suffix(".txt").as_posix()
        if text not in store:
            continue
        if text in images:
            raise DataError(f"{text} describes two images: {images[text]!r} and {image!r}")
        images[text] = image
        lines = _decode(store.read(text), text).split("\n")
        while len(lines) > 1 and not lines[-1].strip():  # the end of a file, not a caption
            lines.pop()
        captions, dropped = clean_captions(lines, text)
        entries.append(CaptionedImage(image, DEFAULT_SPLIT, captions))
        total_dropped += dropped
    return entries, total_dropped


def find_images(
    sources: Sequence[Path],
    wanted: Mapping[str, str],
    key: Callable[[str], str],
    counts: collections.Counter[str],
) -> dict[str, FileRef]:
    """Find images by id, wherever they are; of files that no caption names nothing is kept.

    Args:
        wanted: the official file name by id, which is preferred if several files have the id.
        key: from a file name's stem to an id; empty for other files.
        counts: of what is left out.

    Raises:
        DataError: more than half of the images are absent: an archive must be missing.
    """
    found: dict[str, FileRef] = {}
    exact: set[str] = set()
    for path, ref in list_files(sources):
        name = path.rpartition("/")[2]
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix.lower()}" not in IMAGE_SUFFIXES:
            continue
        image_id = key(stem)
        if image_id not in wanted:
            counts["images without captions"] += 1
        elif image_id not in found or (wanted[image_id] == name and image_id not in exact):
            found[image_id] = ref
            if wanted[image_id] == name:
                exact.add(image_id)
    absent = [name for image_id, name in wanted.items() if image_id not in found]
    if 2 * len(absent) > len(wanted):
        raise DataError(
            f"{len(absent):,} of the {len(wanted):,} images that the captions name are not in "
            f"{', '.join(map(str, sources))}; is an archive missing?{listed(absent)}"
        )
    counts["images absent"] += len(absent)
    return found
