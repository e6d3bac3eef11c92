"""From a config to its networks, encoders and tokenizer."""

import dataclasses
import inspect
import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from xmcgan.config import default_config, trunk_size
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import ConfigError, did_you_mean
from xmcgan.models import DISCRIMINATORS, GENERATORS
from xmcgan.pretrained import efficientnet_lite, encoders
from xmcgan.pretrained.weights import is_there, resolve
from xmcgan.training.state import Networks, TrainState
from xmcgan.utils.registry import find


def build_generator(config: ConfigDict) -> Any:
    return _build_network(config, "generator", GENERATORS, {})


def build_networks(config: ConfigDict, word_dim: int, num_steps: int = 0) -> Networks:
    """Build both networks of a config and their optimizers; `num_steps` is the run's length."""
    shared: dict[str, Any] = {"region_dim": word_dim}  # regions are compared with words
    if config.discriminator.type == "projected":
        trunk = efficientnet_lite.EfficientNetLite0Trunk(jnp.dtype(config.dtype))
        shared |= {"trunk": trunk, "trunk_size": trunk_size(config)}
    return Networks(
        build_generator(config),
        _build_network(config, "discriminator", DISCRIMINATORS, shared),
        g_optimizer=_optimizer(config, "generator", num_steps, 1),
        d_optimizer=_optimizer(config, "discriminator", num_steps, config.d_steps),
    )


def _optimizer(
    config: ConfigDict, section: str, num_steps: int, updates_per_step: int
) -> optax.GradientTransformation:
    rate = config[section].learning_rate
    if config.learning_rate_decay:
        num_updates = num_steps * updates_per_step
        last = round(config.learning_rate_decay * num_updates)
        rate = optax.linear_schedule(rate, 0.0, last, num_updates - last)
    if config.schedule.type:
        factor = _from_optax(config, "schedule", optax.schedules, {
            "value": 1.0, "init_value": 1.0, "peak_value": 1.0, "end_value": 0.0,
            "decay_steps": num_steps, "transition_steps": num_steps,
        })  # fmt: skip
        rate = partial(_scaled, config[section].learning_rate, factor, updates_per_step)
    optimizer = optax.adam(rate, **config.adam)
    if config.clip.type:  # the state of a run without it stays as it was
        optimizer = optax.chain(_from_optax(config, "clip", optax, {}), optimizer)
    if not config.freeze:
        return optimizer
    try:
        re.compile(config.freeze)
    except re.error as error:
        raise ConfigError(f"freeze = {config.freeze}: {error}") from None
    frozen = partial(jax.tree_util.tree_map_with_path, partial(_is_frozen, config.freeze, section))
    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), frozen))


