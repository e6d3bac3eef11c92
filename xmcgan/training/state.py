"""What training carries from step to step, and how it starts."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from xmcgan.models.discriminator import Discriminator, ImageEncoding
from xmcgan.models.generator import Generator
from xmcgan.models.projected import ProjectedDiscriminator
from xmcgan.models.spectral_norm import init_spectral_vectors


@dataclasses.dataclass(frozen=True)
class Networks:
    """Hold the two networks that are trained and how each one is.

    Attributes:
        generator: draws images from captions.
        discriminator: judges and encodes images; applied to spectrally normalised parameters.
        g_optimizer: the generator's.
        d_optimizer: the discriminator's.
        d_frozen: parameters of the discriminator that are not trained.
    """

    generator: Generator
    discriminator: Discriminator | ProjectedDiscriminator
    g_optimizer: optax.GradientTransformation
    d_optimizer: optax.GradientTransformation
    d_frozen: dict[str, Any] = dataclasses.field(default_factory=dict)

    def with_frozen(self, d_frozen: dict[str, Any]) -> "Networks":
        """Return the networks with the frozen parameters of the discriminator in place."""
        return dataclasses.replace(self, d_frozen=d_frozen)

    def discriminate(self, normalized: Any, images: Array, sentence: Array) -> ImageEncoding:
        """Apply the discriminator to normalized parameters."""
        variables = {"params": normalized | self.d_frozen}
        encoding: Any = self.discriminator.apply(variables, images, sentence)
        return encoding


class TrainState(flax.struct.PyTreeNode):
    """Hold everything that a step reads and writes; saved and restored as a whole.

    Attributes:
        step: steps done.
        rng: raw random key; a step's own key is this one folded with its number.
        g_params: the generator's parameters.
        g_batch_stats: its running batch-norm statistics.
        g_opt_state: its optimiser's state.
        ema_params: exponential moving average of `g_params`.
        ema_batch_stats: exponential moving average of `g_batch_stats`.
        d_params: the discriminator's parameters, not normalised.
        d_vectors: vectors of its spectral norms' power iterations.
        d_opt_state: its optimiser's state.
    """

    step: Int[Array, ""]
    rng: UInt32[Array, "2"]
    g_params: Any
    g_batch_stats: Any
    g_opt_state: Any
    ema_params: Any
    ema_batch_stats: Any
    d_params: Any
    d_vectors: Any
    d_opt_state: Any


def create_state(
    networks: Networks, rng: PRNGKeyArray, *, max_tokens: int, word_dim: int, sentence_dim: int
) -> TrainState:
    """Draw the first state.

    Args:
        networks: what to initialise.
        rng: random key; the same key gives the same state on any mesh.
        max_tokens: length of a caption.
        word_dim: size of a word's feature.
        sentence_dim: size of a sentence's feature.

    Returns:
        The state before step 0.
    """
    g_key, d_key, vectors_key, step_key = jax.random.split(rng, 4)
    generator, discriminator = networks.generator, networks.discriminator
    words, mask = jnp.zeros((1, max_tokens, word_dim)), jnp.ones((1, max_tokens), bool)
    sentence, z = jnp.zeros((1, sentence_dim)), jnp.zeros((1, generator.z_dim))
    g_variables = generator.init(g_key, words, mask, sentence, z, train=False)
    images = jnp.zeros((1, generator.image_size, generator.image_size, 3))
    d_variables = discriminator.init(d_key, images, sentence)
    g_params: Any = g_variables["params"]
    d_params = {name: p for name, p in d_variables["params"].items() if name != "trunk"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(step_key),
        g_params=g_params,
        g_batch_stats=g_variables["batch_stats"],
        g_opt_state=networks.g_optimizer.init(g_params),
        # Copies: the state is donated to the step, which may not donate one buffer twice.
        ema_params=jax.tree.map(jnp.copy, g_params),
        ema_batch_stats=jax.tree.map(jnp.copy, g_variables["batch_stats"]),
        d_params=d_params,
        d_vectors=init_spectral_vectors(vectors_key, d_params),
        d_opt_state=networks.d_optimizer.init(d_params),
    )
