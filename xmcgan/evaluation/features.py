"""From images to the features of a protocol's network, over all devices."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

import xmcgan
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.networks import load_network
from xmcgan.evaluation.protocols import Protocol, preprocess
from xmcgan.mesh import inference_batch_size, put, replicated, sample_sharding

Batches = Iterable[UInt8[np.ndarray, "b h w 3"]]


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
        batch_size = batch_size or inference_batch_size(mesh)
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = sample_sharding(mesh)
        self._params = put(network.params, replicated(mesh))

        def extract(params: Any, images: Array) -> tuple[Array, Array]:
            with jax.default_matmul_precision("highest"):
                features, logits = network.apply(params, preprocess(protocol, images))
            return features.astype(jnp.float32), logits.astype(jnp.float32)

        self._extract = jax.jit(extract, out_shardings=self._sharding)

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
        for batch_values, batch_logits in self._outputs(batches):
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

    def _outputs(self, batches: Batches) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield features and logits of whole batches, without the padding."""
        running = None
        for images in rebatch(batches, self._batch_size):
            padding = np.repeat(images[-1:], self._batch_size - len(images), axis=0)
            padded = put(np.concatenate([images, padding]), self._sharding)
            # Devices work on this batch while the one before is fetched and the next is decoded.
            started = self._extract(self._params, padded), len(images)
            if running is not None:
                yield _fetch(*running)
            running = started
        if running is not None:
            yield _fetch(*running)


def _fetch(outputs: tuple[Array, Array], count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(outputs[0])[:count], np.asarray(outputs[1])[:count]


def _check_finite(values: np.ndarray, logits: np.ndarray, start: int) -> None:
    finite = np.isfinite(values).all(axis=1) & np.isfinite(logits).all(axis=1)
    if not finite.all():
        index = start + int(np.argmin(finite))
        raise EvaluationError(
            f"the features of image {index} (counted from 0) are not finite: no score; the "
            "network's weights are damaged or not its own"
        )


def rebatch(batches: Batches, size: int) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """Yield the images of any batches in batches of `size`, the last one shorter.

    Raises:
        EvaluationError: images of several sizes.
        ValueError: something other than uint8 images.
    """
    held: list[np.ndarray] = []
    shape, num_held, num_seen = None, 0, 0
    for batch in batches:
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[3] != 3:
            raise ValueError(f"images must be uint8 (b, h, w, 3), not {batch.dtype} {batch.shape}")
        shape = shape or batch.shape[1:3]
        if batch.shape[1:3] != shape:
            raise EvaluationError(
                f"image {num_seen} (counted from 0) is {batch.shape[1]} x {batch.shape[2]} where "
                f"those before are {shape[0]} x {shape[1]}: the images of one set have one size"
            )
        num_seen += len(batch)
        held.append(batch)
        num_held += len(batch)
        if num_held >= size:
            joined = np.concatenate(held) if len(held) > 1 else held[0]
            whole = num_held - num_held % size
            for start in range(0, whole, size):
                yield joined[start : start + size]
            held, num_held = [joined[whole:]], num_held - whole
    if num_held:
        yield np.concatenate(held)
