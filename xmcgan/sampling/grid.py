"""Images with their captions beneath, as a page that can be read on its own."""

import math
import re
import textwrap
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from xmcgan.data import Example
from xmcgan.data.images import decode_image, resize_image

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_PAPER, _INK, _FAINT = (250, 250, 248), (38, 38, 42), (120, 120, 126)
_MARGIN, _GAP = 24, 20  # pixels around the page and between cells
_PAIR_GAP = 4  # between a reference image and its generated one
_TEXT_GAP = 7  # between an image and its caption
_LINE_SPACING = 4
_CAPTION_GAP = 6  # between the captions of one image
_NO_CAPTION = "(empty caption)"
_FONT_HAS = "©«°±·»\u2018\u2019“”…™"  # beyond ASCII
_SHEET_SIDE, _SHEET_COLUMNS, _SHEET_LINES = 192, 6, 12  # lines: most narratives fit


def image_grid(
    images: UInt8[np.ndarray, "n h w 3"],
    captions: Sequence[str | Sequence[str]],
    columns: int,
    *,
    reference_images: UInt8[np.ndarray, "n h w 3"] | None = None,
    title: str = "",
    min_cell: int = 160,
    max_lines: int = 4,
) -> Image.Image:
    """Lay out images in reading order, each with its caption beneath.

    Args:
        captions: one per image, or several below each other; wrapped to the image's width.
        reference_images: real images, shown to the left of the generated ones.
        min_cell: least width of an image on the page, in pixels. Smaller images are enlarged by a
            whole factor without smoothing, so that every pixel stays visible.
        max_lines: of a caption, which ends there with an ellipsis.

    Raises:
        ValueError: numbers of images, captions and references differ, or there are none.
    """
    if not len(images) == len(captions) > 0 or columns < 1 or images.dtype != np.uint8:
        raise ValueError(
            f"images {images.dtype} {images.shape}, {len(captions)} captions, {columns} columns"
        )
    pictures = [_enlarge(image, min_cell) for image in images]
    if reference_images is not None:
        references = [_enlarge(image, min_cell) for image in reference_images]
        pictures = [_pair(*pair) for pair in zip(references, pictures, strict=True)]
    cells = [_cell(*cell, max_lines) for cell in zip(pictures, captions, strict=True)]
    columns = min(columns, len(cells))
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    title_font = ImageFont.load_default(20)
    head = _line_height(title_font) + _GAP if title else 0
    width = cells[0].width
    page = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * (width + _GAP) - _GAP,
            2 * _MARGIN + head + sum(heights) + (len(rows) - 1) * _GAP,
        ),
        _PAPER,
    )
    ImageDraw.Draw(page).text((_MARGIN, _MARGIN), _drawable(title), fill=_INK, font=title_font)
    top = _MARGIN + head
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            page.paste(cell, (_MARGIN + column * (width + _GAP), top))
        top += height + _GAP
    return page


def contact_sheet(examples: Sequence[Example], title: str = "") -> Image.Image:
    """Lay out examples of a data set as squares, as training crops them, with all captions.

    Images larger than 192 pixels are reduced; if sizes differ, all get the largest one's.

    Raises:
        DataError: an image cannot be decoded.
    """
    images = [decode_image(example.image, example.name) for example in examples]
    side = min(_SHEET_SIDE, max(min(image.size) for image in images))
    squares = np.stack([resize_image(image, side, "crop") for image in images])
    captions = [example.captions for example in examples]
    return image_grid(squares, captions, _SHEET_COLUMNS, title=title, max_lines=_SHEET_LINES)


def wrap_caption(caption: str, font: Font, width: int, max_lines: int = 4) -> list[str]:
    """Break a caption into lines of at most `width` pixels; an ellipsis ends the last if cut.

    White space is collapsed, and a word wider than a line is broken.
    """
    # Some data sets put spaces before punctuation, which would begin a line with it.
    text = _drawable(re.sub(r"\s+([.,;:!?])", r"\1", caption))
    lines: list[str] = []
    # textwrap counts characters, and the font is proportional: the most that fit in every line.
    for characters in range(width // 4, 3, -1):
        lines = textwrap.wrap(
            text, characters, max_lines=max_lines, placeholder="...", break_on_hyphens=False
        )
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines


def _enlarge(image: np.ndarray, min_cell: int) -> Image.Image:
    height, width = image.shape[:2]
    factor = max(1, math.ceil(min_cell / width))
    return Image.fromarray(image).resize(
        (width * factor, height * factor), Image.Resampling.NEAREST
    )


def _cell(picture: Image.Image, captions: str | Sequence[str], max_lines: int) -> Image.Image:
    """Put one caption or several beneath a picture."""
    font = _caption_font(picture.width)
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


def _pair(real: Image.Image, generated: Image.Image) -> Image.Image:
    """Put a real image to the left of a generated one, under their labels."""
    width, height = generated.size
    font = _caption_font(width)
    head = _line_height(font)
    pair = Image.new("RGB", (2 * width + _PAIR_GAP, head + height), _PAPER)
    draw = ImageDraw.Draw(pair)
    for image, label, x in ((real, "real", 0), (generated, "generated", width + _PAIR_GAP)):
        draw.text((x, 0), label, fill=_FAINT, font=font)
        pair.paste(image.resize(generated.size, Image.Resampling.LANCZOS), (x, head))
    return pair


def _caption_font(width: int) -> Font:
    return ImageFont.load_default(min(18, max(12, round(width / 14))))


def _line_height(font: Font) -> int:
    return math.ceil(font.getbbox("Ag|y")[3]) + _LINE_SPACING


def _drawable(text: str) -> str:
    """Return a text in characters of the built-in font, which has little more than ASCII."""
    return "".join(map(_drawable_character, text))


def _drawable_character(character: str) -> str:
    if not character.isprintable():
        return " "
    if character.isascii() or character in _FONT_HAS:
        return character
    if unicodedata.category(character) == "Pd":  # any dash
        return "-"
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
