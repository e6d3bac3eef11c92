"""From images to the features of a protocol's network, over all devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

import xmcgan
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.batches import Batches, rebatch, run_batches, whole_batch_size
from xmcgan.evaluation.networks import load_network
from xmcgan.evaluation.protocols import Protocol, preprocess
from xmcgan.utils.mesh import put, replicated, sample_sharding


@dataclasses.dataclass(frozen=True)
class Features:
    """Hold what a network says of n images, in their order.

    Attributes:
        values: features (n, d), float32.
        logits: of its classes (n, k), float32; None where it does not classify.
    """

    values: Float[np.ndarray, "n d"]
    logits: Float[np.ndarray, "n k"] | None

    def __len__(self) -> int:
        return len(self.values)


class FeatureExtractor:
    """Make features in float32 at highest precision, the same on any number of devices.

    Args:
        protocol: network, resize and scaling.
        weights: path of the network's weights; the protocol's own where None.
        mesh: devices that share the work.
        batch_size: images at once, rounded up to a multiple of the devices; None fits
            the devices.
        allow_unverified: accept weights that are not the published file.

    Attributes:
        protocol: as given.
        recipe: how features are made: names, and the digest of the weights.

    Raises:
        EvaluationError: the protocol needs a path of weights.
        WeightsError: the weights are missing, damaged or not the published ones.
    """

    def __init__(
        self,
        protocol: Protocol,
        *,
        weights: str | None = None,
        mesh: Mesh,
        batch_size: int | None = None,
        allow_unverified: bool = False,
    ) -> None:
        network = load_network(protocol, weights, allow_unverified=allow_unverified)
        self.protocol = protocol
        self.recipe: dict[str, Any] = {
            "protocol": protocol.name,
            "network": protocol.network,
            "resize": f"{protocol.resize}, to {protocol.input_size}",
            "scaling": protocol.scaling,
            "weights_sha256": network.weights.sha256,
            "weights_verified": network.weights.verified,
            "package_version": xmcgan.__version__,
        }
        self._mesh, self._batch_size = mesh, whole_batch_size(mesh, batch_size)
        params = put(network.params, replicated(mesh))

        def extract(params: Any, images: Array) -> tuple[Array, Array]:
            with jax.default_matmul_precision("highest"):
                features, logits = network.apply(params, preprocess(protocol, images))
            return features.astype(jnp.float32), logits.astype(jnp.float32)

        compiled = jax.jit(extract, out_shardings=sample_sharding(mesh))
        self._extract = functools.partial(compiled, params)

    def __call__(self, batches: Batches, expected: int | None = None) -> Features:
        """Return the features of all images.

        Args:
            batches: images of one size, in batches of any sizes; drawn while devices work.
            expected: how many images there must be; not checked where None.

        Raises:
            EvaluationError: no images, another number than expected, images of several sizes, or
                a feature that is not finite.
        """
        values, logits, count = [], [], 0
        whole = rebatch(batches, self._batch_size)
        outputs = run_batches(self._extract, whole, self._batch_size, self._mesh)
        for batch_values, batch_logits in outputs:
            _check_finite(batch_values, batch_logits, count)
            values.append(batch_values)
            logits.append(batch_logits)
            count += len(batch_values)
        if expected is not None and count != expected:
            raise EvaluationError(f"{count} images came where {expected} were expected: no score")
        if not count:
            raise EvaluationError("there are no images to score")
        joined = np.concatenate(logits) if self.protocol.has_logits else None
        return Features(np.concatenate(values), joined)


def _check_finite(values: np.ndarray, logits: np.ndarray, start: int) -> None:
    finite = np.isfinite(values).all(axis=1) & np.isfinite(logits).all(axis=1)
    if not finite.all():
        index = start + int(np.argmin(finite))
        raise EvaluationError(
            f"the features of image {index} (counted from 0) are not finite: no score; the "
            "network's weights are damaged or not its own"
        )
