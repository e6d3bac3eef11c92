"""The diversity loss against its formula."""

import jax
import jax.numpy as jnp
import numpy as np

from xmcgan.losses.context import Context
from xmcgan.losses.diversity import Diversity


def _loss(other, bound):
    fake = jnp.full((2, 4, 4, 3), 0.5)
    context = Context(None, None, None, fake_images=fake, other_images=other)  # pyright: ignore
    return Diversity(bound).generator(context)[0]


def test_pairs_count_up_to_the_bound_and_have_no_gradient_beyond():
    other = jnp.stack([jnp.full((4, 4, 3), 0.6), jnp.full((4, 4, 3), 0.9)])
    np.testing.assert_allclose(_loss(other, 0.2), 1 - (0.1 / 0.2 + 1) / 2, rtol=1e-5)
    near, far = jax.grad(_loss)(other, 0.2)
    np.testing.assert_allclose(near, -1 / (2 * 0.2 * near.size), rtol=1e-5)
    np.testing.assert_array_equal(far, 0)
