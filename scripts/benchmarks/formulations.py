"""Ours and the literal formulation of one training step, from the same parameters and inputs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from oracle.golden import Golden
from oracle.literal import Arrays
from oracle.params import Sizes, array_shapes, draw_arrays
from oracle.step import Settings, literal_state, make_literal_step

from xmcgan.config import apply_override, default_config, load_config, validate
from xmcgan.errors import ConfigError
from xmcgan.losses import build_losses
from xmcgan.training.build import build_networks
from xmcgan.training.state import create_state
from xmcgan.training.step import FrozenNetworks, make_train_step


class Formulation(NamedTuple):
    """One way to compute a training step.

    Attributes:
        dtype: Of its arithmetic.
        init: Makes the state from the arrays of `draw_parameters`.
        place: Makes the batch from the inputs of `draw_inputs`.
        step: (state, batch) -> (state, metrics), not compiled.
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
        """Compile the step from shapes alone: no array is made."""
        state = jax.eval_shape(self.init, parameter_shapes(config, word_dim))
        batch = jax.eval_shape(self.place, input_shapes(config, word_dim))
        # On a CPU the last stage of compilation changes neither work nor memory: half the time.
        options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {}
        return self.jit().lower(state, batch).compile(compiler_options=options)


def benchmark_config(
    spec: str | None, *, image_size: int | None, width: int | None, batch: int | None
) -> ConfigDict:
    """Return the config of a benchmark, without what the literal formulation does not have.

    Args:
        spec: `NAME[:variant]`, or None for the default config in float32.
        image_size, width, batch: Replace those of the config; `width` of both networks.

    Raises:
        ConfigError: An unknown config, or a size that cannot work.
    """
    config = load_config(spec) if spec else default_config()
    if not spec:
        config.dtype = "float32"  # in which the literal formulation computes
    with config.unlocked():
        config.image_size = image_size or config.image_size
        config.batch_size = batch or config.batch_size
        for network in (config.generator, config.discriminator):
            network.width = width or network.width
        config.losses.image_pretrained.enabled = False
        # The literal formulation is the official code's, which has neither.
        config.generator.sentence_in_first_map = config.generator.whiten_sentence = False
    validate(config)
    if config.image_size < 4 * config.region_size:
        raise ConfigError(
            f"image_size = {config.image_size} cannot work here: the literal discriminator has its "
            f"regions of {config.region_size}x{config.region_size} after its second block, so that "
            f"images have {4 * config.region_size} pixels or more"
        )
    return config


def formulations(
    config: ConfigDict, word_dim: int, variants: Sequence[str] = ()
) -> list[Formulation]:
    """Return the literal formulation, ours, and ours with fields changed.

    Args:
        variants: `FIELD=VALUE` each, or several of them joined by commas.

    Raises:
        ConfigError: An unknown field, or one that changes the sizes to compare.
    """
    rows = [literal(config), ours(config, word_dim)]
    for variant in variants:
        changed = config.copy_and_resolve_references()
        for override in variant.split(","):
            apply_override(changed, override)
        validate(changed)
        for field in ("image_size", "batch_size"):
            if changed[field] != config[field]:
                raise ConfigError(f"--variant {variant} changes {field}, which has a flag")
        rows.append(ours(changed, word_dim, name=f"ours, {variant}"))
    return rows


def literal(config: ConfigDict) -> Formulation:
    """Return the literal step in float32, with sizes, optimizers and average of the config."""
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
    """Return the step of `xmcgan.training.step`, given words instead of a text encoder."""
    networks = build_networks(config, word_dim)
    train_step = make_train_step(
        networks, FrozenNetworks(_given_words), build_losses(config), config
    )
    meta = _sizes(config, word_dim)._asdict() | {"gamma_for_g": config.generator.attention_gamma}

    def init(arrays: Arrays) -> Any:
        state = create_state(
            networks,
            jax.random.key(0),
            max_tokens=config.text.max_tokens,
            word_dim=word_dim,
            sentence_dim=word_dim,
        )
        official = Golden(meta, arrays).state(state)
        return state.replace(
            rng=jax.random.key_data(jax.random.key(0)),
            ema_params=jax.tree.map(jnp.copy, official["g_params"]),
            ema_batch_stats=jax.tree.map(jnp.copy, official["g_batch_stats"]),
            **official,
        )

    return Formulation(
        name=name,
        dtype=config.dtype,
        init=init,
        place=partial(_our_batch, config=config),
        step=lambda state, batch: train_step(state, {"text": None, "image": None}, batch),
    )


def draw_parameters(config: ConfigDict, word_dim: int, seed: int = 0) -> Arrays:
    """Sample the parameters that both formulations start from."""
    return draw_arrays(np.random.default_rng(seed), _sizes(config, word_dim))


def draw_inputs(config: ConfigDict, word_dim: int, seed: int = 0) -> Arrays:
    """Sample the inputs of one step: images, words, lengths of captions, noise."""
    rng, shapes = np.random.default_rng(seed), input_shapes(config, word_dim)
    tokens = config.text.max_tokens
    return {
        "image": rng.integers(0, 256, shapes["image"].shape, np.uint8),
        "words": rng.standard_normal(shapes["words"].shape, np.float32),
        "length": rng.integers(3, tokens, shapes["length"].shape, np.int32, endpoint=True),
        "z": rng.standard_normal(shapes["z"].shape, np.float32),
    }


def parameter_shapes(config: ConfigDict, word_dim: int) -> Arrays:
    shapes = array_shapes(_sizes(config, word_dim))
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def input_shapes(config: ConfigDict, word_dim: int) -> Arrays:
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


def _our_batch(inputs: Arrays, config: ConfigDict) -> Arrays:
    """Pass words where token ids would be; z is sampled inside the step."""
    mask = jnp.arange(inputs["words"].shape[2]) < inputs["length"]
    batch = {"image": inputs["image"], "token_ids": inputs["words"], "word_mask": mask}
    return {name: x[: config.d_steps] for name, x in batch.items()}


def _literal_batch(inputs: Arrays) -> Arrays:
    mask = jnp.arange(inputs["words"].shape[2]) < inputs["length"]
    return {
        "image": inputs["image"],
        "embedding": inputs["words"],
        "max_len": inputs["length"],
        "sentence_embedding": _given_words(None, inputs["words"], mask)[1],
        "z": inputs["z"],
    }


def _given_words(_: Any, words: Any, word_mask: Any) -> tuple[Any, Any]:
    """Return words and, as the sentence, their mean."""
    mask = word_mask[..., None].astype(words.dtype)
    return words, (words * mask).sum(axis=-2) / mask.sum(axis=-2)
