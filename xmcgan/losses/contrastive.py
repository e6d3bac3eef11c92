"""The contrastive losses: image with sentence, image with image, image region with word.

All are the same cross entropy over a (b, b) matrix of similarities (paper, "Contrastive losses");
they differ in how two sides become similar.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmcgan.models.attention import MASKED_LOGIT, l2_normalize

# Elements of the largest arrays of the word loss, (b, r, captions, t). Up to the first number all
# captions are taken at once; beyond it in turns of the second, each computed again in the backward
# pass: 2**23 float32 are 34 MB.
MAX_WHOLE, MAX_A_TURN = 2**25, 2**23


class Contrast(NamedTuple):
    """Hold a contrastive loss and what it says of training.

    Attributes:
        loss: cross entropy of both retrieval directions, summed.
        accuracy: share of pairs that are retrieved first, mean of both directions, in [0, 1].
        entropy: of the retrieval distributions in nats, mean of both directions.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    entropy: Float[Array, ""]


def cross_entropy_both_ways(logits: Float[Array, "b b"]) -> Contrast:
    """Ask each row for its own column and each column for its own row.

    Deviation: both directions are summed, as in the official code; the paper's formulas have one.

    Args:
        logits: similarity of every pair; matching pairs stand on the diagonal.

    Returns:
        The summed loss, accuracy and entropy.
    """
    targets = jnp.arange(logits.shape[0])
    losses, accuracies, entropies = [], [], []
    for direction in (logits, logits.T):
        log_probs = jax.nn.log_softmax(direction, axis=-1)
        losses.append(-jnp.mean(jnp.diagonal(log_probs)))
        accuracies.append(jnp.mean(jnp.argmax(direction, axis=-1) == targets))
        entropies.append(-jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)))
    return Contrast(
        loss=losses[0] + losses[1],
        accuracy=(accuracies[0] + accuracies[1]) / 2,
        entropy=(entropies[0] + entropies[1]) / 2,
    )


def feature_contrast(
    a: Float[Array, "b d"], b: Float[Array, "b d"], temperature: float
) -> Contrast:
    """Contrast two sets of global features.

    Paper, "Image-text contrastive loss", and "Contrastive loss between fake and real images with
    shared description".

    Args:
        a: features of one side.
        b: features of the other, row by row the match of `a`.
        temperature: divides the cosine similarities, > 0.

    Returns:
        Loss, accuracy and entropy.
    """
    return cross_entropy_both_ways(l2_normalize(a) @ l2_normalize(b).T / temperature)


def word_region_contrast(
    regions: Float[Array, "b r d"],
    words: Float[Array, "b t d"],
    word_mask: Bool[Array, "b t"],
    *,
    region_gamma: float,
    word_gamma: float,
    score_gamma: float,
) -> Contrast:
    """Contrast images and captions through their regions and words.

    Paper, "Contrastive loss between image regions and words"; its rho_1, rho_2 and 1 / tau are
    the three gammas.

    Args:
        regions: features of each image's regions.
        words: features of each caption's words.
        word_mask: true where a word stands, false on padding.
        region_gamma: sharpness of a word's attention over regions.
        word_gamma: sharpness of the pooling of a caption's words: large takes the best word.
        score_gamma: inverse temperature of the cross entropy.

    Returns:
        Loss, accuracy and entropy.
    """
    scores = word_region_scores(
        regions, words, word_mask, region_gamma=region_gamma, word_gamma=word_gamma
    )
    return cross_entropy_both_ways(score_gamma * scores)


def word_region_scores(
    regions: Float[Array, "b r d"],
    words: Float[Array, "n t d"],
    word_mask: Bool[Array, "n t"],
    *,
    region_gamma: float,
    word_gamma: float,
) -> Float[Array, "b n"]:
    """Score every image against every caption: the paper's S_word without its temperature.

    A word's context is c = sum_r a_r R_r. Its cosine with the word w needs <w, c> = sum_r a_r
    <w, R_r> and |c|^2 = a' G a, with G the Gram matrix of the image's regions: no context, which
    would be (b, n, t, d), is ever made. Captions are taken in turns where even (b, r, n, t) is
    large. First derivatives only, see `_counted_twice`.

    Args:
        regions: features of each image's regions.
        words: features of each caption's words.
        word_mask: true where a word stands, false on padding.
        region_gamma: sharpness of a word's attention over regions.
        word_gamma: sharpness of the pooling of a caption's words.

    Returns:
        The scores, images by captions, float32.
    """
    regions, words = l2_normalize(regions), l2_normalize(words)
    gram = jnp.einsum("brd,bsd->brs", _counted_twice(regions), jax.lax.stop_gradient(regions))

    def score_captions(captions: tuple[Array, Array]) -> Float[Array, "b k"]:
        words, mask = captions
        flat = words.reshape(-1, words.shape[-1])  # all words of all captions: one large product
        similarity = jnp.einsum("brd,jd->brj", regions, flat)
        attention = jax.nn.softmax(region_gamma * similarity, axis=1)
        inner = jnp.sum(attention * similarity, axis=1)
        mixed = jnp.einsum("brs,bsj->brj", gram, jax.lax.stop_gradient(attention))
        norm_squared = jnp.sum(_counted_twice(attention) * mixed, axis=1)
        cosine = inner * jax.lax.rsqrt(jnp.maximum(norm_squared, 1e-12))
        cosine = jnp.where(mask, word_gamma * cosine.reshape(-1, *mask.shape), MASKED_LOGIT)
        return jax.nn.logsumexp(cosine, axis=-1) / word_gamma

    num, per_caption = words.shape[0], regions.shape[0] * regions.shape[1] * words.shape[1]
    if num * per_caption <= MAX_WHOLE:
        return score_captions((words, word_mask))
    turns = -(-num * per_caption // MAX_A_TURN)
    at_once = -(-num // turns)
    missing = turns * at_once - num  # captions without words, whose scores are dropped
    words = jnp.pad(words, ((0, missing), (0, 0), (0, 0))).reshape(turns, at_once, *words.shape[1:])
    word_mask = jnp.pad(word_mask, ((0, missing), (0, 0))).reshape(turns, at_once, -1)
    scores = jax.lax.map(jax.checkpoint(score_captions), (words, word_mask))
    return jnp.swapaxes(scores, 0, 1).reshape(-1, turns * at_once)[:, :num]


def _counted_twice(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x, with twice its gradient.

    In a product of x with itself, both sides have the same gradient: R R' and a' G a are symmetric.
    One side stands for both, the other is taken as constant, and half the products of the backward
    pass are saved. The value is exact, 2 x - x; a second derivative would not be.
    """
    return 2 * x - jax.lax.stop_gradient(x)


def in_groups(
    contrast_fn: Callable[..., Contrast], group_size: int, *sides: Float[Array, "b ..."]
) -> Contrast:
    """Contrast within groups of the batch instead of over the whole of it.

    Args:
        contrast_fn: a contrastive loss of arrays with a leading batch axis.
        group_size: pairs that see each other as negatives; 0 is the whole batch.
        *sides: the loss's arrays.

    Returns:
        Loss, accuracy and entropy, mean over the groups.
    """
    if group_size == 0:
        return contrast_fn(*sides)
    grouped = [side.reshape(-1, group_size, *side.shape[1:]) for side in sides]
    return Contrast(*(jnp.mean(value) for value in jax.vmap(contrast_fn)(*grouped)))
