"""Captions of a user's images: JSON lines, or one text file per image."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from xmcgan.data.image_store import ImageStore
from xmcgan.errors import DataError

JSONL_NAME = "captions.jsonl"
MAX_CAPTION_CHARS = 2_000  # a page of text; what a tokenizer cuts is far shorter
DEFAULT_SPLIT = "train"

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FIELDS = '{"image": "images/a.jpg", "split": "train", "captions": ["..."]}'


@dataclasses.dataclass(frozen=True)
class CaptionedImage:
    """Hold an image's path, its split and its captions, as a caption file states them."""

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
    """Strip captions and drop the empty ones.

    Args:
        texts: captions as written.
        where: file and line, for errors.

    Returns:
        The captions that have words, and how many were dropped.

    Raises:
        DataError: no caption is left, or one is absurdly long, has a NUL or is no valid Unicode.
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


def parse_jsonl(data: bytes, file: str) -> tuple[list[CaptionedImage], int]:
    """Parse captions in JSON lines.

    Args:
        data: one object a line with `image`, `captions` and optionally `split`; UTF-8. Other
            fields are ignored, as are blank lines.
        file: what to call the file in errors.

    Returns:
        The entries in order, and how many empty captions were dropped.

    Raises:
        DataError: with file and line number, where a line is broken or repeats an image.
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


def read_text_files(store: ImageStore) -> tuple[list[CaptionedImage], int]:
    """Read captions from one .txt file beside each image, one caption a line.

    Args:
        store: images and text files; `a/b.jpg` is described by `a/b.txt`.

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
