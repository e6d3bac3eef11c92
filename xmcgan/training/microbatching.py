"""The gradients of `step.py` for batches that do not fit into memory, by a gradient cache.

A contrastive loss needs the features of all images at once, but the memory of a step is what the
networks keep for their backward pass. So features of all microbatches are computed first and
nothing else is kept; the losses are differentiated by the features; then each microbatch is
computed again and its features' gradients are pulled back to the parameters (Gao et al., "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmcgan.losses import weighted_sum
from xmcgan.losses.context import Context, Metrics
from xmcgan.training.state import TrainState
from xmcgan.training.step import Inputs, JointGradients, Model, Sides, joint_metrics, normalize


def discriminator_gradients(model: Model, state: TrainState, inputs: Inputs) -> tuple[Any, Any]:
    """Gradients of the discriminator's loss alone, and the new vectors of its spectral norms."""
    d_params, pull_to_kernels, vectors = normalize(state)
    parts = _split(model, inputs)

    def encode(d_params: Any, part: Inputs) -> Sides:
        fake, _ = model.generate(state.g_params, state, part)
        return model.both_features(d_params, part, fake)

    features = jax.lax.map(lambda part: encode(d_params, part), parts)
    feature_grads, _ = _feature_gradients(model, "discriminator", inputs, features)

    def pull_back(part: Inputs, grads: Sides) -> Any:
        return jax.vjp(lambda params: encode(params, part), d_params)[1](grads)[0]

    grads = _sum_over_parts(pull_back, d_params, parts, feature_grads)
    return pull_to_kernels(grads)[0], vectors


def joint_gradients(model: Model, state: TrainState, inputs: Inputs) -> JointGradients:
    """Gradients of both losses at the same parameters."""
    d_params, pull_to_kernels, vectors = normalize(state)
    params = (d_params, state.g_params)
    parts = _split(model, inputs)

    def encode(params: tuple[Any, Any], part: Inputs) -> tuple[Sides, Any]:
        d_params, g_params = params
        fake, batch_stats = model.generate(g_params, state, part)
        return model.both_features(d_params, part, fake), batch_stats

    features, batch_stats = jax.lax.map(lambda part: encode(params, part), parts)
    d_feature_grads, d_metrics = _feature_gradients(model, "discriminator", inputs, features)
    g_feature_grads, g_metrics = _feature_gradients(model, "generator", inputs, features)

    def pull_back(part: Inputs, grads: tuple[Sides, Sides]) -> tuple[Any, Any]:
        # What each loss says of the other network's parameters is dead code and costs nothing.
        _, pull, _ = jax.vjp(lambda params: encode(params, part), params, has_aux=True)
        return pull(grads[0])[0][0], pull(grads[1])[0][1]

    d_grads, g_grads = _sum_over_parts(pull_back, params, parts, (d_feature_grads, g_feature_grads))
    real, fake = _merge(model, features)
    fake_grads = _merge(model, g_feature_grads)[1]
    metrics = d_metrics | g_metrics | joint_metrics(state, d_params, real, fake, fake_grads)
    mean_stats = jax.tree.map(lambda x: jnp.mean(x, axis=0), batch_stats)
    return JointGradients(pull_to_kernels(d_grads)[0], g_grads, mean_stats, vectors, metrics)


def _feature_gradients(
    model: Model, side: Any, inputs: Inputs, features: Sides
) -> tuple[Sides, Metrics]:
    """Gradient of one side's losses by the features of all parts, and the metrics."""

    def loss(features: Sides) -> tuple[Array, Metrics]:
        real, fake = _merge(model, features)
        if side == "generator":  # real images are constants to it
            real = jax.lax.stop_gradient(real)
        group_size, params = model.config.contrastive_group_size, model.frozen_params.get("losses")
        context = Context(
            inputs.captions, real, fake, group_size, token_ids=inputs.token_ids, params=params
        )
        return weighted_sum(model.losses, side, context)

    return jax.grad(loss, has_aux=True)(features)


def _sum_over_parts(pull_back: Any, params: Any, parts: Inputs, grads: Any) -> Any:
    def add_part(total: Any, x: tuple[Inputs, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, pull_back(*x)), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add_part, zeros, (parts, grads))[0]


def _split(model: Model, inputs: Inputs) -> Inputs:
    """Cut a batch into (m, n) so that batch norm groups stay whole."""
    # Part i takes every m-th group from the i-th on: each device keeps the rows that it has.
    m, group = model.config.num_microbatches, model.config.batch_norm_group_size

    def split(x: Array) -> Array:
        grouped = x.reshape(-1, m, group, *x.shape[1:])
        return jnp.swapaxes(grouped, 0, 1).reshape(m, -1, *x.shape[1:])

    return jax.tree.map(split, inputs)


def _merge(model: Model, parts: Any) -> Any:
    """Undo `_split`."""
    group = model.config.batch_norm_group_size

    def merge(x: Array) -> Array:
        grouped = x.reshape(x.shape[0], -1, group, *x.shape[2:])
        return jnp.swapaxes(grouped, 0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(merge, parts)
