"""Training state, and the networks that it belongs to."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from xmcgan.errors import ConfigError
from xmcgan.models.outputs import Captions, DiscriminatorOutput
from xmcgan.models.spectral_norm import init_spectral_vectors


@dataclasses.dataclass(frozen=True)
class Networks:
    generator: Any  # Flax modules
    discriminator: Any
    g_optimizer: optax.GradientTransformation
    d_optimizer: optax.GradientTransformation

    def generate(
        self, params: Any, batch_stats: Any, captions: Captions, z: Float[Array, "b z"]
    ) -> tuple[Float[Array, "b h w 3"], Any]:
        """Generate images in training mode; also return the new running statistics."""
        variables = {"params": params, "batch_stats": batch_stats}
        fake, updates = self.generator.apply(
            variables, *captions, z, train=True, mutable=["batch_stats"]
        )
        wanted = (len(z), *[self.generator.image_size] * 2, 3)
        if fake.shape != wanted:
            raise ConfigError(f"the generator's images have shape {fake.shape}, not {wanted}")
        return fake, updates.get("batch_stats", {})

    def discriminate(
        self, params: Any, images: Float[Array, "b h w 3"], sentence: Float[Array, "b e"]
    ) -> DiscriminatorOutput:
        """Apply the discriminator to spectrally normalized (and frozen) parameters."""
        output: Any = self.discriminator.apply({"params": params}, images, sentence)
        return output


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes; checkpointed as a whole."""

    step: Int[Array, ""]
    rng: UInt32[Array, "2"]  # raw key; a step's own key is this one folded with its number
    g_params: Any
    g_batch_stats: Any
    g_opt_state: Any
    ema_params: Any  # exponential moving averages of g_params and g_batch_stats
    ema_batch_stats: Any
    d_params: Any  # without spectral normalization
    d_vectors: Any  # of the power iterations of the spectral norms
    d_opt_state: Any


def create_state(
    networks: Networks, rng: PRNGKeyArray, *, max_tokens: int, word_dim: int, sentence_dim: int
) -> TrainState:
    """Initialize the state before step 0; the same key gives the same state on any mesh."""
    g_key, d_key, vectors_key, step_key = jax.random.split(rng, 4)
    generator = networks.generator
    words, mask = jnp.zeros((1, max_tokens, word_dim)), jnp.ones((1, max_tokens), bool)
    sentence, z = jnp.zeros((1, sentence_dim)), jnp.zeros((1, generator.z_dim))
    g_variables = generator.init(g_key, words, mask, sentence, z, train=False)
    images = jnp.zeros((1, generator.image_size, generator.image_size, 3))
    d_variables = networks.discriminator.init(d_key, images, sentence)
    g_params, batch_stats = g_variables["params"], g_variables.get("batch_stats", {})
    d_params = {name: p for name, p in d_variables["params"].items() if name != "trunk"}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(step_key),
        g_params=g_params,
        g_batch_stats=batch_stats,
        g_opt_state=networks.g_optimizer.init(g_params),
        # Copies: the state is donated to the step, which may not donate one buffer twice.
        ema_params=jax.tree.map(jnp.copy, g_params),
        ema_batch_stats=jax.tree.map(jnp.copy, batch_stats),
        d_params=d_params,
        d_vectors=init_spectral_vectors(vectors_key, d_params),
        d_opt_state=networks.d_optimizer.init(d_params),
    )
