"""What a trained model has learned: tables, ways between captions, and attention to words."""

import math
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from xmcgan.errors import UserError, did_you_mean
from xmcgan.models.generator import Generator
from xmcgan.sampling.model_folder import FACTS, MODELS_DIR, known_models, load_model
from xmcgan.sampling.sampler import TrainedModel, to_uint8

WORKDIR_VARIABLE = "XMCGAN_WORKDIR"


class WordAttention(NamedTuple):
    """Hold which words each region of an image attended to.

    Attributes:
        image: the image, uint8.
        words: of the caption, as they are written; [CLS] and [SEP] are its start and its end.
        maps: for each word its share in every region of the generator's feature map, in [0, 1];
            the shares of a region sum to 1 over the words.
    """

    image: UInt8[np.ndarray, "h w 3"]
    words: list[str]
    maps: Float[np.ndarray, "n s s"]


def open_model(name: str) -> tuple[TrainedModel, Path]:
    """Load a model for the notebook; the second is the folder for what the notebook writes.

    Args:
        name: of a model that comes with the repository, or a model folder or workdir, looked for in
            the current folder and in the folders around it. `XMCGAN_WORKDIR` goes before it.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    name = os.environ.get(WORKDIR_VARIABLE) or name
    known = known_models()
    if name in known:
        return load_model(name), MODELS_DIR.parents[1] / "runs" / "notebook"
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


def draw_table(
    model: TrainedModel, captions: Sequence[str], z: Float[np.ndarray, "n z"]
) -> UInt8[np.ndarray, "c n h w 3"]:
    """Draw each caption (a row) with each noise (a column)."""
    repeated = [caption for caption in captions for _ in z]
    images = model(repeated, np.tile(z, (len(captions), 1)))
    return images.reshape(len(captions), len(z), *images.shape[1:])


def blend_noise(
    start: Float[np.ndarray, "z"], end: Float[np.ndarray, "z"], frames: int
) -> Float[np.ndarray, "n z"]:
    """Go from one noise to another on the arc between them.

    Spherical interpolation (White, "Sampling Generative Networks", 2016): noise in many dimensions
    has nearly always the same length, and the middle of a straight line would be too short.

    Args:
        start: the first frame.
        end: the last frame.
        frames: at least 2.
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


def blend_captions(
    model: TrainedModel, start: str, end: str, z: Float[np.ndarray, "n z"]
) -> UInt8[np.ndarray, "n h w 3"]:
    """Go from one caption to another: sentence and words move in straight lines.

    Each word moves to the one that stands in the same place of the other caption, measured in
    parts of its length. To that end words are repeated until both captions are equally long;
    the attention is the same where every word stands equally often.

    Args:
        model: draws.
        start: caption of the first image.
        end: caption of the last image.
        z: noise of each image, at least 2; equal rows show what the caption alone does.
    """
    token_ids, mask = model.tokenizer([start, end])
    encoded = _encode(model.text.apply, model.text_params, token_ids, mask)
    words, sentence = map(np.asarray, encoded)
    lengths = mask.sum(axis=1)
    length = math.lcm(*lengths.tolist())
    paired = [
        np.repeat(row[:n], length // n, axis=0) for row, n in zip(words, lengths, strict=True)
    ]
    share = np.linspace(0, 1, len(z), dtype=np.float32)[:, None]
    sentences = (1 - share) * sentence[0] + share * sentence[1]
    between = (1 - share[..., None]) * paired[0] + share[..., None] * paired[1]
    inputs = (between, np.ones(between.shape[:2], bool), sentences, z)
    images, _ = _draw(model.generator, model.variables, *inputs)
    return np.asarray(images)


def attend(model: TrainedModel, caption: str, z: Float[np.ndarray, "z"]) -> WordAttention:
    """Draw an image and tell which words its regions attended to.

    Paper, "Attentional self-modulation generator": the weights of its c_j.

    Args:
        model: draws.
        caption: of the image.
        z: its noise.
    """
    token_ids, mask = model.tokenizer([caption])
    features, sentence = _encode(model.text.apply, model.text_params, token_ids, mask)
    images, shares = _draw(model.generator, model.variables, features, mask, sentence, z[None])
    words, index = model.tokenizer.name_words(caption)
    maps = np.zeros((len(words), *shares.shape[1:3]), np.float32)
    # A word may be cut into several tokens: its share is the sum of theirs.
    np.add.at(maps, index, np.moveaxis(np.asarray(shares[0]), -1, 0)[: len(index)])
    return WordAttention(np.asarray(images[0]), words, maps)


_encode = jax.jit(lambda apply, *inputs: apply(*inputs), static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _draw(generator: Generator, variables: Any, *inputs: Any) -> tuple[Array, Array]:
    """Return images, and what the generator notes of its attention on the way."""
    result: Any = generator.apply(variables, *inputs, train=False, mutable=["intermediates"])
    images, noted = result
    return to_uint8(images), noted["intermediates"]["word_attention"][0]
