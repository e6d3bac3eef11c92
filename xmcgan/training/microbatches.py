"""Gradients of losses that see the whole batch, from networks that see a part of it at a time.

A contrastive loss needs the features of all images at once, but the memory of a step is what the
networks keep for their backward pass. So the features of all parts are computed first and nothing
else is kept; the losses are differentiated with respect to the features; then part by part is
computed again and its features' gradients are carried back to the parameters (Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021).

Arrays of a batch in parts have two leading axes, (parts, images of a part). Devices share the
second, so that every device works on every part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PullBack = Callable[[dict[str, Any]], dict[str, Any]]


def map_parts(fn: Callable[[Any], Any], parts: Any) -> Any:
    """Apply a function to one part after the other; a single part costs no loop.

    Args:
        fn: of a tree of arrays with leading axis (n,).
        parts: such a tree with leading axes (parts, n).

    Returns:
        Its results, stacked.
    """
    if _count(parts) > 1:
        return jax.lax.map(fn, parts)
    return _stack_one(fn(_only(parts)))


def encode_parts(
    encode_fn: Callable[[dict[str, Any], Any], tuple[Any, Any]], params: dict[str, Any], parts: Any
) -> tuple[Any, Any, PullBack]:
    """Encode a batch part by part, ready to carry gradients back.

    Args:
        encode_fn: (params, part) -> (features, statistics).
        params: a tree of parameters under the name of each loss that they minimise.
        parts: a tree of arrays with leading axes (parts, n).

    Returns:
        The features, with leading axes (parts, n); the statistics, mean over the parts; and a
        function that takes, by loss, its gradient with respect to the features (None for zero)
        and returns, by loss, its gradient with respect to the loss's own parameters.
    """
    if _count(parts) == 1:
        features, pull, stats = jax.vjp(lambda p: encode_fn(p, _only(parts)), params, has_aux=True)
        return _stack_one(features), stats, lambda grads: _pull_each(pull, features, _only(grads))

    features, stats = jax.lax.map(lambda part: encode_fn(params, part), parts)

    def pull_back(feature_grads: dict[str, Any]) -> dict[str, Any]:
        def add_part(total: dict[str, Any], x: tuple[Any, Any]) -> tuple[dict[str, Any], None]:
            part, grads = x
            features, pull, _ = jax.vjp(lambda p: encode_fn(p, part), params, has_aux=True)
            return jax.tree.map(jnp.add, total, _pull_each(pull, features, grads)), None

        zeros = jax.tree.map(jnp.zeros_like, {name: params[name] for name in feature_grads})
        return jax.lax.scan(add_part, zeros, (parts, feature_grads))[0]

    return features, jax.tree.map(lambda x: jnp.mean(x, axis=0), stats), pull_back


def merge_parts(x: Float[Array, "m n ..."], group_size: int) -> Float[Array, "b ..."]:
    """Make one batch of all parts, in an order that moves nothing between devices.

    Args:
        x: an array in parts.
        group_size: rows that stay together, in their order; 0 is the same as 1.

    Returns:
        All rows: the first group of every part, then the second of every part, and so on.
    """
    group_size = group_size or 1
    groups = x.reshape(x.shape[0], -1, group_size, *x.shape[2:])
    return jnp.swapaxes(groups, 0, 1).reshape(-1, *x.shape[2:])


def _pull_each(pull: Callable[[Any], Any], features: Any, grads: dict[str, Any]) -> dict[str, Any]:
    # What a loss says of the other parameters is dropped here: dead code, which costs nothing.
    return {name: pull(_fill(features, grads[name]))[0][name] for name in grads}


def _fill(features: Any, grads: Any) -> Any:
    """Replace None by zeros of the features that it stands for."""

    def fill(grad: Any, features: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, features) if grad is None else grad

    return jax.tree.map(fill, grads, features, is_leaf=lambda x: x is None)


def _count(parts: Any) -> int:
    return jax.tree.leaves(parts)[0].shape[0]


def _only(parts: Any) -> Any:
    return jax.tree.map(lambda x: x[0], parts)


def _stack_one(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)
