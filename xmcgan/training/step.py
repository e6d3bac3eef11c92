"""One training step: where the generator, the discriminator and the losses meet.

Pure functions of (state, batch). Both losses are taken at the same parameters, as in the official
code: one forward pass of each network, then two pull-backs, the discriminator's loss to its
parameters and the generator's loss through the generated half alone to the generator.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from xmcgan.losses.adversarial import hinge_discriminator, hinge_generator
from xmcgan.losses.contrastive import Contrast, feature_contrast, in_groups, word_region_contrast
from xmcgan.models.discriminator import ImageEncoding
from xmcgan.models.spectral_norm import spectral_normalize
from xmcgan.training.state import Networks, TrainState

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


class FrozenNetworks(NamedTuple):
    """Hold the pretrained networks as functions of (parameters, inputs).

    Attributes:
        encode_text: (params, token_ids, word_mask) -> (words, sentence).
        encode_image: (params, images) -> features, or None where its loss is off.
    """

    encode_text: Callable[..., tuple[Array, Array]]
    encode_image: Callable[..., Array] | None = None


def make_train_step(
    networks: Networks, frozen: FrozenNetworks, config: ConfigDict
) -> Callable[[TrainState, Any, dict[str, Array]], tuple[TrainState, Metrics]]:
    """Build the step that the training loop compiles.

    Args:
        networks: the two networks and their optimisers.
        frozen: the pretrained networks.
        config: `losses`, `ema_decay`, `ema_warmup`, `contrastive_group_size` are read.

    Returns:
        A pure function (state, frozen_params, batch) -> (state, metrics); `frozen_params` has
        `text` and `image`, the batch `image` uint8 (d_steps, b, h, w, 3), `token_ids` and
        `word_mask` (d_steps, b, t). All parts but the last update the discriminator alone.
    """

    def train_step(
        state: TrainState, frozen_params: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        d_steps = batch["image"].shape[0]
        metrics: Metrics = {}
        for index in range(d_steps):
            part = {name: value[index] for name, value in batch.items()}
            real = part["image"].astype(jnp.float32) / 255
            words, sentence = frozen.encode_text(
                frozen_params["text"], part["token_ids"], part["word_mask"]
            )
            captions = Captions(words, part["word_mask"], sentence)
            shape = (real.shape[0], networks.generator.z_dim)
            z = jax.random.normal(jax.random.fold_in(rng, index), shape)
            if index < d_steps - 1:
                state = discriminator_step(state, real, captions, z, networks, config)
            else:
                encode_image = None
                if frozen.encode_image is not None:
                    encode_image = partial(frozen.encode_image, frozen_params["image"])
                state, metrics = joint_step(
                    state, real, captions, z, networks, config, encode_image
                )
        return state.replace(step=state.step + 1), metrics

    return train_step


def discriminator_step(
    state: TrainState,
    real: Float[Array, "b h w 3"],
    captions: Captions,
    z: Float[Array, "b z"],
    networks: Networks,
    config: ConfigDict,
) -> TrainState:
    """Update the discriminator alone, against images of the generator as it stands.

    The generator's running statistics are left to the joint step, so that they advance once a
    step whatever `d_steps` is.
    """
    fake, _ = generate(networks, state.g_params, state.g_batch_stats, captions, z)

    def loss_fn(d_params: Any) -> tuple[Array, Any]:
        real_encoding, fake_encoding, vectors = encode_pair(
            networks, d_params, state.d_vectors, real, fake, captions
        )
        loss, _ = discriminator_loss(real_encoding, fake_encoding, captions, config)
        return loss, vectors

    grads, vectors = jax.grad(loss_fn, has_aux=True)(state.d_params)
    return update_discriminator(state, grads, vectors, networks)


def joint_step(
    state: TrainState,
    real: Float[Array, "b h w 3"],
    captions: Captions,
    z: Float[Array, "b z"],
    networks: Networks,
    config: ConfigDict,
    encode_image: Callable[[Array], Array] | None,
) -> tuple[TrainState, Metrics]:
    """Update both networks from the same parameters."""
    d_grads, g_grads, batch_stats, vectors, metrics = joint_gradients(
        state, real, captions, z, networks, config, encode_image
    )
    metrics["d_grad_norm"] = optax.tree.norm(d_grads)
    metrics["g_grad_norm"] = optax.tree.norm(g_grads)
    state = update_discriminator(state, d_grads, vectors, networks)
    return update_generator(state, g_grads, batch_stats, networks, config), metrics


def joint_gradients(
    state: TrainState,
    real: Float[Array, "b h w 3"],
    captions: Captions,
    z: Float[Array, "b z"],
    networks: Networks,
    config: ConfigDict,
    encode_image: Callable[[Array], Array] | None,
) -> tuple[Any, Any, Any, Any, Metrics]:
    """Differentiate both losses at the same parameters.

    Args:
        state: parameters, statistics and vectors to start from.
        real: images in [0, 1].
        captions: their captions, encoded.
        z: standard normal noise.
        networks: the two networks.
        config: `losses` and `contrastive_group_size` are read.
        encode_image: the frozen image network, or None where its loss is off.

    Returns:
        The discriminator's gradients, the generator's, its new running statistics, the new
        vectors of the spectral norms, and all losses and accuracies by name.
    """
    fake, pull_to_generator, batch_stats = jax.vjp(
        lambda g_params: generate(networks, g_params, state.g_batch_stats, captions, z),
        state.g_params,
        has_aux=True,
    )

    def losses_fn(d_params: Any, fake: Array) -> tuple[tuple[Array, Array], Any]:
        real_encoding, fake_encoding, vectors = encode_pair(
            networks, d_params, state.d_vectors, real, fake, captions
        )
        d_loss, d_metrics = discriminator_loss(real_encoding, fake_encoding, captions, config)
        pretrained = None
        if encode_image is not None:
            pretrained = (encode_image(real), encode_image(fake))
        g_loss, g_metrics = generator_loss(
            real_encoding, fake_encoding, captions, config, pretrained
        )
        return (d_loss, g_loss), (vectors, d_metrics | g_metrics)

    (d_loss, g_loss), pull_back, (vectors, metrics) = jax.vjp(
        losses_fn, state.d_params, fake, has_aux=True
    )
    one, zero = jnp.ones_like(d_loss), jnp.zeros_like(d_loss)
    # What is not asked for here (the generator's loss to the discriminator's parameters, the real
    # half of its backward pass) is dead code to the compiler and costs nothing.
    d_grads, _ = pull_back((one, zero))
    _, fake_grads = pull_back((zero, one))
    (g_grads,) = pull_to_generator(fake_grads)
    return d_grads, g_grads, batch_stats, vectors, metrics | {"d_loss": d_loss, "g_loss": g_loss}


def generate(
    networks: Networks, g_params: Any, batch_stats: Any, captions: Captions, z: Float[Array, "b z"]
) -> tuple[Float[Array, "b h w 3"], Any]:
    """Draw images in training mode; also return the new running statistics."""
    variables = {"params": g_params, "batch_stats": batch_stats}
    fake, updates = networks.generator.apply(
        variables, *captions, z, train=True, mutable=["batch_stats"]
    )
    return fake, updates["batch_stats"]


def encode_pair(
    networks: Networks,
    d_params: Any,
    vectors: Any,
    real: Float[Array, "b h w 3"],
    fake: Float[Array, "b h w 3"],
    captions: Captions,
) -> tuple[ImageEncoding, ImageEncoding, Any]:
    """Encode real and generated images with one spectral normalisation of the parameters."""
    normalized, vectors = spectral_normalize(d_params, vectors)
    encode: Any = partial(networks.discriminator.apply, {"params": normalized})
    return encode(real, captions.sentence), encode(fake, captions.sentence), vectors


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


def update_discriminator(
    state: TrainState, grads: Any, vectors: Any, networks: Networks
) -> TrainState:
    """Apply the discriminator's gradients."""
    updates, opt_state = networks.d_optimizer.update(grads, state.d_opt_state, state.d_params)
    return state.replace(
        d_params=optax.apply_updates(state.d_params, updates),
        d_opt_state=opt_state,
        d_vectors=vectors,
    )


def update_generator(
    state: TrainState, grads: Any, batch_stats: Any, networks: Networks, config: ConfigDict
) -> TrainState:
    """Apply the generator's gradients and advance the moving averages."""
    updates, opt_state = networks.g_optimizer.update(grads, state.g_opt_state, state.g_params)
    params = optax.apply_updates(state.g_params, updates)
    decay = jnp.float32(config.ema_decay)
    if config.ema_warmup:
        # Deviation: a short run's average would otherwise be mostly its random start.
        decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))

    def average(old: Any, new: Any) -> Any:
        return jax.tree.map(lambda o, n: decay * o + (1 - decay) * n, old, new)

    return state.replace(
        g_params=params,
        g_opt_state=opt_state,
        g_batch_stats=batch_stats,
        ema_params=average(state.ema_params, params),
        ema_batch_stats=average(state.ema_batch_stats, batch_stats),
    )
