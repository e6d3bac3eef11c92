"""One training step: where the generator, the discriminator and the losses meet.

Pure functions of (state, batch). Both losses are taken at the same parameters, as in the official
code: one forward pass of each network, then two pull-backs, the discriminator's loss to its
parameters and the generator's loss through the generated half alone to the generator. A batch may
come in parts: the networks take one after the other, the losses see all of them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from ml_collections import ConfigDict

from xmcgan.models.augment import NUM_UNIFORMS, diff_augment
from xmcgan.models.discriminator import ImageEncoding, logit_slopes
from xmcgan.models.spectral_norm import spectral_normalize, spectral_norms
from xmcgan.training.microbatches import encode_parts, map_parts, merge_parts
from xmcgan.training.monitoring import hinge_to_contrast
from xmcgan.training.objectives import Captions, Metrics, discriminator_loss, generator_loss
from xmcgan.training.state import Networks, TrainState


class Examples(NamedTuple):
    """Hold what one update sees, in parts.

    Attributes:
        real: images in [0, 1].
        captions: their captions, encoded; arrays with leading axes (m, n).
        z: standard normal noise.
        uniforms: in [0, 1), for the augmentation of the real and of the generated images.
    """

    real: Float[Array, "m n h w 3"]
    captions: Captions
    z: Float[Array, "m n z"]
    uniforms: Float[Array, "m n 2 7"] | None = None


class Encodings(NamedTuple):
    """Hold all features that the losses of an update ask for.

    Attributes:
        real: the discriminator's encoding of the real images.
        fake: its encoding of the generated images.
        pretrained: the frozen network's features of (real, generated) images, or None where its
            loss is off.
    """

    real: ImageEncoding
    fake: ImageEncoding
    pretrained: tuple[Float[Array, "m n f"], Float[Array, "m n f"]] | None = None


# In a gradient by the features, instead of zeros where a loss does not use them.
_NONE: Any = None


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
        config: `num_microbatches`, `losses`, `ema_decay`, `ema_warmup` and
            `contrastive_group_size` are read.

    Returns:
        A pure function (state, frozen_params, batch) -> (state, metrics); `frozen_params` has
        `text` and `image`, the batch `image` uint8 (d_steps * m, n, h, w, 3), `token_ids` and
        `word_mask` (d_steps * m, n, t), with m microbatches of n images an update. All updates
        but the last are of the discriminator alone. An update whose gradients are not finite is
        skipped and counted in `skipped_updates`; where it is the last, other metrics are not
        finite either.
    """

    def train_step(
        state: TrainState, frozen_params: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[TrainState, Metrics]:
        bound = networks.with_frozen(frozen_params.get("discriminator", {}))
        encode_text = partial(frozen.encode_text, frozen_params["text"])
        encode_image = None
        if frozen.encode_image is not None:
            encode_image = partial(frozen.encode_image, frozen_params["image"])
        updates = [*split_updates(state, batch, encode_text, bound, config)]
        skipped = jnp.zeros(())
        for examples in updates[:-1]:
            state, is_finite = discriminator_step(state, examples, bound, config)
            skipped += 1 - is_finite
        state, is_finite, metrics = joint_step(state, updates[-1], bound, config, encode_image)
        skipped += 1 - is_finite
        return state.replace(step=state.step + 1), metrics | {"skipped_updates": skipped}

    return train_step


def split_updates(
    state: TrainState,
    batch: dict[str, Array],
    encode_text: Callable[[Array, Array], tuple[Array, Array]],
    networks: Networks,
    config: ConfigDict,
) -> Iterator[Examples]:
    """Yield what each update of a step sees; its noise follows from the state's key and step."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    parts = config.num_microbatches
    for index in range(batch["image"].shape[0] // parts):
        update = {name: x[index * parts : (index + 1) * parts] for name, x in batch.items()}
        key = jax.random.fold_in(rng, index)
        augment = bool(config.discriminator.augment)
        yield make_examples(update, key, encode_text, networks.generator.z_dim, augment=augment)


def make_examples(
    batch: dict[str, Array],
    key: PRNGKeyArray,
    encode_text: Callable[[Array, Array], tuple[Array, Array]],
    z_dim: int,
    *,
    augment: bool = False,
) -> Examples:
    """Scale the images of an update, encode its captions and draw its random numbers."""
    tokens = (batch["token_ids"], batch["word_mask"])
    words, sentence = map_parts(lambda part: encode_text(*part), tokens)
    num_parts, size = batch["image"].shape[:2]
    # Drawn for the whole batch: an example's noise does not depend on the number of parts.
    z = jax.random.normal(key, (num_parts * size, z_dim)).reshape(num_parts, size, z_dim)
    uniforms = None
    if augment:
        uniforms = jax.random.uniform(
            jax.random.fold_in(key, 1), (num_parts * size, 2, NUM_UNIFORMS)
        ).reshape(num_parts, size, 2, NUM_UNIFORMS)
    real = batch["image"].astype(jnp.float32) / 255
    return Examples(real, Captions(words, batch["word_mask"], sentence), z, uniforms)


def discriminator_step(
    state: TrainState, examples: Examples, networks: Networks, config: ConfigDict
) -> tuple[TrainState, Bool[Array, ""]]:
    """Update the discriminator alone, against images of the generator as it stands.

    The generator's running statistics are left to the joint step, so that they advance once a
    step whatever `d_steps` is.

    Returns:
        The new state, and whether the gradients were finite: where not, it is the old one.
    """

    def draw(part: Examples) -> Float[Array, "n h w 3"]:
        return generate(networks, state.g_params, state.g_batch_stats, part.captions, part.z)[0]

    def encode(params: dict[str, Any], part: tuple[Examples, Array]) -> tuple[Encodings, Any]:
        return encode_pair(networks, params["d_loss"], *part, config), {}

    fake = map_parts(draw, examples)
    normalized, pull_to_kernels, vectors = normalize_discriminator(state)
    encodings, _, pull_back = encode_parts(encode, {"d_loss": normalized}, (examples, fake))
    feature_grads, _ = discriminator_feature_gradients(encodings, examples.captions, config)
    (grads,) = pull_to_kernels(pull_back({"d_loss": feature_grads})["d_loss"])
    is_finite = jnp.isfinite(optax.tree.norm(grads))
    update_fn = partial(update_discriminator, grads=grads, vectors=vectors, networks=networks)
    return update_if(is_finite, update_fn, state), is_finite


def joint_step(
    state: TrainState,
    examples: Examples,
    networks: Networks,
    config: ConfigDict,
    encode_image: Callable[[Array], Array] | None,
) -> tuple[TrainState, Bool[Array, ""], Metrics]:
    """Update both networks from the same parameters.

    Returns:
        The new state; whether all gradients were finite: where not, it is the old one; and the
        metrics.
    """
    d_grads, g_grads, batch_stats, vectors, metrics = joint_gradients(
        state, examples, networks, config, encode_image
    )
    metrics["d_grad_norm"] = optax.tree.norm(d_grads)
    metrics["g_grad_norm"] = optax.tree.norm(g_grads)

    def update_both(state: TrainState) -> TrainState:
        state = update_discriminator(state, d_grads, vectors, networks)
        return update_generator(state, g_grads, batch_stats, networks, config)

    is_finite = jnp.isfinite(metrics["d_grad_norm"] + metrics["g_grad_norm"])
    return update_if(is_finite, update_both, state), is_finite, metrics


def joint_gradients(
    state: TrainState,
    examples: Examples,
    networks: Networks,
    config: ConfigDict,
    encode_image: Callable[[Array], Array] | None,
) -> tuple[Any, Any, Any, Any, Metrics]:
    """Differentiate both losses at the same parameters.

    Args:
        state: parameters, statistics and vectors to start from.
        examples: real images, captions and noise.
        networks: the two networks.
        config: `losses` and `contrastive_group_size` are read.
        encode_image: the frozen image network, or None where its loss is off.

    Returns:
        The discriminator's gradients, the generator's, its new running statistics, the new
        vectors of the spectral norms, and all losses and accuracies by name.
    """

    def encode(params: dict[str, Any], part: Examples) -> tuple[Encodings, Any]:
        fake, batch_stats = generate(
            networks, params["g_loss"], state.g_batch_stats, part.captions, part.z
        )
        encodings = encode_pair(networks, params["d_loss"], part, fake, config)
        if encode_image is not None:
            pretrained = (encode_image(part.real), encode_image(fake))
            encodings = encodings._replace(pretrained=pretrained)
        return encodings, batch_stats

    normalized, pull_to_kernels, vectors = normalize_discriminator(state)
    params = {"d_loss": normalized, "g_loss": state.g_params}
    encodings, batch_stats, pull_back = encode_parts(encode, params, examples)
    d_feature_grads, d_metrics = discriminator_feature_gradients(
        encodings, examples.captions, config
    )
    g_feature_grads, g_metrics = generator_feature_gradients(encodings, examples.captions, config)
    grads = pull_back({"d_loss": d_feature_grads, "g_loss": g_feature_grads})
    (d_grads,) = pull_to_kernels(grads["d_loss"])
    norms = spectral_norms(state.d_params, normalized)
    metrics = d_metrics | g_metrics
    metrics |= {"d_spectral_norm_max": norms.max(), "d_spectral_norm_mean": norms.mean()}
    slopes = logit_slopes(normalized, encodings.fake.sentence)
    metrics["g_hinge_to_contrast"] = hinge_to_contrast(
        g_feature_grads.fake.logits, slopes, g_feature_grads.fake.feature
    )
    return d_grads, grads["g_loss"], batch_stats, vectors, metrics


def discriminator_feature_gradients(
    encodings: Encodings, captions: Captions, config: ConfigDict
) -> tuple[Encodings, Metrics]:
    """Differentiate the discriminator's loss by the features; None where it does not use them."""

    def loss_fn(real: ImageEncoding, fake_logits: Array) -> tuple[Array, Metrics]:
        fake = encodings.fake._replace(logits=fake_logits)
        merged, merged_captions = _merge((Encodings(real, fake), captions), config)
        return discriminator_loss(merged.real, merged.fake, merged_captions, config)

    (loss, metrics), (real, fake_logits) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
        encodings.real, encodings.fake.logits
    )
    fake = ImageEncoding(fake_logits, _NONE, _NONE, _NONE)
    return Encodings(real, fake), metrics | {"d_loss": loss}


