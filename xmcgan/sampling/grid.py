"""Draw images with their captions beneath, as a page that can be read on its own."""

import functools
import math
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from xmcgan.data import Example
from xmcgan.data.images import decode_image, resize_image

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_PAPER = (250, 250, 248)
_INK = (38, 38, 42)
_FAINT = (120, 120, 126)
_MARGIN = 24  # pixels around the page
_GAP = 20  # between cells, and between an image and its caption's cell below
_TEXT_GAP = 7  # between an image and its caption
_LINE_SPACING = 4
_CAPTION_GAP = 6  # between the captions of one image
_MAX_LINES = 4
_ELLIPSIS = "..."
_NO_CAPTION = "(empty caption)"
_SHEET_SIDE = 192  # of an image on a contact sheet, at most before it is enlarged
_SHEET_COLUMNS = 6
_SHEET_LINES = 12  # of one caption: most narratives


def sample_grid(
    images: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str | Sequence[str]],
    columns: int,
    *,
    reference_images: UInt8[np.ndarray, "n h w 3"] | None = None,
    labels: tuple[str, str] = ("real", "generated"),
    title: str = "",
    min_cell: int = 160,
    max_lines: int = _MAX_LINES,
) -> Image.Image:
    """Draw each image with its caption beneath it, row by row.

    Args:
        images: the images, in reading order.
        captions: one for each image, or several below each other; wrapped to the image's width.
        columns: how many images stand side by side.
        reference_images: drawn beside `images`, each to the left of its own, to compare.
        labels: what is written above the left and the right image of such a pair.
        title: a line at the head of the page.
        min_cell: the least width of an image on the page in pixels. Smaller images are enlarged by
            a whole factor without smoothing, so that every pixel stays visible.
        max_lines: of a caption, which is cut after them.

    Returns:
        The page, RGB.

    Raises:
        ValueError: the numbers of images, captions and references differ, or there are none.
    """
    _check(images, captions, columns, reference_images)
    pictures = [_enlarge(image, min_cell) for image in images]
    if reference_images is not None:
        references = [_enlarge(image, min_cell) for image in reference_images]
        pictures = [_pair(*pair, labels) for pair in zip(references, pictures, strict=True)]
    columns = min(columns, len(pictures))
    cells = [_cell(*cell, max_lines) for cell in zip(pictures, captions, strict=True)]
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    width = cells[0].width
    head = _line_height(_title_font()) + _GAP if title else 0
    page_width = 2 * _MARGIN + columns * width + (columns - 1) * _GAP
    page_height = 2 * _MARGIN + head + sum(heights) + (len(rows) - 1) * _GAP
    page = Image.new("RGB", (page_width, page_height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN), _drawable(title), fill=_INK, font=_title_font())
    top = _MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (_MARGIN + column * (width + _GAP), top))
        top += height + _GAP
    return page


def contact_sheet(examples: Sequence[Example], title: str = "") -> Image.Image:
    """Draw examples of a data set as squares, as training crops them, with all their captions.

    Images larger than 192 pixels are reduced; where sizes differ, all get the largest one's.

    Raises:
        DataError: an image cannot be decoded.
    """
    images = [decode_image(example.image, example.name) for example in examples]
    side = min(_SHEET_SIDE, max(min(image.size) for image in images))
    squares = np.stack([resize_image(image, side, "crop") for image in images])
    captions = [example.captions for example in examples]
    return sample_grid(squares, captions, _SHEET_COLUMNS, title=title, max_lines=_SHEET_LINES)


def wrap_caption(
    caption: str,
    font: Font,
    width: int,
    max_lines: int = _MAX_LINES,
) -> list[str]:
    """Break a caption into lines that fit a width, cut with an ellipsis after `max_lines`.

    Args:
        caption: any text; white space is collapsed, and a word wider than a line is broken.
        font: what it will be drawn with.
        width: in pixels.
        max_lines: at least 1.

    Returns:
        The lines; none for an empty caption.
    """
    lines: list[str] = []
    # Some data sets put spaces before punctuation, which would begin a line with it.
    tidy = re.sub(r"\s+([.,;:!?])", r"\1", caption)
    for word in _drawable(tidy).split():
        joined = f"{lines[-1]} {word}" if lines else word
        if font.getlength(joined) <= width:
            lines[-1:] = [joined]
            continue
        lines += _break_word(word, font, width)
        if len(lines) > max_lines:  # The rest of a long text cannot be seen.
            return [*lines[: max_lines - 1], _cut(lines[max_lines - 1], font, width)]
    return lines


