"""The contrastive losses: image with sentence, image with image, image region with word.

All are the same cross entropy over a (b, b) matrix of similarities (paper, "Contrastive losses");
they differ in how two sides become similar.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmcgan.errors import ConfigError
from xmcgan.losses.context import Context, Features, Metrics
from xmcgan.models.attention import MASKED_LOGIT, l2_normalize

# Elements of the largest arrays of the word loss, (b, r, captions, t). Up to MAX_ELEMENTS all
# captions are taken at once; beyond it in chunks, each computed again in the backward pass:
# 2**23 float32 are 34 MB.
MAX_ELEMENTS, CHUNK_ELEMENTS = 2**25, 2**23


class Contrast(NamedTuple):
    """Contrastive loss with retrieval accuracy (0 to 1) and entropy (nats), means of both ways."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    entropy: Float[Array, ""]


def symmetric_cross_entropy(logits: Float[Array, "b b"]) -> Contrast:
    """Cross entropy over rows and over columns; positives are on the diagonal.

    Deviation: both directions are summed, as in the official code; the paper's formulas have one.
    """
    targets = jnp.arange(logits.shape[0])
    losses, accuracies, entropies = [], [], []
    for direction in (logits, logits.T):
        log_probs = jax.nn.log_softmax(direction, axis=-1)
        losses.append(-jnp.mean(jnp.diagonal(log_probs)))
        accuracies.append(jnp.mean(jnp.argmax(direction, axis=-1) == targets, dtype=float))
        entropies.append(-jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)))
    return Contrast(
        losses[0] + losses[1],
        (accuracies[0] + accuracies[1]) / 2,
        (entropies[0] + entropies[1]) / 2,
    )


def feature_contrast(
    a: Float[Array, "b d"], b: Float[Array, "b d"], temperature: float
) -> Contrast:
    """Contrast global features of images with those of sentences or images, row by row."""
    return symmetric_cross_entropy(l2_normalize(a) @ l2_normalize(b).T / temperature)


def word_region_contrast(
    regions: Float[Array, "b r d"],
    words: Float[Array, "b t d"],
    word_mask: Bool[Array, "b t"],
    *,
    score_gamma: float,
    **gammas: float,
) -> Contrast:
    """Contrast images and captions through their regions and words; `score_gamma` is 1 / tau."""
    return symmetric_cross_entropy(
        score_gamma * word_region_scores(regions, words, word_mask, **gammas)
    )


