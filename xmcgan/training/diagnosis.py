"""Locate the first nonfinite value of a step: parameter, layer, loss or gradient."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from xmcgan.training.state import TrainState
from xmcgan.training.step import Inputs, Model, joint_gradients, normalize

Named = Iterator[tuple[str, Any]]


def first_not_finite(state: TrainState, batch: dict[str, Array], model: Model) -> str | None:
    """Compute a step again from the state before it and name the first array that is not finite."""
    networks = model.networks
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def in_order() -> Named:
        yield from _leaves("parameter of the generator", state.g_params)
        yield from _leaves("parameter of the discriminator", state.d_params)
        for i in range(len(batch["image"])):
            update = {name: x[i] for name, x in batch.items()}
            # Compiled whole: op by op, a frozen encoder would take minutes.
            inputs = jax.jit(model.inputs)(update, jax.random.fold_in(rng, i))
            for name, x in of_update(inputs):
                yield f"{name}, update {i + 1} of the step", x

    def of_update(inputs: Inputs) -> Named:
        yield "output of the text encoder", inputs.captions.words
        names: list[str] = []
        flags = jax.jit(lambda: layers(inputs, names))()
        yield from zip(names, flags, strict=True)
        joint = jax.jit(lambda: joint_gradients(model, state, inputs))()
        terms = [name for name in joint.metrics if name.endswith("_loss")]
        yield from ((n, joint.metrics[n]) for n in sorted(sorted(terms), key=len, reverse=True))
        yield from _leaves("gradient of the discriminator", joint.d_grads)
        yield from _leaves("gradient of the generator", joint.g_grads)

    def layers(inputs: Inputs, names: list[str]) -> list[Array]:
        """NaN for each layer whose output is not finite, in the order of their work."""
        fake, found = networks.generator.apply(
            {"params": state.g_params, "batch_stats": state.g_batch_stats},
            *inputs.captions,
            inputs.z,
            train=True,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
        )
        outputs = [*_in_order("generator", found["intermediates"])]
        d_params = normalize(state)[0] | model.frozen_params.get("discriminator", {})
        for images, kind in ((inputs.real, "real"), (fake, "generated")):
            _, found = networks.discriminator.apply(
                {"params": d_params},
                images,
                inputs.captions.sentence,
                capture_intermediates=True,
                mutable=["intermediates"],
            )
            outputs += _in_order(f"discriminator of {kind} images", found["intermediates"])
        names.extend(name for name, _ in outputs)
        return [jnp.where(jnp.isfinite(x).all(), 0.0, jnp.nan) for _, x in outputs]

    return next((name for name, x in in_order() if not bool(jnp.isfinite(x).all())), None)


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
