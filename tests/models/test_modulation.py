"""Batch norm and modulation against literal formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.models.attention import attend_to_words
from xmcgan.models.modulation import (
    BatchNorm,
    Condition,
    ConditionalBatchNorm,
    batch_norm_relu,
)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _literal(x, gamma, beta, group_size):
    """The same by means, variances and repeated values."""
    groups = x.reshape(x.shape[0] // (group_size or x.shape[0]), -1, *x.shape[1:])
    mean, var = groups.mean((1, 2, 3), keepdims=True), groups.var((1, 2, 3), keepdims=True)
    normalized = ((groups - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
    gamma, beta = (
        m.repeat(x.shape[1] // m.shape[1], 1).repeat(x.shape[2] // m.shape[2], 2)
        for m in (gamma, beta)
    )
    return jax.nn.relu((1 + gamma) * normalized + beta)


@pytest.mark.parametrize("group_size", [0, 2])
@pytest.mark.parametrize("modulation_size", [(1, 1), (2, 4), (4, 8)])
def test_batch_norm_relu_and_its_gradients_equal_the_literal_ones(group_size, modulation_size):
    x = 3 * _normal(0, 6, 4, 8, 5) + 2
    gamma, beta = _normal(1, 6, *modulation_size, 5), _normal(2, 6, *modulation_size, 5)
    weights = _normal(3, *x.shape)

    def loss(batch_norm):
        return lambda *inputs: jnp.sum(weights * jnp.sin(batch_norm(*inputs)))

    ours = loss(lambda *inputs: batch_norm_relu(*inputs, group_size)[0])
    literal = loss(lambda *inputs: _literal(*inputs, group_size))
    value, grads = jax.value_and_grad(ours, (0, 1, 2))(x, gamma, beta)
    expected, expected_grads = jax.value_and_grad(literal, (0, 1, 2))(x, gamma, beta)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_relu_keeps_the_types_of_its_inputs():
    x = _normal(0, 2, 4, 4, 3).astype(jnp.bfloat16)
    gamma = beta = jnp.zeros((2, 1, 1, 3), jnp.bfloat16)
    loss = lambda *inputs: batch_norm_relu(*inputs)[0].astype(float).sum()  # noqa: E731
    grads = jax.grad(loss, (0, 1, 2))(x, gamma, beta)
    y, statistics = batch_norm_relu(x, gamma, beta)
    assert {y.dtype, *(grad.dtype for grad in grads)} == {jnp.dtype(jnp.bfloat16)}
    assert {value.dtype for value in statistics} == {jnp.dtype(jnp.float32)}


def _apply(x, group_size=0, *, train, variables=None):
    """Return outputs and statistics of a BatchNorm without modulation, above relu's zero."""
    module, zeros = BatchNorm(group_size), jnp.zeros((len(x), 1, 1, x.shape[-1]))
    variables = variables or module.init(jax.random.key(0), x, zeros, zeros, train=False)
    y, updates = module.apply(variables, x, zeros, zeros + 10, train=train, mutable=["batch_stats"])
    return y - 10, updates["batch_stats"]


@pytest.mark.parametrize("group_size", [0, 2])
def test_batch_norm_normalizes_each_group_by_its_own_statistics(group_size):
    x = 3 * _normal(0, 6, 4, 4, 5) + 2
    y, stats = _apply(x, group_size, train=True)
    groups = np.asarray(x, np.float64).reshape(6 // (group_size or 6), -1, 5)
    mean, var = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.1 * mean.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var.mean((0, 1)), rtol=1e-5)
    running = {"batch_stats": {"mean": mean.mean((0, 1)), "var": var.mean((0, 1))}}
    y, _ = _apply(x, train=False, variables=running)
    expected = (x - mean.mean((0, 1))) / np.sqrt(var.mean((0, 1)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_batch_norm_in_evaluation_does_not_mix_images():
    x = _normal(0, 4, 2, 2, 3)
    together, alone = (_apply(part, train=False)[0] for part in (x, x[:1]))
    np.testing.assert_array_equal(together[:1], alone)


def test_batch_norm_keeps_precision_far_from_zero():
    x = 1000 + 0.1 * _normal(0, 8, 8, 8, 1)  # squared means would cancel in float32
    y, _ = _apply(x, train=True)
    np.testing.assert_allclose(np.std(y), 1, rtol=1e-2)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_spatial_modulation_equals_the_literal_one_of_the_upsampled_condition_map(size):
    x, vector, context = _normal(0, 2, size, size, 6), _normal(1, 2, 5), _normal(2, 2, 4, 4, 3)
    module = ConditionalBatchNorm()
    condition = Condition(vector, context)
    variables = module.init(jax.random.key(0), x, condition, train=False)
    y = module.apply(variables, x, condition, train=False)
    params = jax.tree.map(np.asarray, variables["params"])
    # Literally: the vector copied to every region, the map upsampled, a conv1x1 a pixel.
    broadcast = np.broadcast_to(np.asarray(vector)[:, None, None], (2, 4, 4, 5))
    full = np.concatenate([np.asarray(context), broadcast], axis=-1)
    full = full.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    gamma, beta = (full @ params[n]["kernel"] + params[n]["bias"] for n in ("gamma", "beta"))
    expected = np.asarray(x) / np.sqrt(1 + 1e-5) * (gamma + 1) + beta
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_global_modulation_is_the_same_at_every_pixel():
    x, vector = _normal(0, 2, 8, 8, 6), _normal(1, 2, 5)
    module = ConditionalBatchNorm()
    variables = module.init(jax.random.key(0), x, Condition(vector), train=False)
    y = module.apply(variables, x, Condition(vector), train=False)
    params = jax.tree.map(np.asarray, variables["params"])
    gamma, beta = (vector @ params[n]["kernel"] + params[n]["bias"] for n in ("gamma", "beta"))
    expected = x / np.sqrt(1 + 1e-5) * (gamma + 1)[:, None, None] + beta[:, None, None]
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=1e-4, atol=1e-5)


def test_attention_to_words_matches_explicit_loops():
    query, words = np.asarray(_normal(0, 2, 3, 4)), np.asarray(_normal(1, 2, 5, 4))
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    arrays = (jnp.asarray(query), jnp.asarray(words), jnp.asarray(mask))
    context, shares = attend_to_words(*arrays, 15.0)
    for b in range(2):
        real = words[b][mask[b]] / np.linalg.norm(words[b][mask[b]], axis=-1, keepdims=True)
        for r in range(3):
            logits = 15 * real @ (query[b, r] / np.linalg.norm(query[b, r]))
            weights = np.exp(logits - logits.max())
            expected = weights / weights.sum()
            np.testing.assert_allclose(shares[b, r][mask[b]], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(context[b, r], expected @ real, rtol=1e-4, atol=1e-5)


def test_attention_ignores_what_stands_on_padding():
    query, words = _normal(0, 2, 3, 4), _normal(1, 2, 5, 4)
    mask = jnp.array([[True] * 3 + [False] * 2] * 2)
    changed = words.at[:, 3:].set(1e4)
    (first, shares), (second, _) = (attend_to_words(query, w, mask, 15.0) for w in (words, changed))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(shares[:, :, 3:], 0)
