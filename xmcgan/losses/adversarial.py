"""The adversarial hinge loss (Lim and Ye, "Geometric GAN", 2017), as the paper uses it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def hinge_discriminator(
    real_logits: Float[Array, "b"], fake_logits: Float[Array, "b"]
) -> Float[Array, ""]:
    """Push logits of real images above 1 and of generated images below -1.

    Args:
        real_logits: the discriminator's logits of real images.
        fake_logits: its logits of generated images.

    Returns:
        The mean of max(0, 1 - real) plus the mean of max(0, 1 + fake).
    """
    return jnp.mean(jax.nn.relu(1 - real_logits)) + jnp.mean(jax.nn.relu(1 + fake_logits))


def hinge_generator(fake_logits: Float[Array, "b"]) -> Float[Array, ""]:
    """Push logits of generated images up.

    Args:
        fake_logits: the discriminator's logits of generated images.

    Returns:
        Minus their mean.
    """
    return -jnp.mean(fake_logits)
