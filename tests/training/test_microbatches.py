"""Gradients of a whole batch's loss from a network that sees a part of it at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.training.microbatches import encode_parts, map_parts, merge_parts

ROWS = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
PARAMS = {
    "a": np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32),
    "b": np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32),
}


def _encode(params, x):
    hidden = jnp.tanh(x @ params["a"])
    return (hidden, jnp.sin(hidden @ params["b"])), jnp.mean(x, axis=0)


def _losses(features):
    """Return two losses that no part of the batch can compute alone."""
    hidden, output = features
    similarity = output @ output.T
    return jnp.sum(jnp.exp(similarity)), jnp.sum(hidden) ** 2 + jnp.sum(similarity**2)


@pytest.mark.parametrize("num_parts", [1, 3, 12])
def test_each_loss_is_carried_back_to_its_own_parameters(num_parts):
    parts = ROWS.reshape(num_parts, -1, 5)
    features, stats, pull_back = encode_parts(_encode, PARAMS, parts)
    flat = [x.reshape(12, -1) for x in features]
    grads = {
        name: tuple(g.reshape(f.shape) for g, f in zip(jax.grad(loss)(flat), features, strict=True))
        for name, loss in (("a", lambda f: _losses(f)[0]), ("b", lambda f: _losses(f)[1]))
    }
    found = pull_back(grads)
    for index, name in enumerate(("a", "b")):
        expected = jax.grad(lambda p, index=index: _losses(_encode(p, ROWS)[0])[index])(PARAMS)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4)
    np.testing.assert_allclose(stats, ROWS.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_a_gradient_of_none_is_zero(num_parts):
    parts = ROWS.reshape(num_parts, -1, 5)
    features, _, pull_back = encode_parts(_encode, PARAMS, parts)
    ones = jnp.ones_like(features[1])
    none = pull_back({"a": (None, ones)})["a"]
    zero = pull_back({"a": (jnp.zeros_like(features[0]), ones)})["a"]
    np.testing.assert_array_equal(none, zero)


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_function_sees_every_part_once(num_parts):
    parts = ROWS.reshape(num_parts, -1, 5)
    np.testing.assert_allclose(map_parts(lambda x: 2 * x, parts), 2 * parts)


def test_merging_keeps_groups_together_and_all_rows():
    rows = np.arange(24)
    for num_parts, group_size in ((1, 0), (4, 0), (4, 1), (4, 3), (2, 4), (2, 12)):
        merged = np.asarray(merge_parts(jnp.asarray(rows.reshape(num_parts, -1)), group_size))
        assert sorted(merged) == list(rows)
        groups = merged.reshape(-1, group_size or 1)
        assert (groups == groups[:, :1] + np.arange(group_size or 1)).all()
