"""The two sums of losses that a step minimises (paper, training algorithm)."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from xmcgan.losses.adversarial import hinge_discriminator, hinge_generator
from xmcgan.losses.contrastive import Contrast, feature_contrast, in_groups, word_region_contrast
from xmcgan.models.discriminator import ImageEncoding
from xmcgan.training.monitoring import pairwise_similarity

Metrics = dict[str, Float[Array, ""]]


class Captions(NamedTuple):
    """Hold a batch of encoded captions.

    Attributes:
        words: one feature vector a token, special tokens included.
        word_mask: true where a token stands, false on padding.
        sentence: one feature vector a caption.
    """

    words: Float[Array, "b t d"]
    word_mask: Bool[Array, "b t"]
    sentence: Float[Array, "b e"]


def discriminator_loss(
    real: ImageEncoding, fake: ImageEncoding, captions: Captions, config: ConfigDict
) -> tuple[Float[Array, ""], Metrics]:
    """Add up the discriminator's losses (paper, training algorithm).

    Its contrastive heads learn from real images only.

    Returns:
        The weighted sum, and every loss and accuracy by name.
    """
    terms: Metrics = {}
    metrics: Metrics = {
        "d_real_logit": jnp.mean(real.logits),
        "d_fake_logit": jnp.mean(fake.logits),
        "d_margin": jnp.mean(real.logits) - jnp.mean(fake.logits),
        "real_similarity": pairwise_similarity(real.feature),
        "fake_similarity": pairwise_similarity(fake.feature),
    }
    if config.losses.hinge.enabled:
        terms["hinge"] = hinge_discriminator(real.logits, fake.logits)
    for name, contrast in caption_contrasts(real, captions, config).items():
        terms[name] = contrast.loss
        metrics |= contrast_metrics(f"real_{name}", contrast)
    metrics |= {f"d_{name}_loss": value for name, value in terms.items()}
    return weighted_sum(terms, config), metrics


def generator_loss(
    real: ImageEncoding,
    fake: ImageEncoding,
    captions: Captions,
    config: ConfigDict,
    pretrained: tuple[Float[Array, "b f"], Float[Array, "b f"]] | None,
) -> tuple[Float[Array, ""], Metrics]:
    """Add up the generator's losses (paper, training algorithm).

    Args:
        real: encoding of the real images.
        fake: encoding of the generated images.
        captions: the captions of both.
        config: `losses` and `contrastive_group_size` are read.
        pretrained: the frozen network's features of (real, generated) images, or None.

    Returns:
        The weighted sum, and every loss and accuracy by name.
    """
    terms: Metrics = {}
    contrasts = caption_contrasts(fake, captions, config)
    image_sides = {
        "image_discriminator": (real.feature, fake.feature),
        "image_pretrained": pretrained,
    }
    for name, sides in image_sides.items():
        if config.losses[name].enabled and sides is not None:
            contrast_fn = partial(feature_contrast, temperature=config.losses[name].temperature)
            contrasts[name] = in_groups(contrast_fn, config.contrastive_group_size, *sides)
    if config.losses.hinge.enabled:
        terms["hinge"] = hinge_generator(fake.logits)
    metrics: Metrics = {}
    for name, contrast in contrasts.items():
        terms[name] = contrast.loss
        metrics |= contrast_metrics(f"fake_{name}", contrast)
    metrics |= {f"g_{name}_loss": value for name, value in terms.items()}
    return weighted_sum(terms, config), metrics


def caption_contrasts(
    images: ImageEncoding, captions: Captions, config: ConfigDict
) -> dict[str, Contrast]:
    """Contrast images with their sentences and with their words, as far as switched on."""
    losses, group_size = config.losses, config.contrastive_group_size
    contrasts = {}
    if losses.sentence.enabled:
        contrast_fn = partial(feature_contrast, temperature=losses.sentence.temperature)
        contrasts["sentence"] = in_groups(contrast_fn, group_size, images.feature, images.sentence)
    if losses.word.enabled:
        contrast_fn = partial(
            word_region_contrast,
            region_gamma=losses.word.region_gamma,
            word_gamma=losses.word.word_gamma,
            score_gamma=1 / losses.word.temperature,
        )
        contrasts["word"] = in_groups(
            contrast_fn, group_size, images.regions, captions.words, captions.word_mask
        )
    return contrasts


def contrast_metrics(name: str, contrast: Contrast) -> Metrics:
    """Name a contrastive loss's accuracy and entropy for the logs."""
    return {f"{name}_accuracy": contrast.accuracy, f"{name}_entropy": contrast.entropy}


def weighted_sum(terms: Metrics, config: ConfigDict) -> Float[Array, ""]:
    """Add up losses by the weights of the config."""
    total = jnp.zeros(())
    for name, value in terms.items():
        total = total + config.losses[name].weight * value
    return total
