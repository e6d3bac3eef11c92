"""The training step of a config, compiled for a target from shapes alone."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from xmcgan.config import check_devices, trunk_size
from xmcgan.errors import ConfigError, TrainingError
from xmcgan.losses import build_losses, loss_params
from xmcgan.planning.collectives import find_collectives
from xmcgan.planning.targets import Target, flops_per_device
from xmcgan.pretrained import bert, vgg
from xmcgan.pretrained.efficientnet_lite import EfficientNetLite, EfficientNetLite0Trunk
from xmcgan.pretrained.resnet import ResNet50
from xmcgan.training.build import build_networks
from xmcgan.training.state import create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils import mesh as meshes

# Sizes of encoders whose weights need not be here; those of another are read from its folder.
_TEXT_ENCODERS = {
    "minilm": bert.Bert(30522, 384, 6, 12, 1536, 512),
    "bert-base-uncased": bert.Bert(30522, 768, 12, 12, 3072, 512),
}
_WARM_UP, _TIMED = 3, 15  # steps of a measurement


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler says of one step; all figures are of one device.

    Attributes:
        arguments: Bytes of state, frozen parameters and batch.
        temporaries: Bytes beside them.
        flops: Of the step; 0 if the compiler does not say.
        accessed: Bytes that its operations read and write; 0 if the compiler does not say.
        seconds: By the compiler's own model of the chip; 0 if it has none.
        collectives: Of each kind how often, bytes held, bytes sent in a ring.
        compile_seconds: How long the compiler took.
        measured: Seconds per step as it ran; 0 if it did not.
    """

    arguments: int
    temporaries: int
    flops: float
    accessed: float
    seconds: float
    collectives: dict[str, tuple[int, float, float]]
    compile_seconds: float
    measured: float = 0.0

    @property
    def peak(self) -> int:
        """Bytes needed at once: the state is donated, so results take the arguments' place."""
        return self.arguments + self.temporaries


def compile_step(
    config: ConfigDict, target: Target, frozen: bool = True, measure: bool = False
) -> Program:
    """Compile the step as `xmcgan.train` does, for the devices of a target.

    Args:
        frozen: Whether text encoder and frozen image network are part of it.
        measure: Whether to run it; the target must be here.

    Raises:
        ConfigError: The batch does not fit the devices, or the text encoder's sizes are not known.
        TrainingError: The compiler refuses the program, for lack of memory for instance.
    """
    check_devices(config, len(target.devices))
    mesh = meshes.make_mesh(target.devices, config.mesh.fsdp)
    functions, frozen_shapes, width = _frozen_networks(config, frozen)
    losses = build_losses(config)
    frozen_shapes["losses"] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loss_params(losses)
    )
    networks, init = _networks(config, width)
    state = jax.eval_shape(init, jax.random.key(0))
    sharding, everywhere = meshes.state_sharding(mesh, state), meshes.replicated(mesh)
    train_step = make_train_step(networks, functions, losses, config)
    step = jax.jit(
        train_step,
        in_shardings=(sharding, everywhere, meshes.batch_sharding(mesh)),
        out_shardings=(sharding, everywhere),
        donate_argnums=0,
    )
    start = time.monotonic()
    inputs = state, frozen_shapes, batch_shapes(config)
    lowered = step.lower(*inputs)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise TrainingError(f"{target.name}: {str(error).splitlines()[0]}") from None
    memory: Any = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    counted = train_step if config.num_microbatches <= 1 else None  # a loop would count once
    held: dict[str, tuple[int, float, float]] = {}
    for each in find_collectives(compiled.as_text() or ""):
        times, size, sent = held.get(each.kind, (0, 0.0, 0.0))
        held[each.kind] = (
            times + each.times,
            size + each.times * each.num_bytes,
            sent + each.sent_bytes,
        )
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=flops_per_device(compiled, counted, inputs, len(target.devices)),
        accessed=cost.get("bytes accessed", 0.0),
        seconds=max(cost.get("optimal_seconds", 0.0), 0.0),
        collectives=held,
        compile_seconds=time.monotonic() - start,
        measured=_measure(compiled, init, frozen_shapes, config) if measure else 0.0,
    )


def state_shapes(config: ConfigDict) -> Any:
    """The training state of a config, as shapes alone."""
    _, init = _networks(config, _text_encoder(config).hidden_size)
    return jax.eval_shape(init, jax.random.key(0))


def _networks(config: ConfigDict, width: int) -> tuple[Any, Callable[[jax.Array], Any]]:
    """Networks with their optimizers, and the function that makes a state from a key."""
    networks = build_networks(config, width, num_steps=1)
    lengths: Any = {"max_tokens": config.text.max_tokens, "word_dim": width}
    return networks, partial(create_state, networks, sentence_dim=width, **lengths)


