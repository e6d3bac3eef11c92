"""CLIPScore and R-precision: how well images fit their captions, from CLIP's embeddings.

Every score comes with that of the real images, because a bare number says little: encoder, captions
and prefix move it as much as the generator does.
"""

import functools
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

import xmcgan
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.captions import text_key
from xmcgan.evaluation.features import Arrays, BatchRunner, Images, Networks, unit_rows
from xmcgan.evaluation.metrics import NUM_DISTRACTORS, Context
from xmcgan.evaluation.protocols import antialiased_matrix
from xmcgan.pretrained.clip import load_clip
from xmcgan.pretrained.weights import resolve
from xmcgan.utils.mesh import put, replicated
from xmcgan.utils.statistics import Score, mean_score

PREFIX = "A photo depicts "  # Hessel et al., "CLIPScore", EMNLP 2021, section 3
_NUM_CHUNKS = 10  # of Park et al.'s published R-precision
_BEST_CLIP_SCORE = 2.5  # of an image and a caption that point the same way
# Cosines of float32 embeddings that are nearer than this are equal but for rounding.
TIE = 1e-6
# Images whose candidates are compared together: small enough (6 MB at 99 others of width 512)
# that memory is used again; larger blocks take twice the time.
_BLOCK = 16


class ClipAlignment:
    """CLIPScore and R-precision; `weights` is a folder with CLIP, for CLIPScore ViT-B/32."""

    paired = True

    def __init__(self, context: Context, weights: str) -> None:
        self._clip = ClipExtractor(weights, context.networks)
        self.recipe = {**self._clip.recipe, "prefix": PREFIX, "prefix_of_r_precision": ""}
        self._context = context
        self._embed_texts = functools.cache(self._clip.texts)  # once for all checkpoints

    def extract(self, images: Images, captions: Sequence[str]) -> Arrays:
        """Embeddings (n, e) of images, and of their captions with and without prefix."""
        return {
            "images": self._clip.images(images),
            "texts": self._embed_texts(tuple(captions)),
            "plain_texts": self._embed_texts(tuple(captions), ""),
        }

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Scores `score`, `r_precision` (of plain captions, as published), `r_precision_prefixed`.

        `*_real` are those of the real images of the captions. Captions are resampled for the
        intervals, the same ones for every score; distractors stay.
        """
        context, sides = self._context, {"": fake["images"], "_real": real["images"]}
        resampling: Any = {"resamples": context.resamples, "seed": context.seed}
        labels = context.captions, context.image_ids
        scores = {}
        for side, images in sides.items():
            cosines = clip_score(images, fake["texts"])
            scores[f"score{side}"] = mean_score(cosines, most=_BEST_CLIP_SCORE, **resampling)
        for kind, texts in (("", fake["plain_texts"]), ("_prefixed", fake["texts"])):
            for side, images in sides.items():
                is_nearest = r_precision(images, texts, *labels, seed=context.seed)
                note = _over_chunks(is_nearest) if len(is_nearest) >= _NUM_CHUNKS else ""
                score = mean_score(is_nearest, note=note, **resampling)
                scores[f"r_precision{kind}{side}"] = score
        return scores


def _over_chunks(values: Float[np.ndarray, "n"]) -> str:
    """Mean and deviation over ten chunks, the published form of an error bar."""
    means = [chunk.mean() for chunk in np.array_split(values, _NUM_CHUNKS)]
    return f"{np.mean(means):.4f} +- {np.std(means):.4f} over {_NUM_CHUNKS} chunks"


def clip_score(
    image_emb: Float[np.ndarray, "n e"], text_emb: Float[np.ndarray, "n e"]
) -> Float[np.ndarray, "n"]:
    """CLIPScore of each image and its caption, 2.5 * max(cosine, 0).

    Hessel et al., "CLIPScore", EMNLP 2021, equation 1, for ViT-B/32 and captions after `PREFIX`.
    """
    images = unit_rows(image_emb, "embeddings")
    texts = unit_rows(text_emb, "embeddings of the captions")
    return _BEST_CLIP_SCORE * np.maximum(np.einsum("ne,ne->n", images, texts), 0.0)


def r_precision(
    image_emb: Float[np.ndarray, "n e"],
    text_emb: Float[np.ndarray, "n e"],
    captions: Sequence[str],
    image_ids: Sequence[Hashable],
    *,
    seed: int,
) -> Float[np.ndarray, "n"]:
    """1 for each image whose caption is strictly nearest among 99 captions of other images, else 0.

    Xu et al., "AttnGAN", CVPR 2018, with CLIP's cosines (Park et al., "Benchmark for Compositional
    Text-to-Image Synthesis", 2021). A tie counts against the model.
    """
    images = unit_rows(image_emb, "embeddings")
    texts = unit_rows(text_emb, "embeddings of the captions")
    distractors = sample_distractors(captions, image_ids, NUM_DISTRACTORS, seed)
    is_nearest = np.empty(len(images))
    for start in range(0, len(images), _BLOCK):
        block = slice(start, start + _BLOCK)
        true = np.einsum("ne,ne->n", images[block], texts[block])
        others = np.einsum("ne,nke->nk", images[block], texts[distractors[block]])
        is_nearest[block] = true > others.max(axis=1) + TIE
    return is_nearest


def sample_distractors(
    captions: Sequence[str], image_ids: Sequence[Hashable], num: int, seed: int
) -> Int[np.ndarray, "n k"]:
    """Sample for each caption the rows of `num` distinct captions that describe other images only.

    The choice follows from the seed, the text and the image, not from the order of the rows.
    """
    keys = np.array([text_key(caption) for caption in captions])
    texts, first_row, text_of = np.unique(keys, return_index=True, return_inverse=True)
    texts_of_image: dict[Hashable, set[int]] = {}
    for image, text in zip(image_ids, text_of.tolist(), strict=True):
        texts_of_image.setdefault(image, set()).add(text)
    needed = num + max((len(own) for own in texts_of_image.values()), default=1)
    if len(texts) < needed:
        raise EvaluationError(
            f"R-precision needs {needed} distinct captions here; there are {len(texts)}"
        )
    rows = np.empty((len(keys), num), np.int64)
    for row, (image, text) in enumerate(zip(image_ids, text_of.tolist(), strict=True)):
        own = texts_of_image[image]
        rng = np.random.default_rng([seed, text, min(own)])
        # More than are needed: the image's own captions fall out.
        drawn = rng.choice(len(texts), num + len(own), replace=False).tolist()
        rows[row] = first_row[[other for other in drawn if other not in own][:num]]
    return rows


class ClipExtractor:
    """CLIP's embeddings, not normalized, in float32 at highest precision."""

    def __init__(self, path: Path | str, networks: Networks) -> None:
        unverified = networks.allow_unverified
        clip = load_clip(resolve(path), allow_unverified=unverified)
        self.recipe: dict[str, Any] = {
            "network": f"CLIP, {clip.architecture}",
            "resize": f"Pillow's bicubic of the short side, center crop, to {clip.image_size}",
            "weights_sha256": clip.sha256,
            "weights_verified": clip.verified,
            "package_version": xmcgan.__version__,
        }

        def encode_images(params: Any, images: Array) -> Array:
            return clip.encode_images(params, preprocess(images, clip.image_size))

        self._tokenizer = clip.tokenizer
        params = put(clip.params, replicated(networks.mesh))
        self.images = BatchRunner(encode_images, params, networks)  # (n, e) of images
        self._encode_texts = BatchRunner(clip.encode_text, params, networks)

    def texts(self, captions: Sequence[str], prefix: str = PREFIX) -> Float[np.ndarray, "n e"]:
        """Embeddings of captions after a prefix, cut to the network's number of tokens."""
        return self._encode_texts(self._tokenizer([prefix + caption for caption in captions]))


def preprocess(images: UInt8[Array, "b h w 3"], size: int) -> Float[Array, "b s s 3"]:
    """Resize the short side with Pillow's bicubic filter, crop the center, and scale to [0, 1].

    As CLIP's own code does: Pillow rounds to whole gray levels after the rows, and again after the
    columns.
    """
    x = jnp.asarray(images).astype(jnp.float32)
    short = min(images.shape[1:3])
    for axis, equation in ((2, "jw,bhwc->bhjc"), (1, "ih,bhwc->biwc")):
        side = images.shape[axis]
        resized = size * side // short
        first = round((resized - size) / 2)  # halves go to the even pixel, as in torchvision's crop
        matrix = antialiased_matrix(side, resized, "bicubic")[first : first + size]
        x = jnp.einsum(equation, matrix, x, precision=jax.lax.Precision.HIGHEST)
        x = jnp.clip(jnp.floor(x + 0.5), 0, 255)
    return x / 255
