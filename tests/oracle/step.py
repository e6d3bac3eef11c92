"""One training step as the official code takes it, on the literal networks and losses."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from oracle.literal import Arrays, Network, losses, under


class LiteralState(NamedTuple):
    """What the literal step reads and writes."""

    g_params: Arrays
    g_stats: Arrays
    g_opt_state: Any
    ema_params: Arrays
    d_params: Arrays
    d_stats: Arrays
    d_opt_state: Any


class Settings(NamedTuple):
    """What the step depends on beside its arrays.

    Attributes:
        gamma: sharpness of the generator's attention over words.
        cond_size: side of the maps where regions meet words.
        g_optimizer: the generator's.
        d_optimizer: the discriminator's.
        ema_decay: of the moving average of the generator's parameters.
    """

    gamma: float
    cond_size: int
    g_optimizer: optax.GradientTransformation
    d_optimizer: optax.GradientTransformation
    ema_decay: float


def literal_state(arrays: Arrays, settings: Settings) -> LiteralState:
    """Put the arrays of `literal_params.draw_arrays` into a state."""
    g_params, d_params = under(arrays, "generator/params"), under(arrays, "discriminator/params")
    return LiteralState(
        g_params=g_params,
        g_stats=under(arrays, "generator/batch_stats"),
        g_opt_state=settings.g_optimizer.init(g_params),
        # A copy: the state is donated to the step, which may not donate one buffer twice.
        ema_params=jax.tree.map(jnp.copy, g_params),
        d_params=d_params,
        d_stats=under(arrays, "discriminator/spectral_norm_stats"),
        d_opt_state=settings.d_optimizer.init(d_params),
    )


def make_literal_step(
    settings: Settings,
) -> Callable[[LiteralState, Arrays], tuple[LiteralState, Arrays]]:
    """Build the literal step.

    Args:
        settings: of the networks and the optimizers.

    Returns:
        A pure function (state, batch) -> (state, metrics). The batch has `image` uint8
        (d_steps, b, h, w, 3), `embedding` (d_steps, b, t, d), `max_len` (d_steps, b, 1),
        `sentence_embedding` (d_steps, b, e) and `z` (d_steps, b, z). All parts but the last
        update the discriminator alone; on the last, both networks are updated from the same
        parameters: one forward pass, and a backward pass for each loss, through real and
        generated images together.
    """

    def train_step(state: LiteralState, batch: Arrays) -> tuple[LiteralState, Arrays]:
        d_steps = batch["image"].shape[0]
        for index in range(d_steps - 1):
            state = _discriminator_step(state, _part(batch, index), settings)
        return _joint_step(state, _part(batch, d_steps - 1), settings)

    return train_step


def _part(batch: Arrays, index: int) -> Arrays:
    part = {name: value[index] for name, value in batch.items()}
    return part | {"image": part["image"].astype(jnp.float32) / 255}


def _discriminator_step(state: LiteralState, part: Arrays, settings: Settings) -> LiteralState:
    """Take the discriminator's loss, and update it."""

    def loss_fn(d_params: Arrays) -> tuple[Any, Arrays]:
        metrics, _, d_stats = _forward(state, state.g_params, d_params, part, settings)
        return metrics["d_loss"], d_stats

    grads, d_stats = jax.grad(loss_fn, has_aux=True)(state.d_params)
    return _update_discriminator(state, grads, d_stats, settings)


def _joint_step(
    state: LiteralState, part: Arrays, settings: Settings
) -> tuple[LiteralState, Arrays]:
    """Take both losses at the same parameters, and update both networks."""

    def losses_fn(g_params: Arrays, d_params: Arrays) -> tuple[tuple[Any, Any], Any]:
        metrics, g_stats, d_stats = _forward(state, g_params, d_params, part, settings)
        return (metrics["d_loss"], metrics["g_loss"]), (metrics, g_stats, d_stats)

    (d_loss, _), pull_back, (metrics, g_stats, d_stats) = jax.vjp(
        losses_fn, state.g_params, state.d_params, has_aux=True
    )
    one, zero = jnp.ones_like(d_loss), jnp.zeros_like(d_loss)
    _, d_grads = pull_back((one, zero))
    g_grads, _ = pull_back((zero, one))
    updates, opt_state = settings.g_optimizer.update(g_grads, state.g_opt_state, state.g_params)
    g_params = optax.apply_updates(state.g_params, updates)
    average = partial(_average, settings.ema_decay)
    state = _update_discriminator(state, d_grads, d_stats, settings)._replace(
        g_params=g_params,
        g_stats=g_stats,
        g_opt_state=opt_state,
        ema_params=jax.tree.map(average, state.ema_params, g_params),
    )
    return state, {name: value for name, value in metrics.items() if value.ndim == 0}


def _update_discriminator(
    state: LiteralState, grads: Arrays, d_stats: Arrays, settings: Settings
) -> LiteralState:
    updates, opt_state = settings.d_optimizer.update(grads, state.d_opt_state, state.d_params)
    d_params = optax.apply_updates(state.d_params, updates)
    return state._replace(d_params=d_params, d_stats=d_stats, d_opt_state=opt_state)


def _forward(
    state: LiteralState, g_params: Arrays, d_params: Arrays, part: Arrays, settings: Settings
) -> tuple[Arrays, Arrays, Arrays]:
    """Return all losses, and what both networks' statistics become."""
    g = Network(g_params, state.g_stats, {}, True)
    d = Network(d_params, state.d_stats, {}, True)
    return losses(g, d, part, settings.gamma, settings.cond_size), g.new_stats, d.new_stats


def _average(decay: float, old: Any, new: Any) -> Any:
    return decay * old + (1 - decay) * new
