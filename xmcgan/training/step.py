"""One training step (paper, training algorithm): pure functions of (state, batch).

`train_step` does `d_steps` updates; all but the last train the discriminator alone, the last one
trains both networks. `microbatching.py` has the same two gradient functions for batches that do
not fit into memory.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from xmcgan.losses import WeightedLoss, weighted_sum
from xmcgan.losses.context import Context, Features, Metrics
from xmcgan.losses.diagnostics import hinge_to_contrast, output_statistics
from xmcgan.models.augment import NUM_UNIFORMS, diff_augment
from xmcgan.models.discriminator import logit_slopes
from xmcgan.models.outputs import Captions
from xmcgan.models.spectral_norm import spectral_normalize, spectral_norms
from xmcgan.training.state import Networks, TrainState

Losses = dict[str, WeightedLoss]
Sides = tuple[Features, Features]  # real, generated


class Inputs(NamedTuple):
    real: Float[Array, "b h w 3"]
    captions: Captions
    z: Float[Array, "b z"]
    uniforms: Float[Array, "b 2 7"] | None = None  # of the augmentation: real, generated
    token_ids: Int[Array, "b t"] | None = None
    other_z: Float[Array, "b z"] | None = None  # of losses that compare two images of a caption


class FrozenNetworks(NamedTuple):
    """Apply functions of the frozen encoders, which take their parameters first."""

    encode_text: Callable[..., tuple[Array, Array]]
    encode_image: Callable[..., Array] | None = None


class Model(NamedTuple):
    """Networks with their frozen parameters, losses and config."""

    networks: Networks
    frozen: FrozenNetworks
    frozen_params: dict[str, Any]
    losses: Losses
    config: ConfigDict

    def inputs(self, batch: dict[str, Array], key: PRNGKeyArray) -> Inputs:
        """Scale the images, encode the captions and sample the noise of one update."""
        token_ids, mask = batch["token_ids"], batch["word_mask"]
        words, sentence = self.frozen.encode_text(self.frozen_params["text"], token_ids, mask)
        size = len(token_ids)
        z = jax.random.normal(key, (size, self.networks.generator.z_dim))
        uniforms = None
        if self.config.discriminator.augment:
            uniforms = jax.random.uniform(jax.random.fold_in(key, 1), (size, 2, NUM_UNIFORMS))
        other_z = None
        if any(getattr(loss, "needs_pairs", False) for loss, _ in self.losses.values()):
            other_z = jax.random.normal(jax.random.fold_in(key, 2), z.shape)
        real = batch["image"].astype(float) / 255
        return Inputs(real, Captions(words, mask, sentence), z, uniforms, token_ids, other_z)

    def generate(self, g_params: Any, state: TrainState, inputs: Inputs) -> tuple[Array, Any]:
        """Images in training mode, and the new running statistics."""
        return self.networks.generate(g_params, state.g_batch_stats, inputs.captions, inputs.z)

    def discriminate(self, d_params: Any, captions: Captions, images: Array) -> Any:
        """Apply the discriminator to normalized parameters."""
        params = d_params | self.frozen_params.get("discriminator", {})
        return self.networks.discriminate(params, images, captions.sentence)

    def features(self, d_params: Any, inputs: Inputs, images: Array, kind: str) -> Features:
        """Features of real or generated images (`kind`: "real" or "fake")."""
        seen, pretrained = images, None
        if inputs.uniforms is not None:
            policies = tuple(self.config.discriminator.augment.split(","))
            seen = diff_augment(images, inputs.uniforms[:, int(kind == "fake")], policies)
        if self.frozen.encode_image is not None:
            pretrained = self.frozen.encode_image(self.frozen_params["image"], images)
        return Features(self.discriminate(d_params, inputs.captions, seen), pretrained)

    def both_features(self, d_params: Any, inputs: Inputs, fake: Array) -> Sides:
        real = self.features(d_params, inputs, inputs.real, "real")
        return real, self.features(d_params, inputs, fake, "fake")

    def context(self, d_params: Any, inputs: Inputs, fake: Array, features: Sides) -> Context:
        """What the losses see, with the features of real and generated images."""

        def discriminate(images: Array, captions: Captions = inputs.captions) -> Any:
            return self.discriminate(d_params, captions, images)

        group_size = self.config.contrastive_group_size
        more = inputs.token_ids, self.frozen_params.get("losses")
        images = inputs.real, fake
        return Context(inputs.captions, *features, group_size, *images, discriminate, *more)


class JointGradients(NamedTuple):
    """Gradients of both losses, new statistics and vectors, metrics."""

    d_grads: Any
    g_grads: Any
    g_batch_stats: Any
    d_vectors: Any
    metrics: Metrics


def make_train_step(
    networks: Networks, frozen: FrozenNetworks, losses: Losses, config: ConfigDict
) -> Callable[[TrainState, Any, dict[str, Array]], tuple[TrainState, Metrics]]:
    """Build the pure function (state, frozen_params, batch) -> (state, metrics).

    `frozen_params` has `text`, `image` and `discriminator`; the batch `image` uint8 (d_steps, b,
    h, w, 3), `token_ids` and `word_mask` (d_steps, b, t). An update with a gradient that is not
    finite changes nothing and counts in `skipped_updates`.
    """
    if config.num_microbatches > 1:
        from xmcgan.training import microbatching as gradients
    else:
        from xmcgan.training import step as gradients

    def train_step(
        state: TrainState, frozen_params: dict[str, Any], batch: dict[str, Array]
    ) -> tuple[TrainState, Metrics]:
        model = Model(networks, frozen, frozen_params, losses, config)
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        num_updates = len(batch["image"])
        inputs = [
            model.inputs(jax.tree.map(lambda x, i=i: x[i], batch), jax.random.fold_in(rng, i))
            for i in range(num_updates)
        ]
        start, updates, skipped = state, [], jnp.zeros(())
        for update in inputs[:-1]:
            d_grads, vectors = gradients.discriminator_gradients(model, state, update)
            is_finite = jnp.isfinite(optax.tree.norm(d_grads))
            update_d = partial(update_discriminator, networks, d_grads, vectors)
            updates.append(partial(update_if, is_finite, update_d))
            state = updates[-1](state)
            skipped += 1 - is_finite

        joint = gradients.joint_gradients(model, state, inputs[-1])
        norms = {"d": optax.tree.norm(joint.d_grads), "g": optax.tree.norm(joint.g_grads)}
        is_finite = jnp.isfinite(norms["d"] + norms["g"])

        state, joint = update_late(start, updates, state, joint)

        def update_both(state: TrainState) -> TrainState:
            state = update_discriminator(networks, joint.d_grads, joint.d_vectors, state)
            return update_generator(networks, joint.g_grads, joint.g_batch_stats, config, state)

        state = update_if(is_finite, update_both, state)
        metrics = joint.metrics | {f"{side}_grad_norm": norm for side, norm in norms.items()}
        metrics["skipped_updates"] = skipped + 1 - is_finite
        return state.replace(step=state.step + 1), metrics

    return train_step


def update_if(
    is_finite: Bool[Array, ""], update: Callable[[TrainState], TrainState], state: TrainState
) -> TrainState:
    """Return the updated state, or the old one.

    On a GPU value by value, in place; elsewhere by a branch. Each of the two would need memory for
    another copy of the state where the other one stands.
    """

    def value_by_value(state: TrainState) -> TrainState:
        return jax.tree.map(partial(jnp.where, is_finite), update(state), state)

    def branch(state: TrainState) -> TrainState:
        return jax.lax.cond(is_finite, update, lambda state: state, state)

    return jax.lax.platform_dependent(state, cuda=value_by_value, default=branch)


def update_late(
    start: TrainState,
    updates: list[Callable[[TrainState], TrainState]],
    updated: TrainState,
    joint: JointGradients,
) -> tuple[TrainState, JointGradients]:
    """Return `updated`, which a GPU computes again from `start` behind the joint gradients.

    Kept until there, its moments would need memory beside those of `start`.
    """

    def again(start: TrainState, _: TrainState, joint: JointGradients) -> Any:
        start, joint = jax.lax.optimization_barrier((start, joint))
        return functools.reduce(lambda state, update: update(state), updates, start), joint

    if not updates:
        return updated, joint
    values = start, updated, joint
    return jax.lax.platform_dependent(*values, cuda=again, default=lambda _, *kept: kept)


def discriminator_gradients(model: Model, state: TrainState, inputs: Inputs) -> tuple[Any, Any]:
    """Gradients of the discriminator's loss alone, and the new vectors of its spectral norms."""
    # The running statistics are left to the joint update: once per step, whatever d_steps is.
    fake, _ = model.generate(state.g_params, state, inputs)
    d_params, pull_to_kernels, vectors = normalize(state)
    grads, _ = jax.grad(partial(discriminator_loss, model, inputs, fake), has_aux=True)(d_params)
    return pull_to_kernels(grads)[0], vectors