def _scaled(rate: float, factor: optax.Schedule, updates_per_step: int, update: Any) -> Any:
    return rate * factor(update // updates_per_step)


def _from_optax(config: ConfigDict, section: str, module: Any, defaults: dict[str, Any]) -> Any:
    """Call the function of optax that `config.SECTION.type` names with the section's fields.

    Raises:
        ConfigError: No such function, or fields that do not fit it.
    """
    fields = config[section].to_dict()
    name = fields.pop("type")
    kinds = {"schedule": _schedules, "clip": _clips}
    known = [n for n in dir(module) if n[0] != "_" and kinds[section](n)]
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"{section}.type = {name} is none of optax: {', '.join(known)}{hint}")
    function = getattr(module, name)
    parameters = inspect.signature(function).parameters
    required = {n for n, p in parameters.items() if p.default is inspect.Parameter.empty}
    if "warmup_steps" in parameters:
        defaults = defaults | {"init_value": 0.0}
    fields = {n: defaults[n] for n in required if n in defaults} | fields
    for n, value in fields.items():
        if isinstance(value, dict):  # steps as JSON has them
            fields[n] = {int(step): factor for step, factor in value.items()}
    missing, extra = required - fields.keys(), fields.keys() - parameters.keys()
    if missing or extra:
        what = f"lacks {', '.join(sorted(missing))}" if missing else f"has no {min(extra)}"
        raise ConfigError(f"{section}: {name} {what}; it takes {', '.join(parameters)}")
    try:
        return function(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{section}: {name}: {error}") from None


def _schedules(name: str) -> bool:
    return name.endswith(("_schedule", "_decay"))


def _clips(name: str) -> bool:
    return name in ("clip", "adaptive_grad_clip") or name.startswith("clip_by_")


def _is_frozen(pattern: str, network: str, path: Any, _: Any) -> bool:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return bool(re.search(pattern, f"{network}/{name}"))


def check_freeze(config: ConfigDict, shapes: TrainState) -> None:
    """Raise ConfigError if `freeze` matches no parameter, or all."""
    if not config.freeze:
        return
    networks = {"generator": shapes.g_params, "discriminator": shapes.d_params}
    found = [
        _is_frozen(config.freeze, network, path, None)
        for network, params in networks.items()
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    if not any(found) or all(found):
        raise ConfigError(
            f"freeze = {config.freeze} matches {'every' if all(found) else 'no'} parameter; names "
            "are such as generator/block_0/conv_1/kernel"
        )


def _build_network(config: ConfigDict, section: str, registry: Any, shared: Any) -> Any:
    own = dict(config[section])
    network = find(own.pop("type"), registry, section)
    known = {field.name for field in dataclasses.fields(network)} - {"parent", "name"}
    shared = shared | {
        "image_size": config.image_size,
        "region_size": config.region_size,
        "condition_size": config.region_size,
        "batch_norm_group_size": config.batch_norm_group_size,
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
    }
    # Fields of the default networks that another one lacks are left out; its own must exist.
    for name in own.keys() - known - set(default_config()[section]):
        raise ConfigError(f"{section}.{name} is no field of {config[section].type}")
    fields = {name: value for name, value in (own | shared).items() if name in known}
    return network(**fields)


def load_discriminator_trunk(config: ConfigDict) -> dict[str, Any]:
    """Load the frozen parameters of a config's discriminator, by the name of the submodule."""
    if config.discriminator.type != "projected":
        return {}
    _, params = efficientnet_lite.load_efficientnet_lite0(resolve(config.discriminator.trunk))
    return {"trunk": efficientnet_lite.trunk_params(params)}


def build_text_encoder(config: ConfigDict) -> tuple[encoders.TextEncoder, Tokenizer]:
    text = encoders.load_text_encoder(
        resolve(config.text.weights),
        config.text.encoder,
        sentence_pooling=config.text.sentence_pooling,
        dtype=jnp.dtype(config.dtype),
    )
    if config.text.max_tokens > text.max_tokens:
        raise ConfigError(
            f"text.max_tokens = {config.text.max_tokens} is more than the {text.max_tokens} "
            f"that {config.text.weights} can read"
        )
    return text, Tokenizer(text.vocab_file, config.text.max_tokens)


def replace_missing_image_network(config: ConfigDict) -> None:
    """Replace the official ResNet-50 by EfficientNet-Lite0 if its weights are not there."""
    loss = config.losses.image_pretrained
    is_official = loss.network == "resnet50" and not loss.weights
    if loss.enabled and is_official and not is_there("resnet50"):
        loss.in_place_of = loss.network  # as config.json, report and recipe say
        loss.network, loss.feature = "efficientnet_lite0", "pooled"


def build_image_encoder(config: ConfigDict) -> encoders.ImageEncoder | None:
    """Load the frozen image network of a config, or return None if its loss is off."""
    loss = config.losses.image_pretrained
    if not loss.enabled:
        return None
    if not loss.weights and ":" in loss.network:
        raise ConfigError(
            f"losses.image_pretrained.weights is empty: give the path of {loss.network}'s weights"
        )
    return encoders.load_image_encoder(
        loss.network,
        resolve(loss.weights or loss.network),
        input_size=loss.input_size,
        feature=loss.feature,
        dtype=jnp.dtype(config.dtype),
    )
