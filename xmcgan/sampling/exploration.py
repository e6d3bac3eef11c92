"""What a trained model has learned, for notebooks: tables, interpolation, attention to words."""

import importlib
import importlib.util
import math
import os
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from xmcgan.errors import UserError, did_you_mean
from xmcgan.sampling.hub import PREFIX
from xmcgan.sampling.model_folder import FACTS, known_models, load_model
from xmcgan.sampling.sampler import TrainedModel, to_uint8
from xmcgan.utils.files import home

WORKDIR_VARIABLE = "XMCGAN_WORKDIR"
_FONT_SIZE = 12  # points
_CELL = 1.6  # inches
_WORDS_PER_ROW = 5
_VIDEO_PIXELS = 256
_HEAT = LinearSegmentedColormap.from_list("heat", [(0.9, 0.3, 0, 0), (0.9, 0.3, 0, 0.8)])


class WordAttention(NamedTuple):
    """Attention of each image region to the words of the caption.

    Attributes:
        words: as they are written; [CLS] and [SEP] are the caption's start and end.
        maps: share of each word in each region of the generator's feature map, in [0, 1]; the
            shares of a region sum to 1 over the words.
    """

    image: UInt8[np.ndarray, "h w 3"]
    words: list[str]
    maps: Float[np.ndarray, "n s s"]