def joint_gradients(model: Model, state: TrainState, inputs: Inputs) -> JointGradients:
    """Gradients of both losses at the same parameters, as in the official code."""

    # The generator runs once, forward and backward, and so does the spectral norm; the compiler
    # shares the discriminator's forward passes between the two losses.
    def generate(params: Any) -> tuple[tuple[Array, Array | None], Any]:
        fake, batch_stats = model.generate(params, state, inputs)
        if inputs.other_z is None:
            return (fake, None), batch_stats
        pair = inputs._replace(z=inputs.other_z)
        return (fake, model.generate(params, state, pair)[0]), batch_stats

    (fake, other), pull_to_generator, batch_stats = jax.vjp(generate, state.g_params, has_aux=True)
    d_params, pull_to_kernels, vectors = normalize(state)

    d_loss = partial(discriminator_loss, model, inputs, fake)
    d_grads, d_metrics = jax.grad(d_loss, has_aux=True)(d_params)

    # The generator's losses see features and pixels of the generated images.
    real_features = model.features(d_params, inputs, inputs.real, "real")
    fake_features, pull_to_pixels = jax.vjp(
        lambda images: model.features(d_params, inputs, images, "fake"), fake
    )

    def generator_loss(
        fake: Array, other: Array | None, fake_features: Features
    ) -> tuple[Array, Metrics]:
        context = model.context(d_params, inputs, fake, (real_features, fake_features))
        return weighted_sum(model.losses, "generator", context._replace(other_images=other))

    gradients = jax.grad(generator_loss, (0, 1, 2), has_aux=True)
    (pixel_grads, other_grads, feature_grads), g_metrics = gradients(fake, other, fake_features)
    pixel_grads += pull_to_pixels(feature_grads)[0]
    (g_grads,) = pull_to_generator((pixel_grads, other_grads))
    metrics = d_metrics | g_metrics
    metrics |= joint_metrics(state, d_params, real_features, fake_features, feature_grads)
    return JointGradients(pull_to_kernels(d_grads)[0], g_grads, batch_stats, vectors, metrics)