def _check(
    images: np.ndarray, captions: Sequence, columns: int, references: np.ndarray | None
) -> None:
    if len(images) == 0 or len(images) != len(captions) or columns < 1:
        raise ValueError(f"{len(images)} images, {len(captions)} captions, {columns} columns")
    if references is not None and len(references) != len(images):
        raise ValueError(f"{len(images)} images, {len(references)} reference images")
    for group in (images, references):
        if group is not None and (group.dtype != np.uint8 or group.shape[3:] != (3,)):
            raise ValueError(f"images must be uint8 (n, h, w, 3), not {group.dtype} {group.shape}")


def _enlarge(image: np.ndarray, min_cell: int) -> Image.Image:
    height, width = image.shape[:2]
    factor = max(1, math.ceil(min_cell / width))
    return Image.fromarray(image).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )


def _cell(picture: Image.Image, captions: str | Sequence[str], max_lines: int) -> Image.Image:
    """Put a caption, or several, beneath a picture."""
    font = ImageFont.load_default(_font_size(picture.width))
    line_height = _line_height(font)
    several = [captions] if isinstance(captions, str) else captions
    wrapped = [wrap_caption(caption, font, picture.width, max_lines) for caption in several]
    height = sum(line_height * max(1, len(lines)) for lines in wrapped)
    height += _TEXT_GAP + _CAPTION_GAP * (len(wrapped) - 1)
    cell = Image.new("RGB", (picture.width, picture.height + height), _PAPER)
    cell.paste(picture, (0, 0))
    draw = ImageDraw.Draw(cell)
    top = picture.height + _TEXT_GAP
    for lines in wrapped:
        for line in lines or [_NO_CAPTION]:
            draw.text((0, top), line, fill=_INK if lines else _FAINT, font=font)
            top += line_height
        top += _CAPTION_GAP
    return cell


def _pair(left: Image.Image, right: Image.Image, labels: tuple[str, str]) -> Image.Image:
    """Put two images side by side under their labels."""
    if left.size != right.size:
        left = left.resize(right.size, Image.Resampling.LANCZOS)
    font = ImageFont.load_default(_font_size(right.width) - 1)
    head = _line_height(font) + 2
    gap = 4
    pair = Image.new("RGB", (2 * right.width + gap, head + right.height), _PAPER)
    draw = ImageDraw.Draw(pair)
    for image, label, x in ((left, labels[0], 0), (right, labels[1], right.width + gap)):
        draw.text((x, 0), _drawable(label), fill=_FAINT, font=font)
        pair.paste(image, (x, head))
    return pair


def _font_size(width: int) -> int:
    return min(18, max(12, round(width / 14)))


def _title_font() -> Font:
    return ImageFont.load_default(20)


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ag|y")[3]) + _LINE_SPACING


def _drawable(text: str) -> str:
    """Return the text in characters that the built-in font has."""
    return "".join(map(_drawable_character, text))


@functools.cache
def _drawable_character(character: str) -> str:
    if not character.isprintable() or character.isspace():
        return " "
    if _has_glyph(character):
        return character
    if unicodedata.category(character) == "Pd":  # any dash
        return "-"
    plain = unicodedata.normalize("NFKD", character)
    return "".join(c for c in plain if _has_glyph(c)) or "?"


def _has_glyph(character: str) -> bool:
    return character.isascii() or _ink_of(character) != _ink_of("\uffff")


def _ink_of(character: str) -> bytes:
    square = Image.new("L", (24, 24))
    ImageDraw.Draw(square).text((2, 2), character, fill=255, font=ImageFont.load_default(14))
    return square.tobytes()


def _break_word(word: str, font: Font, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _cut(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + _ELLIPSIS) > width:
        line = line[:-1]
    return line.rstrip(" ,.;") + _ELLIPSIS