def _measure(
    step: Any, init: Callable[[jax.Array], Any], frozen_shapes: Any, config: ConfigDict
) -> float:
    """Median seconds of a step, on random parameters and images."""

    def draw(shape: jax.ShapeDtypeStruct) -> Any:
        if shape.dtype == jnp.bool:
            return np.ones(shape.shape, bool)
        if jnp.issubdtype(shape.dtype, jnp.integer):
            return rng.integers(0, 256, shape.shape, shape.dtype)
        return rng.normal(0, 0.02, shape.shape).astype(shape.dtype)

    rng = np.random.default_rng(0)
    state_sharding, frozen_sharding, batch_sharding = step.input_shardings[0]
    state = jax.jit(init, out_shardings=state_sharding)(jax.random.key(0))
    frozen = jax.device_put(jax.tree.map(draw, frozen_shapes), frozen_sharding)
    batch = jax.device_put(jax.tree.map(draw, batch_shapes(config)), batch_sharding)
    seconds = []
    for _ in range(_WARM_UP + _TIMED):
        start = time.monotonic()
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.monotonic() - start)
    return statistics.median(seconds[_WARM_UP:])


def batch_shapes(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a training batch (d_steps, b, ...)."""
    parts, tokens = (config.d_steps, config.batch_size), config.text.max_tokens
    return {
        "image": jax.ShapeDtypeStruct((*parts, *[config.image_size] * 2, 3), jnp.uint8),
        "token_ids": jax.ShapeDtypeStruct((*parts, tokens), jnp.int32),
        "word_mask": jax.ShapeDtypeStruct((*parts, tokens), jnp.bool),
    }


def _shapes(module: Any, *inputs: jax.ShapeDtypeStruct) -> Any:
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _frozen_networks(config: ConfigDict, frozen: bool) -> tuple[FrozenNetworks, Any, int]:
    """Frozen networks as functions, the shapes of their parameters, and the width of words."""
    dtype, pretrained = jnp.dtype(config.dtype), config.losses.image_pretrained
    text = _text_encoder(config).clone(dtype=dtype)
    tokens = [jax.ShapeDtypeStruct((1, 1), kind) for kind in (jnp.int32, jnp.bool)]
    shapes: dict[str, Any] = {"text": _shapes(text, *tokens), "image": None, "discriminator": {}}
    encode_text = partial(bert.encode, text, sentence_pooling=config.text.sentence_pooling)
    if not frozen:
        shapes["text"] = jax.ShapeDtypeStruct((1000, text.hidden_size), jnp.float32)
        encode_text = _look_up
        pretrained.enabled = False
    encode_image = None
    if pretrained.enabled:
        size = (1, pretrained.input_size, pretrained.input_size, 3)
        image = _image_network(pretrained.network, dtype, pretrained.feature)
        shapes["image"] = _shapes(image, jax.ShapeDtypeStruct(size, jnp.float32))
        encode_image = partial(_encode_image, image, size[1], pretrained.feature)
    if config.discriminator.type == "projected":
        side = trunk_size(config)
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        shapes["discriminator"] = {"trunk": _shapes(EfficientNetLite0Trunk(dtype), pixels)}
    return FrozenNetworks(encode_text, encode_image), shapes, text.hidden_size


def _image_network(name: str, dtype: Any, feature: str) -> Any:
    if name in vgg.DEPTHS:
        return vgg.VGG(vgg.DEPTHS[name], dtype, classify=feature != "pooled")
    return ResNet50(True, dtype) if name == "resnet50" else EfficientNetLite(dtype)


def _look_up(table: jax.Array, token_ids: jax.Array, mask: jax.Array) -> Any:
    """Words and sentences as if they were given."""
    words = table[token_ids]
    return words, jnp.mean(words, axis=1)


def _encode_image(
    network: Any, size: int, feature: str, params: Any, images: jax.Array
) -> jax.Array:
    resized = jax.image.resize(images, (len(images), size, size, 3), "bilinear")
    pooled, logits = network.apply({"params": params}, resized)
    return pooled if feature == "pooled" else logits


def _text_encoder(config: ConfigDict) -> bert.Bert:
    if known := _TEXT_ENCODERS.get(config.text.weights):
        return known
    file = Path(config.text.weights) / "config.json"
    if config.text.encoder != "bert" or not file.is_file():
        raise ConfigError(
            f"text.weights = {config.text.weights}: plans know the sizes of "
            f"{' and '.join(_TEXT_ENCODERS)}, and of a BERT whose config.json is in that folder"
        )
    return bert.read_config(file, jnp.float32)
