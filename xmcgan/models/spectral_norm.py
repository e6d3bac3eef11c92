"""Spectral normalization of a network's parameters (Miyato et al., ICLR 2018, algorithm 1).

Written as a function of the parameters, not as a layer: `params` stays untouched, the vectors of
the power iteration live in a tree of their own, and each weight is normalized once a step however
many times the network is applied.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PRNGKeyArray

EPSILON = 1e-10  # the official code's


def init_spectral_vectors(rng: PRNGKeyArray, params: dict[str, Any]) -> dict[str, Any]:
    """Return a random `u` (1, out) wherever the tree `params` has a `kernel` (..., out)."""
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)
    kernels = [path for path in flat if path[-1] == "kernel"]
    keys = jax.random.split(rng, len(kernels))
    vectors = {
        (*path[:-1], "u"): jax.random.normal(key, (1, flat[path].shape[-1]))
        for path, key in zip(kernels, keys, strict=True)
    }
    return unflatten_dict(vectors)


def spectral_normalize(
    params: dict[str, Any], vectors: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide every kernel by its largest singular value, after one power iteration.

    Gradients flow through the singular value but not through the vectors. Returns the normalized
    parameters, and the vectors to pass at the next step.
    """
    normalized: dict[tuple[str, ...], Any] = flatten_dict(params)
    new_vectors: dict[tuple[str, ...], Any] = flatten_dict(vectors)
    for path, u in new_vectors.items():
        kernel = (*path[:-1], "kernel")
        normalized[kernel], new_vectors[path] = _normalize_kernel(normalized[kernel], u)
    return unflatten_dict(normalized), unflatten_dict(new_vectors)


def spectral_norms(params: dict[str, Any], normalized: dict[str, Any]) -> Float[Array, "k"]:
    """Return by how much `spectral_normalize` divided each kernel."""
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)
    divided: dict[tuple[str, ...], Any] = flatten_dict(normalized)
    kernels = [path for path in flat if path[-1] == "kernel"]
    norm = jnp.linalg.norm
    return jnp.stack([norm(flat[path].ravel()) / norm(divided[path].ravel()) for path in kernels])


def _normalize_kernel(kernel: Array, u: Float[Array, "1 out"]) -> tuple[Array, Array]:
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = _unit(u @ fixed.T)
    u = _unit(v @ fixed)
    sigma = (v @ matrix @ u.T)[0, 0]
    return kernel / (sigma + EPSILON), u


def _unit(x: Float[Array, "1 n"]) -> Float[Array, "1 n"]:
    return x / jnp.sqrt(jnp.sum(x * x) + EPSILON)