def generator_feature_gradients(
    encodings: Encodings, captions: Captions, config: ConfigDict
) -> tuple[Encodings, Metrics]:
    """Differentiate the generator's loss by the generated images' features, None for the rest."""

    def loss_fn(fake: ImageEncoding, fake_feature: Any) -> tuple[Array, Metrics]:
        pretrained = encodings.pretrained and (encodings.pretrained[0], fake_feature)
        merged, merged_captions = _merge(
            (Encodings(encodings.real, fake, pretrained), captions), config
        )
        return generator_loss(merged.real, merged.fake, merged_captions, config, merged.pretrained)

    fake_feature = encodings.pretrained and encodings.pretrained[1]
    (loss, metrics), (fake, fake_feature) = jax.value_and_grad(loss_fn, (0, 1), has_aux=True)(
        encodings.fake, fake_feature
    )
    pretrained = encodings.pretrained and (_NONE, fake_feature)
    return Encodings(_NONE, fake, pretrained), metrics | {"g_loss": loss}


def _merge(parts: Any, config: ConfigDict) -> Any:
    merge = partial(merge_parts, group_size=config.contrastive_group_size)
    return jax.tree.map(merge, parts)


def generate(
    networks: Networks, g_params: Any, batch_stats: Any, captions: Captions, z: Float[Array, "b z"]
) -> tuple[Float[Array, "b h w 3"], Any]:
    """Draw images in training mode; also return the new running statistics."""
    variables = {"params": g_params, "batch_stats": batch_stats}
    fake, updates = networks.generator.apply(
        variables, *captions, z, train=True, mutable=["batch_stats"]
    )
    return fake, updates["batch_stats"]