def word_region_scores(
    regions: Float[Array, "b r d"],
    words: Float[Array, "n t d"],
    word_mask: Bool[Array, "n t"],
    *,
    region_gamma: float,
    word_gamma: float,
) -> Float[Array, "b n"]:
    """Score every image against every caption: the paper's S_word without its temperature.

    Its rho_1 is `region_gamma`, of the attention over regions; rho_2 `word_gamma`, of the pooling
    of a caption's words.

    A word's context is c = sum_r a_r R_r. Its cosine with the word w needs <w, c> = sum_r a_r
    <w, R_r> and |c|^2 = a' G a, with G the Gram matrix of the image's regions: no context, which
    would be (b, n, t, d), is ever made. First derivatives only, see `_double_gradient`.
    """
    regions, words = l2_normalize(regions), l2_normalize(words)
    gram = jnp.einsum("brd,bsd->brs", _double_gradient(regions), jax.lax.stop_gradient(regions))

    def score_captions(captions: tuple[Array, Array]) -> Float[Array, "b k"]:
        words, mask = captions
        flat = words.reshape(-1, words.shape[-1])  # all words of all captions: one large product
        similarity = jnp.einsum("brd,jd->brj", regions, flat)
        attention = jax.nn.softmax(region_gamma * similarity, axis=1)
        inner = jnp.sum(attention * similarity, axis=1)
        mixed = jnp.einsum("brs,bsj->brj", gram, jax.lax.stop_gradient(attention))
        norm_squared = jnp.sum(_double_gradient(attention) * mixed, axis=1)
        cosine = inner * jax.lax.rsqrt(jnp.maximum(norm_squared, 1e-12))
        cosine = jnp.where(mask, word_gamma * cosine.reshape(-1, *mask.shape), MASKED_LOGIT)
        return jax.nn.logsumexp(cosine, axis=-1) / word_gamma

    num, per_caption = words.shape[0], regions.shape[0] * regions.shape[1] * words.shape[1]
    if num * per_caption <= MAX_ELEMENTS:
        return score_captions((words, word_mask))
    # At least one caption is padding, whose scores are dropped: captions that can be cut evenly
    # stay on their devices, and each turn of the loop would gather all of them.
    padded = num + 1
    chunk = -(-padded // -(-padded * per_caption // CHUNK_ELEMENTS))
    num_chunks = -(-padded // chunk)
    missing = num_chunks * chunk - num
    words = jnp.pad(words, ((0, missing), (0, 0), (0, 0))).reshape(
        num_chunks, chunk, *words.shape[1:]
    )
    word_mask = jnp.pad(word_mask, ((0, missing), (0, 0))).reshape(num_chunks, chunk, -1)
    scores = jax.lax.map(jax.checkpoint(score_captions), (words, word_mask))
    return jnp.swapaxes(scores, 0, 1).reshape(-1, num_chunks * chunk)[:, :num]


def _double_gradient(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return x, with twice its gradient."""
    # In a product of x with itself, both sides have the same gradient: R R' and a' G a are
    # symmetric. One side stands for both, the other is taken as constant, and half the products of
    # the backward pass are saved. The value is exact, 2 x - x; a second derivative would not be.
    return 2 * x - jax.lax.stop_gradient(x)


def in_groups(
    contrast_fn: Callable[..., Contrast], group_size: int, *sides: Float[Array, "b ..."]
) -> Contrast:
    """Contrast within groups of `group_size` pairs (0: the whole batch); means over the groups."""
    if group_size == 0:
        return contrast_fn(*sides)
    grouped = [side.reshape(-1, group_size, *side.shape[1:]) for side in sides]
    return Contrast(*(jnp.mean(value) for value in jax.vmap(contrast_fn)(*grouped)))


class _ContrastiveLoss:
    """Base of the contrastive losses; temperature > 0."""

    def __init__(self, temperature: float = 0.1) -> None:
        if not temperature > 0:
            raise ConfigError(f"temperature = {temperature} of a contrastive loss must be above 0")
        self.temperature = temperature

    def _contrast(self, context: Context, *sides: Array) -> tuple[Float[Array, ""], Metrics]:
        contrast = in_groups(self._pair, context.group_size, *sides)
        return contrast.loss, {"accuracy": contrast.accuracy, "entropy": contrast.entropy}

    def _pair(self, *sides: Array) -> Contrast:
        a, b = sides
        return feature_contrast(a, b, self.temperature)


class SentenceContrast(_ContrastiveLoss):
    """Images with their sentences; the discriminator learns from real images only."""

    def discriminator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        return self._of(context, context.real)

    def generator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        return self._of(context, context.fake)

    def _of(self, context: Context, images: Features) -> tuple[Float[Array, ""], Metrics]:
        return self._contrast(context, images.output.feature, images.output.sentence)


class WordContrast(SentenceContrast):
    """Image regions with words; temperature 0.02 is the official code's factor 50."""

    def __init__(
        self, temperature: float = 0.02, region_gamma: float = 5.0, word_gamma: float = 5.0
    ) -> None:
        super().__init__(temperature)
        self.region_gamma, self.word_gamma = region_gamma, word_gamma

    def _of(self, context: Context, images: Features) -> tuple[Float[Array, ""], Metrics]:
        captions = context.captions
        return self._contrast(context, images.output.regions, captions.words, captions.word_mask)

    def _pair(self, *sides: Array) -> Contrast:
        gammas = {"region_gamma": self.region_gamma, "word_gamma": self.word_gamma}
        regions, words, mask = sides
        return word_region_contrast(
            regions, words, mask, score_gamma=1 / self.temperature, **gammas
        )


class ImageContrast(_ContrastiveLoss):
    """Generated images with the real images of their captions, by the discriminator's features."""

    def generator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        return self._contrast(context, context.real.output.feature, context.fake.output.feature)


class PretrainedContrast(_ContrastiveLoss):
    """The same by the features of a frozen image network (`pretrained.encoders` loads it)."""

    def __init__(
        self,
        temperature: float = 0.1,
        network: str = "resnet50",  # or efficientnet_lite0, vgg16, vgg19
        weights: str = "",  # a path; empty: the network's own download, if it has one
        feature: str = "logits",  # or pooled
        in_place_of: str = "",
        input_size: int = 224,
    ) -> None:
        super().__init__(temperature)

    def generator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        sides: Any = (context.real.pretrained, context.fake.pretrained)
        return self._contrast(context, *sides)
