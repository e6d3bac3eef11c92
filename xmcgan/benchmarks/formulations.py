"""Ours and the literal formulation of one training step, from the same parameters and inputs."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from xmcgan.benchmarks.literal import Arrays
from xmcgan.benchmarks.literal_params import Sizes, array_shapes, draw_arrays
from xmcgan.benchmarks.literal_step import Settings, literal_state, make_literal_step
from xmcgan.build import build_networks
from xmcgan.training import reference
from xmcgan.training.state import Networks, TrainState
from xmcgan.training.step import FrozenNetworks, make_train_step


class Formulation(NamedTuple):
    """Hold one way to compute a training step.

    Attributes:
        name: of a row of the tables.
        dtype: of its arithmetic.
        init: makes the state from the arrays of `draw_parameters`.
        place: makes the batch from the inputs of `draw_inputs`.
        step: (state, batch) -> (state, metrics), not yet compiled.
    """

    name: str
    dtype: str
    init: Callable[[Arrays], Any]
    place: Callable[[Arrays], Arrays]
    step: Callable[[Any, Arrays], tuple[Any, Arrays]]

    def jit(self) -> Any:
        """Return the step as training compiles it, its state donated."""
        return jax.jit(lambda state, batch: self.step(state, batch), donate_argnums=0)

    def compile(self, config: ConfigDict, word_dim: int) -> Any:
        """Compile the step for its analysis, from shapes alone: no array is made."""
        state = jax.eval_shape(self.init, parameter_shapes(config, word_dim))
        batch = jax.eval_shape(self.place, input_shapes(config, word_dim))
        # On a CPU the last stage of compilation changes neither work nor memory: half the time.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        return self.jit().lower(state, batch).compile(compiler_options=options)


def literal(config: ConfigDict) -> Formulation:
    """Return the literal step of a config's sizes, float32, with all losses but the frozen net's.

    Sizes, optimisers and moving average are the config's; the rest is as official.
    """
    settings = Settings(
        gamma=config.generator.attention_gamma,
        cond_size=config.region_size,
        g_optimizer=optax.adam(config.generator.learning_rate, **config.adam),
        d_optimizer=optax.adam(config.discriminator.learning_rate, **config.adam),
        ema_decay=config.ema_decay,
    )
    return Formulation(
        name="literal",
        dtype="float32",
        init=lambda arrays: literal_state(arrays, settings),
        place=_literal_batch,
        step=make_literal_step(settings),
    )


def ours(config: ConfigDict, word_dim: int, name: str = "ours") -> Formulation:
    """Return the step of `xmcgan.training.step`, given words instead of a text encoder.

    Args:
        config: a validated config without the frozen image network's loss.
        word_dim: size of a word's feature.
        name: of the row.
    """
    networks = build_networks(config, word_dim)
    train_step = make_train_step(networks, FrozenNetworks(_given_words), config)
    return Formulation(
        name=name,
        dtype=config.dtype,
        init=lambda arrays: _our_state(arrays, networks),
        place=partial(_our_batch, config=config),
        step=lambda state, batch: train_step(state, {"text": None, "image": None}, batch),
    )


def draw_parameters(config: ConfigDict, word_dim: int, seed: int = 0) -> Arrays:
    """Draw the parameters that both formulations start from."""
    return draw_arrays(np.random.default_rng(seed), _sizes(config, word_dim))


def draw_inputs(config: ConfigDict, word_dim: int, seed: int = 0) -> Arrays:
    """Draw the inputs of one step: images, words, lengths of captions, noise."""
    rng, shapes = np.random.default_rng(seed), input_shapes(config, word_dim)
    tokens = config.text.max_tokens
    return {
        "image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
        "words": rng.standard_normal(shapes["words"].shape, np.float32),
        "length": rng.integers(3, tokens, shapes["length"].shape, np.int32, endpoint=True),
        "z": rng.standard_normal(shapes["z"].shape, np.float32),
    }


def parameter_shapes(config: ConfigDict, word_dim: int) -> Arrays:
    """Return shapes and types of the parameters."""
    shapes = array_shapes(_sizes(config, word_dim))
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def input_shapes(config: ConfigDict, word_dim: int) -> Arrays:
    """Return shapes and types of one step's inputs."""
    parts = (config.d_steps, config.batch_size)
    image = (*parts, config.image_size, config.image_size, 3)
    return {
        "image": jax.ShapeDtypeStruct(image, jnp.uint8),
        "words": jax.ShapeDtypeStruct((*parts, config.text.max_tokens, word_dim), jnp.float32),
        "length": jax.ShapeDtypeStruct((*parts, 1), jnp.int32),
        "z": jax.ShapeDtypeStruct((*parts, config.generator.z_dim), jnp.float32),
    }


def _sizes(config: ConfigDict, word_dim: int) -> Sizes:
    return Sizes(
        image_size=config.image_size,
        gf_dim=config.generator.width,
        df_dim=config.discriminator.width,
        embedding_dim=word_dim,
        z_dim=config.generator.z_dim,
        cond_size=config.region_size,
    )


def _our_state(arrays: Arrays, networks: Networks) -> TrainState:
    def mapped(prefix: str, mapping: Callable[[Any], Any]) -> Any:
        return mapping(reference.tree(arrays, prefix))

    g_params = mapped("generator/params", reference.generator_params)
    g_stats = mapped("generator/batch_stats", reference.generator_stats)
    d_params = mapped("discriminator/params", reference.discriminator_tree)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(0)),
        g_params=g_params,
        g_batch_stats=g_stats,
        g_opt_state=networks.g_optimizer.init(g_params),
        ema_params=jax.tree.map(jnp.copy, g_params),
        ema_batch_stats=jax.tree.map(jnp.copy, g_stats),
        d_params=d_params,
        d_vectors=mapped("discriminator/spectral_norm_stats", reference.discriminator_tree),
        d_opt_state=networks.d_optimizer.init(d_params),
    )


def _our_batch(inputs: Arrays, config: ConfigDict) -> Arrays:
    """Hand words over where token ids would be; z is drawn inside the step."""
    mask = jnp.arange(inputs["words"].shape[2]) < inputs["length"]
    batch = {"image": inputs["image"], "token_ids": inputs["words"], "word_mask": mask}
    parts = (config.d_steps * config.num_microbatches, -1)
    return {name: x[: config.d_steps].reshape(*parts, *x.shape[2:]) for name, x in batch.items()}


def _literal_batch(inputs: Arrays) -> Arrays:
    mask = jnp.arange(inputs["words"].shape[2]) < inputs["length"]
    return {
        "image": inputs["image"],
        "embedding": inputs["words"],
        "max_len": inputs["length"],
        "sentence_embedding": _mean_of_words(inputs["words"], mask),
        "z": inputs["z"],
    }


def _given_words(_: Any, words: Any, word_mask: Any) -> tuple[Any, Any]:
    return words, _mean_of_words(words, word_mask)


def _mean_of_words(words: Any, word_mask: Any) -> Any:
    mask = word_mask[..., None].astype(words.dtype)
    return (words * mask).sum(axis=-2) / mask.sum(axis=-2)
