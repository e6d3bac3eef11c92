"""The losses: a registry, and their weighted sum.

A loss is a class with `discriminator(context)` and/or `generator(context)`, each returning a scalar
and a dict of metrics. Its constructor takes the fields of `config.losses.NAME`. A loss that reads
images or `context.discriminate` sets `needs_images = True`; it does not work with microbatches. One
that compares two images of a caption sets `needs_pairs = True` as well.
Frozen arrays in its attribute `params` are put on the devices once, and are `context.params`.
"""

import inspect
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.errors import ConfigError, did_you_mean
from xmcgan.losses.context import Context, Metrics
from xmcgan.utils.registry import find

REGISTRY = {
    "hinge": "xmcgan.losses.adversarial:Hinge",
    "sentence": "xmcgan.losses.contrastive:SentenceContrast",
    "word": "xmcgan.losses.contrastive:WordContrast",
    "image_discriminator": "xmcgan.losses.contrastive:ImageContrast",
    "image_pretrained": "xmcgan.losses.contrastive:PretrainedContrast",
    "diversity": "xmcgan.losses.diversity:Diversity",
}


class WeightedLoss(NamedTuple):
    loss: Any
    weight: float


def build_losses(config: Any) -> dict[str, WeightedLoss]:
    """Build the enabled losses of `config.losses` by name; a ConfigError names a wrong field."""
    losses = {}
    for name, fields in config.losses.items():
        fields = dict(fields)
        enabled, weight = fields.pop("enabled", True), fields.pop("weight", 1.0)
        if not enabled:
            continue
        loss_class = find(fields.pop("type", name), REGISTRY, "loss")
        known = inspect.signature(loss_class).parameters
        for field in fields:
            if field not in known:
                hint = did_you_mean(field, known)
                raise ConfigError(f"losses.{name} has no field {field!r}{hint}")
        if config.num_microbatches > 1 and getattr(loss_class, "needs_images", False):
            raise ConfigError(
                f"losses.{name} needs whole images and the discriminator: set num_microbatches=1"
            )
        losses[name] = WeightedLoss(loss_class(**fields), weight)
    return losses


def loss_params(losses: dict[str, WeightedLoss]) -> dict[str, Any]:
    """The frozen arrays of those losses that have any, by name."""
    found = {name: getattr(loss, "params", None) for name, (loss, _) in losses.items()}
    return {name: params for name, params in found.items() if params is not None}


def weighted_sum(
    losses: dict[str, WeightedLoss], side: Literal["discriminator", "generator"], context: Context
) -> tuple[Float[Array, ""], Metrics]:
    """Sum the losses of one side (paper, training algorithm); also return all metrics by name.

    `context.params` are those of all losses, by name; each one sees its own.
    """
    total, metrics = jnp.zeros(()), {}
    images = "real" if side == "discriminator" else "fake"
    for name, (loss, weight) in losses.items():
        if not hasattr(loss, side):
            continue
        own = context._replace(params=(context.params or {}).get(name))
        value, more = _checked(f"losses.{name}: {side}(context)", getattr(loss, side)(own))
        total = total + weight * value
        metrics[f"{side[0]}_{name}_loss"] = value
        metrics |= {f"{images}_{name}_{key}": metric for key, metric in more.items()}
    metrics[f"{side[0]}_loss"] = total
    return total, metrics


def _checked(source: str, result: Any) -> tuple[Float[Array, ""], Metrics]:
    is_pair = isinstance(result, tuple) and len(result) == 2
    if not is_pair or jnp.shape(result[0]) != () or not isinstance(result[1], dict):
        raise ConfigError(f"{source} must return a scalar and a dict of further scalars")
    return result
