"""Figures of a notebook: images in a table, attention over an image, moving images."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from xmcgan.sampling.exploration import WordAttention

_TEXT = 12  # points
_DPI = 100
_CELL = 1.6  # inches
_WORDS_A_ROW = 5
_GIF_PIXELS = 256
_HEAT = LinearSegmentedColormap.from_list("heat", [(0.9, 0.3, 0, 0), (0.9, 0.3, 0, 0.8)])


def image_table(
    images: UInt8[np.ndarray, "r c h w 3"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Figure:
    """Draw images in rows and columns with what each row and each column shares.

    Args:
        images: by row and column.
        rows: written to the left of each row.
        columns: written above each column.
        title: above all.
    """
    num_rows, num_columns = images.shape[:2]
    wrapped = [textwrap.fill(name, 20) for name in rows]
    longest = max(len(line) for name in wrapped for line in name.split("\n"))
    margin = 0.2 + 0.1 * longest  # inches, for the names of the rows
    size = (max(margin + _CELL * num_columns, 5), 0.6 + (_CELL + 0.05) * num_rows)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    style = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 8, "fontsize": _TEXT}
    for name, cells, pictures in zip(wrapped, axes, images, strict=True):
        for axis, picture in zip(cells, pictures, strict=True):
            _show(axis, picture)
        cells[0].set_ylabel(name, **style)
    for name, axis in zip(columns, axes[0], strict=True):
        axis.set_title(textwrap.fill(name, 16), fontsize=_TEXT)
    if title:
        _entitle(figure, title)
    return figure


def image_strip(images: UInt8[np.ndarray, "n h w 3"], start: str, end: str) -> Figure:
    """Draw images on the way from one thing to another, beneath one another's names.

    Args:
        images: in order.
        start: what the first image is of.
        end: what the last image is of.
    """
    shares = [f"{100 * i / (len(images) - 1):.0f} %" for i in range(len(images))]
    return image_table(images[None], [""], shares, title=f"{start}  \N{RIGHTWARDS ARROW}  {end}")


def attention_figure(attention: WordAttention, caption: str) -> Figure:
    """Draw an image and, for each word of its caption, where on it the word was attended to.

    Args:
        attention: of the image.
        caption: the title.
    """
    count = 1 + len(attention.words)
    columns = min(count, _WORDS_A_ROW)
    rows = math.ceil(count / columns)
    size = (1.8 * columns + 0.9, 2.1 * rows + 0.6)
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    _show(first, attention.image)
    first.set_title("the image", fontsize=_TEXT)
    gray = attention.image.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)
    height, width = gray.shape[:2]
    # One scale for all words, or a word that counts nowhere would look like one that does.
    style = {"cmap": _HEAT, "vmin": 0, "vmax": attention.maps.max()}
    for axis, word, shares in zip(others, attention.words, attention.maps, strict=False):
        _show(axis, gray)
        heat = axis.imshow(shares, **style, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.set_title(f"{word}\n{100 * shares.mean():.0f} %", fontsize=_TEXT)
    for axis in others[len(attention.words) :]:
        axis.set_visible(False)
    bar = figure.colorbar(
        heat, ax=figure.axes, shrink=0.8, format=lambda share, _: f"{100 * share:.0f} %"
    )
    bar.set_label("share of a region's attention", fontsize=_TEXT - 1)
    _entitle(figure, caption)
    return figure


def write_gif(path: Path, images: UInt8[np.ndarray, "n h w 3"], seconds: float = 2.0) -> Path:
    """Write images as a GIF that runs forth and back without end.

    Args:
        path: the file; its folder is made.
        images: in order; small ones are enlarged by a whole factor, every pixel a square.
        seconds: from the first image to the last.

    Returns:
        The path.
    """
    factor = math.ceil(_GIF_PIXELS / images.shape[2])
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = [Image.fromarray(image) for image in [*large, *large[-2:0:-1]]]
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = 1000 * seconds / len(images)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return path


def _entitle(figure: Figure, title: str) -> None:
    characters = int(8 * figure.get_figwidth())  # that stand in a line
    figure.suptitle(textwrap.fill(title, characters), fontsize=_TEXT + 2)


def _show(axis: Axes, image: UInt8[np.ndarray, "h w 3"]) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("0.7")  # images may be as white as the page
