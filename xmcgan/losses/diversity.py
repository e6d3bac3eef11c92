"""Diversity of the images of one caption; beyond the paper, see docs/paper_map.md."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.losses.context import Context, Metrics


class Diversity:
    """Push two images of one caption apart, up to a bound.

    Yang et al., "Diversity-Sensitive Conditional Generative Adversarial Networks", ICLR 2019.
    Deviation: the distance is not divided by that of the noises, which hardly varies.
    """

    needs_images = needs_pairs = True

    def __init__(self, bound: float = 0.25) -> None:
        self.bound = bound  # mean absolute difference of pixels in [0, 1] from which on it is 0

    def generator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        pair: Any = (context.fake_images, context.other_images)
        distance = jnp.mean(jnp.abs(pair[0] - pair[1]), axis=(1, 2, 3))
        loss = 1 - jnp.mean(jnp.minimum(distance / self.bound, 1))
        return loss, {"distance": jnp.mean(distance)}
