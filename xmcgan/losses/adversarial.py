"""The adversarial hinge loss (Lim and Ye, "Geometric GAN", 2017), as the paper uses it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.losses.context import Context, Metrics


def hinge_discriminator(
    real_logits: Float[Array, "b *k"], fake_logits: Float[Array, "b *k"]
) -> Float[Array, ""]:
    """Push logits of real images above 1 and of generated images below -1."""
    return jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits))


def hinge_generator(fake_logits: Float[Array, "b *k"]) -> Float[Array, ""]:
    """Push logits of generated images up."""
    return -jnp.mean(fake_logits)


class Hinge:
    def discriminator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        return hinge_discriminator(context.real.output.logits, context.fake.output.logits), {}

    def generator(self, context: Context) -> tuple[Float[Array, ""], Metrics]:
        return hinge_generator(context.fake.output.logits), {}
