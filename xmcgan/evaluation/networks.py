"""From a protocol to its frozen network, with the identity of the weights in it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.protocols import Protocol
from xmcgan.pretrained.efficientnet_lite import LITE0, LITE2, load_efficientnet_lite
from xmcgan.pretrained.inception import PUBLISHED_MD5, PUBLISHED_SHA256, load_inception
from xmcgan.pretrained.weights import SOURCES, FileIdentity, find_file, identify_file, resolve


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """Hold a frozen network.

    Attributes:
        apply: (params, what `preprocess` gives) -> features (b, d) and logits (b, k), float32.
        params: NumPy arrays.
        weights: which file they came from.
    """

    apply: Callable[[Any, Float[Array, "b s s 3"]], tuple[Array, Array]]
    params: Any
    weights: FileIdentity


# Digest of the published file that everybody scores with, by the network that it holds.
_PUBLISHED: dict[str, str] = {
    "inception-2015": PUBLISHED_SHA256,
    "inception-keras": PUBLISHED_MD5,
    "efficientnet_lite0": SOURCES["efficientnet_lite0"].members[0].sha256,
    "efficientnet_lite2": SOURCES["efficientnet_lite2"].members[0].sha256,
}


def load_network(
    protocol: Protocol, weights: str | None = None, *, allow_unverified: bool = False
) -> FeatureNetwork:
    """Load the network of a protocol, after checking which file of weights it is.

    Args:
        protocol: says which network.
        weights: path of a file, or of the directory that holds it; the protocol's own where None.
        allow_unverified: accept another file than the published one.

    Raises:
        EvaluationError: the protocol has no weights of its own, and none were given.
        WeightsError: the file is missing, not the published one, damaged or of another network.
    """
    weights = weights or protocol.default_weights
    if weights is None:
        raise EvaluationError(
            f"the protocol {protocol.name} has no weights of its own: give the published file with "
            "--weights (docs/evaluation.md says where it is from), or use fd-effnet-lite2"
        )
    path = find_file(resolve(weights), protocol.network)
    published = _PUBLISHED[protocol.network]
    identity = identify_file(path, [published], allow_unverified=allow_unverified)
    if protocol.network.startswith("efficientnet"):
        scale = LITE0 if protocol.network == "efficientnet_lite0" else LITE2
        module, params = load_efficientnet_lite(path, scale)
    else:
        variant = "2015" if protocol.network == "inception-2015" else "keras"
        module, params = load_inception(variant, path)

    def apply(params: Any, images: Array) -> tuple[Array, Array]:
        features, logits = module.apply({"params": params}, images)
        return jnp.asarray(features), jnp.asarray(logits)

    return FeatureNetwork(apply, params, identity)
