"""Scores of how well images fit their captions, from CLIP's embeddings.

Every score comes with that of the real images, because a bare number says little: encoder, captions
and prefix move it as much as the generator does. A score from an encoder that took part in training
is inflated.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.bootstrap import check_resamples, interval, resample_counts
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.finite_rows import require_finite
from xmcgan.evaluation.scores import Score

NUM_DISTRACTORS = 99
# CLIPScore of an image and a caption that point the same way.
_BEST_CLIP_SCORE = 2.5
# Cosines of float32 embeddings that are nearer than this are equal but for rounding.
TIE = 1e-6
# Images whose candidates are looked at together: small enough (6 MB at 99 others of width 512)
# that memory is used again; larger blocks take twice the time.
_BLOCK = 16


def alignment_scores(
    fake_images_emb: Float[np.ndarray, "n e"],
    text_emb: Float[np.ndarray, "n e"],
    captions: Sequence[str],
    image_ids: Sequence[Hashable],
    *,
    real_images_emb: Float[np.ndarray, "n e"],
    resamples: int,
    seed: int,
) -> list[Score]:
    """Return CLIPScore and R-precision of generated images, each beside that of the real ones.

    Captions are resampled for the intervals, the same ones for every score; distractors stay.

    Args:
        fake_images_emb: of the image generated for each caption.
        text_emb: of each caption, after the prefix of CLIPScore.
        captions: without the prefix.
        image_ids: the photograph that each caption describes.
        real_images_emb: of that photograph, for each caption.
        resamples: of the bootstrap, 0 for no intervals.
        seed: of the bootstrap and of the distractors.

    Raises:
        EvaluationError: as for `clip_score` and `r_precision`, or too few resamples but not 0.
    """
    check_resamples(resamples)
    counts = resample_counts(content_keys(text_emb), resamples, seed)
    sides = {"": fake_images_emb, "_real": real_images_emb}
    scores = [
        mean_score(f"clip_score{side}", clip_score(images, text_emb), counts, _BEST_CLIP_SCORE)
        for side, images in sides.items()
    ]
    for side, images in sides.items():
        is_nearest = r_precision(images, text_emb, captions, image_ids, seed=seed)
        scores.append(mean_score(f"clip_r_precision{side}", is_nearest, counts, 1.0))
    return scores


def mean_score(
    name: str,
    per_example: Float[np.ndarray, "n"],
    counts: Int[np.ndarray, "r n"],
    most: float,
    note: str = "",
) -> Score:
    """Return a score that is a mean over examples of numbers from 0 to `most`.

    Args:
        name: of the score.
        per_example: the numbers.
        counts: of the bootstrap's resamples; none gives no interval.
        most: upper end of the score's range.
        note: of the score.
    """
    value = float(per_example.mean())
    if not len(counts):
        return Score(name, value, None, None, "higher", note)
    low, high = interval(value, counts @ per_example / counts.sum(axis=1))
    return Score(name, value, max(low, 0.0), min(high, most), "higher", note)


def clip_score(
    image_emb: Float[np.ndarray, "n e"], text_emb: Float[np.ndarray, "n e"]
) -> Float[np.ndarray, "n"]:
    """Return the CLIPScore of each image, 2.5 * max(cosine, 0).

    Hessel et al., "CLIPScore", EMNLP 2021, equation 1: with ViT-B/32, and captions that begin with
    "A photo depicts ".

    Args:
        image_emb: one row for each image.
        text_emb: the embedding of each image's caption.

    Raises:
        EvaluationError: an embedding is not finite, or has no length, or the shapes differ.
    """
    images, texts = _unit_pair(image_emb, text_emb)
    return _BEST_CLIP_SCORE * np.maximum(np.einsum("ne,ne->n", images, texts), 0.0)


def r_precision(
    image_emb: Float[np.ndarray, "n e"],
    text_emb: Float[np.ndarray, "n e"],
    captions: Sequence[str],
    image_ids: Sequence[Hashable],
    *,
    num_distractors: int = NUM_DISTRACTORS,
    seed: int,
) -> Float[np.ndarray, "n"]:
    """Return for each image whether its caption is the nearest among captions of other images.

    Xu et al., "AttnGAN", CVPR 2018, with CLIP's cosines (Park et al., "Benchmark for Compositional
    Text-to-Image Synthesis", 2021). A tie counts against the model.

    Args:
        image_emb: one row for each image.
        text_emb: the embedding of each image's caption.
        captions: the caption of each image.
        image_ids: the photograph that each caption describes; an image has one or more captions.
        num_distractors: captions that each true caption is ranked among.
        seed: of the distractors.

    Returns:
        1 where the true caption is strictly nearest, else 0.

    Raises:
        EvaluationError: an embedding is not finite, or has no length, the lengths differ, or there
            are too few distinct captions.
    """
    images, texts = _unit_pair(image_emb, text_emb)
    if not len(captions) == len(image_ids) == len(images):
        raise EvaluationError(
            f"{len(images)} images came with {len(captions)} captions and {len(image_ids)} ids"
        )
    distractors = draw_distractors(captions, image_ids, num_distractors, seed)
    is_nearest = np.empty(len(images))
    for start in range(0, len(images), _BLOCK):
        block = slice(start, start + _BLOCK)
        true = np.einsum("ne,ne->n", images[block], texts[block])
        others = np.einsum("ne,nke->nk", images[block], texts[distractors[block]])
        is_nearest[block] = true > others.max(axis=1) + TIE
    return is_nearest


def draw_distractors(
    captions: Sequence[str], image_ids: Sequence[Hashable], num: int, seed: int
) -> Int[np.ndarray, "n k"]:
    """Draw for each caption the rows of distinct captions that describe other images only.

    Texts are the same when they differ in case and white space alone; a text that also describes
    this image is never drawn for it, from whichever image it comes. The draw follows from the seed,
    the text and the image, not from the order of the rows.

    Args:
        captions: the caption of each row.
        image_ids: the photograph of each row.
        num: k, how many to draw for each.
        seed: of the draw.

    Raises:
        EvaluationError: there are too few distinct captions.
    """
    keys = np.array([" ".join(caption.lower().split()) for caption in captions])
    texts, first_row, text_of = np.unique(keys, return_index=True, return_inverse=True)
    texts_of_image: dict[Hashable, set[int]] = {}
    for image, text in zip(image_ids, text_of.tolist(), strict=True):
        texts_of_image.setdefault(image, set()).add(text)
    needed = num + max((len(own) for own in texts_of_image.values()), default=1)
    if len(texts) < needed:
        raise EvaluationError(
            f"R-precision ranks each caption among {num} of other images, which needs {needed} "
            f"distinct captions here; there are {len(texts)}: use more samples"
        )
    rows = np.empty((len(keys), num), np.int64)
    for row, (image, text) in enumerate(zip(image_ids, text_of.tolist(), strict=True)):
        own = texts_of_image[image]
        rng = np.random.default_rng([seed, text, min(own)])
        # More than are needed: the image's own captions fall out.
        drawn = rng.choice(len(texts), num + len(own), replace=False).tolist()
        rows[row] = first_row[[other for other in drawn if other not in own][:num]]
    return rows


def _unit_pair(
    image_emb: Float[np.ndarray, "n e"], text_emb: Float[np.ndarray, "n e"]
) -> tuple[Float[np.ndarray, "n e"], Float[np.ndarray, "n e"]]:
    """Return the embeddings of images and of their captions at length 1, in float64."""
    if image_emb.shape != text_emb.shape:
        raise EvaluationError(
            f"embeddings of images have the shape {image_emb.shape} and those of their captions "
            f"{text_emb.shape}; embed both with the same CLIP, a caption for each image"
        )
    return unit_rows(image_emb, "embeddings"), unit_rows(text_emb, "embeddings of the captions")


def unit_rows(values: Float[np.ndarray, "n e"], what: str) -> Float[np.ndarray, "n e"]:
    """Return rows scaled to length 1, in float64.

    Args:
        values: embeddings, one row for each image.
        what: their name in errors.

    Raises:
        EvaluationError: a row is not finite, or is zero.
    """
    require_finite(values, what)
    values = values.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if not lengths.all():
        raise EvaluationError(
            f"{what} of image {int(np.argmin(lengths))} (counted from 0) are zero and have no "
            "direction: no score"
        )
    return values / lengths