def open_model(name: str) -> tuple[TrainedModel, Path]:
    """Load a model for a notebook; the second is the folder for what the notebook writes.

    Args:
        name: of a model that comes with the repository, hf:user/name, or a model folder or workdir,
            looked for in the current folder and those around it. `XMCGAN_WORKDIR` overrides it.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    name = os.environ.get(WORKDIR_VARIABLE) or name
    known = known_models()
    if name in known or name.startswith(PREFIX):
        return load_model(name), home() / "runs" / "notebook"
    path = Path(name).expanduser()
    for folder in [around / path for around in (Path.cwd(), *Path.cwd().parents)]:
        if (folder / FACTS).is_file():
            return load_model(folder), folder / "notebook"
        if (folder / "config.json").is_file():
            return TrainedModel.from_workdir(folder), folder / "notebook"
    raise UserError(
        f"no model or training run at {name}: name one that comes with the repository "
        f"({', '.join(known) or 'none'}), or run ./scripts/quickstart.sh and set "
        f"{WORKDIR_VARIABLE} to its workdir{did_you_mean(name, known)}"
    )


def sample_table(
    model: TrainedModel, captions: Sequence[str], z: Float[np.ndarray, "n z"]
) -> UInt8[np.ndarray, "c n h w 3"]:
    """Sample each caption (a row) with each noise (a column)."""
    repeated = [caption for caption in captions for _ in z]
    images = model(repeated, np.tile(z, (len(captions), 1)))
    return images.reshape(len(captions), len(z), *images.shape[1:])


def interpolate_noise(
    start: Float[np.ndarray, "z"], end: Float[np.ndarray, "z"], frames: int
) -> Float[np.ndarray, "n z"]:
    """Interpolate along the arc from one noise to another (White, "Sampling Generative Networks").

    Noise in many dimensions has nearly always the same length, and the middle of a straight line
    would be too short.
    """
    share = np.linspace(0, 1, frames)[:, None]
    length = np.linalg.norm(start) * np.linalg.norm(end)
    angle = np.arccos(np.clip(np.dot(start, end) / length, -1, 1)) if length else 0.0
    if np.sin(angle) < 1e-4:  # parallel vectors, or zero: there is no arc
        between = (1 - share) * start + share * end
    else:
        weights = np.sin((1 - share) * angle), np.sin(share * angle)
        between = (weights[0] * start + weights[1] * end) / np.sin(angle)
    between[0], between[-1] = start, end  # exactly, whatever was rounded
    return between.astype(np.float32)


def interpolate_captions(
    model: TrainedModel, start: str, end: str, z: Float[np.ndarray, "n z"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Interpolate sentence and words linearly from one caption to another, an image per row of `z`.

    Each word moves to the one at the same place of the other caption, in parts of its length. To
    that end words are repeated until both captions are equally long, which leaves attention as it
    is: every word is repeated equally often. Padding makes few programs of the many lengths.
    """
    token_ids, mask = model.sampler.tokenizer([start, end])
    words, sentence = map(np.asarray, _encode(model, token_ids, mask))
    lengths = mask.sum(axis=1)
    length = math.lcm(*lengths.tolist())
    padding = [(0, max(mask.shape[1], 1 << (length - 1).bit_length()) - length), (0, 0)]
    paired = [
        np.pad(np.repeat(row[:n], length // n, axis=0), padding)
        for row, n in zip(words, lengths, strict=True)
    ]
    both_mask = np.tile(np.arange(len(paired[0])) < length, (len(z), 1))
    share = np.linspace(0, 1, len(z), dtype=np.float32)[:, None]
    sentences = (1 - share) * sentence[0] + share * sentence[1]
    between = (1 - share[..., None]) * paired[0] + share[..., None] * paired[1]
    inputs = (between, both_mask, sentences, z)
    images, _ = _generate(model.sampler.generator, model.variables, *inputs)
    return np.asarray(images)


def word_attention(model: TrainedModel, caption: str, z: Float[np.ndarray, "z"]) -> WordAttention:
    """Sample an image with its attention weights, those of the paper's word contexts c_j."""
    tokenizer = model.sampler.tokenizer
    token_ids, mask = tokenizer([caption])
    features, sentence = _encode(model, token_ids, mask)
    inputs = (features, mask, sentence, z[None])
    images, shares = _generate(model.sampler.generator, model.variables, *inputs)
    words, index = tokenizer.name_words(caption)
    maps = np.zeros((len(words), *shares.shape[1:3]), np.float32)
    # A word may be cut into several tokens: its share is the sum of theirs.
    np.add.at(maps, index, np.moveaxis(np.asarray(shares[0]), -1, 0)[: len(index)])
    return WordAttention(np.asarray(images[0]), words, maps)


def image_table(
    images: UInt8[np.ndarray, "r c h w 3"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Figure:
    """Plot images in rows and columns, each named by what its images share."""
    num_rows, num_columns = images.shape[:2]
    wrapped = [textwrap.fill(name, 20) for name in rows]
    longest = max(len(line) for name in wrapped for line in name.split("\n"))
    margin = 0.2 + 0.1 * longest  # inches, for the names of the rows
    size = (max(margin + _CELL * num_columns, 5), 0.6 + (_CELL + 0.05) * num_rows)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    style = {"rotation": 0, "ha": "right", "va": "center", "labelpad": 8, "fontsize": _FONT_SIZE}
    for name, cells, pictures in zip(wrapped, axes, images, strict=True):
        for axis, picture in zip(cells, pictures, strict=True):
            _show(axis, picture)
        cells[0].set_ylabel(name, **style)
    for name, axis in zip(columns, axes[0], strict=True):
        axis.set_title(textwrap.fill(name, 16), fontsize=_FONT_SIZE)
    if title:
        _set_title(figure, title)
    return figure


def image_strip(images: UInt8[np.ndarray, "n h w 3"], start: str, end: str) -> Figure:
    """Plot an interpolation from `start` to `end`."""
    shares = [f"{100 * i / (len(images) - 1):.0f} %" for i in range(len(images))]
    return image_table(images[None], [""], shares, title=f"{start}  \N{RIGHTWARDS ARROW}  {end}")


def attention_figure(attention: WordAttention, caption: str) -> Figure:
    """Plot an image and, per word of its caption, the regions that attended to the word."""
    count = 1 + len(attention.words)
    columns = min(count, _WORDS_PER_ROW)
    rows = math.ceil(count / columns)
    size = (1.8 * columns + 0.9, 2.1 * rows + 0.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    first, *others = figure.subplots(rows, columns, squeeze=False).flat
    _show(first, attention.image)
    first.set_title("the image", fontsize=_FONT_SIZE)
    gray = attention.image.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8)
    height, width = gray.shape[:2]
    # One scale for all words, or a word that counts nowhere would look like one that does.
    style = {"cmap": _HEAT, "vmin": 0, "vmax": attention.maps.max()}
    for axis, word, shares in zip(others, attention.words, attention.maps, strict=False):
        _show(axis, gray)
        heat = axis.imshow(shares, **style, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.set_title(f"{word}\n{100 * shares.mean():.0f} %", fontsize=_FONT_SIZE)
    for axis in others[len(attention.words) :]:
        axis.set_visible(False)
    bar = figure.colorbar(
        heat, ax=figure.axes, shrink=0.8, format=lambda share, _: f"{100 * share:.0f} %"
    )
    bar.set_label("share of a region's attention", fontsize=_FONT_SIZE - 1)
    _set_title(figure, caption)
    return figure


def check_video(path: Path) -> None:
    """Raise UserError if a video of this name cannot be written."""
    if path.suffix not in (".gif", ".mp4"):
        raise UserError(f"{path}: a video is .gif or .mp4")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UserError(f"{path} needs an encoder: pip install imageio-ffmpeg, or write a .gif")


def write_video(path: Path, images: UInt8[np.ndarray, "n h w 3"], seconds: float = 2.0) -> Path:
    """Write a GIF or MP4 that runs forth and back, `seconds` from first to last image.

    A GIF repeats without end. Small images are enlarged by a whole factor, every pixel a square.
    """
    factor = math.ceil(_VIDEO_PIXELS / images.shape[2])
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    frames = [*large, *large[-2:0:-1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        imageio_ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
        size = (large.shape[2], large.shape[1])
        fps = len(images) / seconds
        writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        return path
    first, *rest = map(Image.fromarray, frames)
    duration = 1000 * seconds / len(images)
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)
    return path


def _encode(model: TrainedModel, *inputs: Any) -> tuple[Array, Array]:
    """Return the features of words and sentences."""
    return _apply(model.sampler.text.apply, model.sampler.text_params, *inputs)


_apply = jax.jit(lambda apply, *inputs: apply(*inputs), static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _generate(generator: Any, variables: Any, *inputs: Any) -> tuple[Array, Array]:
    """Return images, and the attention weights that the generator sows on the way."""
    images, sown = generator.apply(variables, *inputs, train=False, mutable=["intermediates"])
    return to_uint8(images), sown["intermediates"]["word_attention"][0]


def forget_programs() -> None:
    """Drop compiled programs of interpolation and attention, and the text encoders they hold."""
    programs: tuple[Any, ...] = (_apply, _generate)
    for program in programs:
        program.clear_cache()


def _set_title(figure: Figure, title: str) -> None:
    characters = int(8 * figure.get_figwidth())  # per line
    figure.suptitle(textwrap.fill(title, characters), fontsize=_FONT_SIZE + 2)


def _show(axis: Axes, image: UInt8[np.ndarray, "h w 3"]) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color("0.7")  # images may be as white as the page
