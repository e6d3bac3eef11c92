"""Where numbers stop being finite: the first parameter, layer, loss or gradient of a step."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from xmcgan.models.spectral_norm import spectral_normalize
from xmcgan.training.state import Networks, TrainState
from xmcgan.training.step import Examples, FrozenNetworks, joint_gradients, split_updates

Named = Iterator[tuple[str, Any]]


def first_not_finite(
    state: TrainState,
    frozen_params: dict[str, Any],
    batch: dict[str, Array],
    networks: Networks,
    frozen: FrozenNetworks,
    config: ConfigDict,
) -> str | None:
    """Compute a step again and look at what it computes, in order.

    Args:
        state: of before the step.
        frozen_params: parameters of the frozen networks.
        batch: of the step; see `make_train_step`.
        networks: the two networks.
        frozen: the pretrained networks.
        config: as for `make_train_step`.

    Returns:
        The name of the first array that is not finite, and the update that it belongs to. None
        where all are finite.
    """
    networks = networks.with_frozen(frozen_params.get("discriminator", {}))
    encode_text = partial(jax.jit(frozen.encode_text), frozen_params["text"])
    encode_image = frozen.encode_image and partial(frozen.encode_image, frozen_params["image"])
    gradients = jax.jit(lambda s, e: joint_gradients(s, e, networks, config, encode_image))

    def in_order() -> Named:
        yield from _leaves("parameter of the generator", state.g_params)
        yield from _leaves("parameter of the discriminator", state.d_params)
        updates = split_updates(state, batch, encode_text, networks, config)
        for number, examples in enumerate(updates, start=1):
            for name, x in _of_update(state, examples, networks, gradients):
                yield f"{name}, update {number} of the step", x

    return next((name for name, x in in_order() if not bool(jnp.isfinite(x).all())), None)


def _of_update(state: TrainState, examples: Examples, networks: Networks, gradients: Any) -> Named:
    yield "output of the text encoder", examples.captions.words
    for part in range(len(examples.z)):
        yield from _layers(state, jax.tree.map(lambda x, i=part: x[i], examples), networks)
    d_grads, g_grads, _, _, metrics = gradients(state, examples)
    terms = sorted(name for name in metrics if name.endswith("_loss"))
    yield from ((name, metrics[name]) for name in sorted(terms, key=len, reverse=True))
    yield from _leaves("gradient of the discriminator", d_grads)
    yield from _leaves("gradient of the generator", g_grads)


def _layers(state: TrainState, examples: Examples, networks: Networks) -> Named:
    """Yield, layer by layer in the order of their work, whether the output is finite."""
    names: list[str] = []

    def run(state: TrainState, examples: Examples) -> list[Array]:
        captions = examples.captions
        fake, found = networks.generator.apply(
            {"params": state.g_params, "batch_stats": state.g_batch_stats},
            *captions,
            examples.z,
            train=True,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
        )
        outputs = [*_in_order("generator", found["intermediates"])]
        normalized, _ = spectral_normalize(state.d_params, state.d_vectors)
        for images, kind in ((examples.real, "real"), (fake, "generated")):
            _, found = networks.discriminator.apply(
                {"params": normalized | networks.d_frozen},
                images,
                captions.sentence,
                capture_intermediates=True,
                mutable=["intermediates"],
            )
            outputs += _in_order(f"discriminator of {kind} images", found["intermediates"])
        names.extend(name for name, _ in outputs)
        return [jnp.isfinite(x).all() for _, x in outputs]

    flags = jax.jit(run)(state, examples)
    for name, is_finite in zip(names, flags, strict=True):
        yield name, jnp.where(is_finite, 0.0, jnp.nan)


def _in_order(name: str, found: Mapping[str, Any]) -> Named:
    """Yield outputs in the order in which Flax came by them, which a tree of JAX would lose."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _in_order(f"{name}/{key}", value)
        else:
            yield from ((f"layer {name}", x) for x in jax.tree.leaves(value))


def _leaves(name: str, tree: Any) -> Named:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{name} {jax.tree_util.keystr(path, simple=True, separator='/')}", leaf
