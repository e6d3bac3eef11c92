"""Spectral normalization against the singular values themselves."""

import jax
import jax.numpy as jnp
import numpy as np

from xmcgan.models.spectral_norm import (
    init_spectral_vectors,
    spectral_normalize,
    spectral_norms,
)


def _params():
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 5, 7)), "bias": jnp.ones(7)},
        "block": {"dense": {"kernel": jax.random.normal(keys[1], (11, 4)), "bias": jnp.zeros(4)}},
    }


def test_largest_singular_value_tends_to_one():
    params = _params()
    vectors = init_spectral_vectors(jax.random.key(1), params)
    for _ in range(100):
        normalized, vectors = spectral_normalize(params, vectors)
    for kernel in (normalized["conv"]["kernel"], normalized["block"]["dense"]["kernel"]):
        matrix = np.asarray(kernel).reshape(-1, kernel.shape[-1])
        np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False)[0], 1, rtol=1e-5)


def test_parameters_and_biases_stay_untouched():
    params = _params()
    before = jax.tree.map(np.asarray, params)
    normalized, _ = spectral_normalize(params, init_spectral_vectors(jax.random.key(1), params))
    jax.tree.map(np.testing.assert_array_equal, params, before)
    np.testing.assert_array_equal(normalized["conv"]["bias"], params["conv"]["bias"])


def test_one_call_is_one_power_iteration_of_the_formula():
    kernel = np.asarray(_params()["block"]["dense"]["kernel"], np.float64)
    u = np.random.default_rng(0).normal(size=(1, 4))
    v = u @ kernel.T
    v /= np.sqrt(np.sum(v**2) + 1e-10)
    new_u = v @ kernel
    new_u /= np.sqrt(np.sum(new_u**2) + 1e-10)
    expected = kernel / ((v @ kernel @ new_u.T)[0, 0] + 1e-10)
    params = {"dense": {"kernel": jnp.asarray(kernel, jnp.float32)}}
    normalized, vectors = spectral_normalize(params, {"dense": {"u": jnp.asarray(u, jnp.float32)}})
    np.testing.assert_allclose(normalized["dense"]["kernel"], expected, rtol=1e-5)
    np.testing.assert_allclose(vectors["dense"]["u"], new_u, rtol=1e-5)


def test_gradient_treats_the_vectors_as_constants():
    # d/dW sum(W / sigma) with sigma = v W u': 1/sigma - sum(W) / sigma^2 * v' u.
    params = {"dense": {"kernel": _params()["block"]["dense"]["kernel"]}}
    vectors = init_spectral_vectors(jax.random.key(2), params)
    grad = jax.grad(lambda p: jnp.sum(spectral_normalize(p, vectors)[0]["dense"]["kernel"]))(params)
    kernel = np.asarray(params["dense"]["kernel"], np.float64)
    v = np.asarray(vectors["dense"]["u"], np.float64) @ kernel.T
    v /= np.linalg.norm(v)
    u = v @ kernel
    u /= np.linalg.norm(u)
    sigma = (v @ kernel @ u.T)[0, 0]
    expected = 1 / sigma - kernel.sum() / sigma**2 * (v.T @ u)
    np.testing.assert_allclose(grad["dense"]["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_spectral_norms_tend_to_the_largest_singular_values():
    params = _params()
    vectors = init_spectral_vectors(jax.random.key(1), params)
    for _ in range(100):
        normalized, vectors = spectral_normalize(params, vectors)
    kernels = [params["conv"]["kernel"], params["block"]["dense"]["kernel"]]
    matrices = [np.asarray(kernel).reshape(-1, kernel.shape[-1]) for kernel in kernels]
    expected = [np.linalg.svd(matrix, compute_uv=False)[0] for matrix in matrices]
    np.testing.assert_allclose(spectral_norms(params, normalized), expected, rtol=1e-5)