def discriminator_loss(
    model: Model, inputs: Inputs, fake: Float[Array, "b h w 3"], d_params: Any
) -> tuple[Float[Array, ""], Metrics]:
    """The discriminator's loss as a function of its normalized parameters."""
    features = model.both_features(d_params, inputs, fake)
    context = model.context(d_params, inputs, fake, features)
    return weighted_sum(model.losses, "discriminator", context)


def joint_metrics(
    state: TrainState, d_params: Any, real: Features, fake: Features, fake_grads: Features
) -> Metrics:
    """Metrics of a joint update beside its losses."""
    norms, grads = spectral_norms(state.d_params, d_params), fake_grads.output
    metrics = {"d_spectral_norm_max": norms.max(), "d_spectral_norm_mean": norms.mean()}
    if any(name.startswith("logit") for name in d_params):  # a network of the user's may have none
        slopes = logit_slopes(d_params, fake.output.sentence)
        metrics["g_hinge_to_contrast"] = hinge_to_contrast(grads.logits, slopes, grads.feature)
    return output_statistics(real, fake) | metrics


def normalize(state: TrainState) -> tuple[Any, Callable[[Any], tuple[Any]], Any]:
    """Normalized parameters, the pull-back of their gradient to `state.d_params`, new vectors."""
    return jax.vjp(
        lambda params: spectral_normalize(params, state.d_vectors), state.d_params, has_aux=True
    )


def update_discriminator(
    networks: Networks, grads: Any, vectors: Any, state: TrainState
) -> TrainState:
    updates, opt_state = networks.d_optimizer.update(grads, state.d_opt_state, state.d_params)
    params = optax.apply_updates(state.d_params, updates)
    return state.replace(d_params=params, d_opt_state=opt_state, d_vectors=vectors)


def update_generator(
    networks: Networks, grads: Any, batch_stats: Any, config: ConfigDict, state: TrainState
) -> TrainState:
    """Apply the generator's gradients and advance the moving averages."""
    updates, opt_state = networks.g_optimizer.update(grads, state.g_opt_state, state.g_params)
    params = optax.apply_updates(state.g_params, updates)
    decay = jnp.asarray(config.ema_decay, float)
    if config.ema_warmup:
        # Deviation: a short run's average would otherwise be mostly its random start.
        decay = jnp.minimum(decay, (1 + state.step) / (10 + state.step))

    average = partial(optax.incremental_update, step_size=1 - decay)
    return state.replace(
        g_params=params,
        g_opt_state=opt_state,
        g_batch_stats=batch_stats,
        ema_params=average(params, state.ema_params),
        ema_batch_stats=average(batch_stats, state.ema_batch_stats),
    )