def normalize_discriminator(state: TrainState) -> tuple[Any, Callable[[Any], tuple[Any]], Any]:
    """Normalise the discriminator's parameters, once an update however often they are used.

    Returns:
        The parameters to apply; a function that carries a gradient of theirs back to those of the
        state; the new vectors.
    """
    return jax.vjp(
        lambda d_params: spectral_normalize(d_params, state.d_vectors),
        state.d_params,
        has_aux=True,
    )


def encode_pair(
    networks: Networks,
    normalized: Any,
    examples: Examples,
    fake: Float[Array, "n h w 3"],
    config: ConfigDict,
) -> Encodings:
    """Encode real and generated images, augmented if so configured, by normalised parameters."""
    real, sentence = examples.real, examples.captions.sentence
    if examples.uniforms is not None:
        policies = tuple(config.discriminator.augment.split(","))
        real = diff_augment(real, examples.uniforms[:, 0], policies)
        fake = diff_augment(fake, examples.uniforms[:, 1], policies)
    encode = partial(networks.discriminate, normalized)
    return Encodings(encode(real, sentence), encode(fake, sentence))


def update_if(
    is_finite: Bool[Array, ""], update_fn: Callable[[TrainState], TrainState], state: TrainState
) -> TrainState:
    """Update a state unless a gradient was not finite.

    A branch and not a choice between two results: those would both be in memory.
    """
    return jax.lax.cond(is_finite, update_fn, lambda state: state, state)


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
