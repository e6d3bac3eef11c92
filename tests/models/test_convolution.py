"""The merged convolutions against the literal ones, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.models.blocks import relu
from xmcgan.models.convolution import (
    average_pool,
    conv3x3,
    conv3x3_pool,
    four_phases,
    merge_taps,
    transposed,
    upsample_conv3x3,
    upsample_nearest,
)


def _assert_same(merged_fn, literal_fn, x):
    kernel = jax.random.normal(jax.random.key(1), (3, 3, x.shape[-1], 5))

    def value_and_grads(fn):
        y, pull_back = jax.vjp(fn, x, kernel)
        return y, pull_back(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    merged, literal = jax.jit(lambda: (value_and_grads(merged_fn), value_and_grads(literal_fn)))()
    np.testing.assert_allclose(merged[0], literal[0], rtol=1e-5, atol=1e-5)
    for ours, expected in zip(merged[1], literal[1], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [transposed, four_phases])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 1, 1), (2, 4, 4), (1, 3, 5)])
def test_upsample_conv_equals_upsampling_then_convolving(batch, height, width, form):
    x = jax.random.normal(jax.random.key(0), (batch, height, width, 3))

    def literal(x, kernel):
        return conv3x3(upsample_nearest(x), kernel)

    _assert_same(lambda x, k: form(x, merge_taps(k)), literal, x)
    _assert_same(upsample_conv3x3, literal, x)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 2, 2), (2, 4, 4), (1, 6, 10)])
def test_conv_pool_equals_convolving_then_pooling(batch, height, width):
    x = jax.random.normal(jax.random.key(0), (batch, height, width, 3))
    _assert_same(conv3x3_pool, lambda x, k: average_pool(conv3x3(x, k)), x)


def test_upsampling_repeats_pixels_and_pooling_undoes_it():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    large = upsample_nearest(x)
    np.testing.assert_array_equal(large, x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(average_pool(large), x, rtol=1e-6)


def test_conv3x3_matches_explicit_sums():
    x, kernel = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32), np.ones((3, 3))
    image = x.reshape(1, 2, 5, 1)
    padded = np.pad(x, 1)
    expected = [[padded[i : i + 3, j : j + 3].sum() for j in range(5)] for i in range(2)]
    y = conv3x3(jnp.asarray(image), jnp.asarray(kernel.reshape(3, 3, 1, 1), jnp.float32))
    np.testing.assert_allclose(y[0, :, :, 0], expected, rtol=1e-5)


def test_relu_has_the_value_and_gradients_of_jax():
    x = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])

    def both(fn):
        slope = jax.grad(lambda x: jnp.sum(fn(x) ** 3))
        return fn(x), slope(x), jax.grad(lambda x: jnp.sum(slope(x)))(x)

    for ours, expected in zip(both(relu), both(jax.nn.relu), strict=True):
        np.testing.assert_array_equal(ours, expected)
