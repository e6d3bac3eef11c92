"""The depthwise convolution and its gradients are XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from xmcgan.pretrained.depthwise import depthwise_conv


def literal(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "stride"),
    [(6, 8, 3, 1), (8, 7, 3, 2), (7, 8, 5, 2), (4, 9, 5, 1), (2, 1, 5, 2)],
)
def test_value_and_gradients_are_those_of_the_grouped_convolution(
    height, width, kernel_size, stride
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 1, 3)), jnp.float32)

    def value_and_gradients(convolve):
        def total(x, kernel):
            return jnp.sin(convolve(x, kernel, stride)).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1)))(x, kernel)

    found, expected = value_and_gradients(depthwise_conv), value_and_gradients(literal)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
