"""From images to the arrays that metrics compare: networks, checks, .npz files."""

import dataclasses
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

import xmcgan
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.protocols import FeatureProtocol, load_network, preprocess
from xmcgan.utils.files import atomic_file, writing
from xmcgan.utils.mesh import fetch, inference_batch_size, put, replicated, sample_sharding

Images = UInt8[np.ndarray, "n h w 3"]
Arrays = Mapping[str, np.ndarray]  # the first axis of each array is the images


@dataclasses.dataclass
class Networks:
    """How frozen networks run."""

    mesh: Mesh
    batch_size: int | None = None  # rounded up to a multiple of the devices; None fits them
    allow_unverified: bool = False  # accept weights that are not the published files
    weights: Mapping[str, str] = dataclasses.field(default_factory=dict)  # paths, by protocol


class FeatureExtractor:
    """Network of a protocol in float32 at highest precision, the same on any number of devices."""

    def __init__(self, protocol: FeatureProtocol, networks: Networks) -> None:
        weights, unverified = networks.weights.get(protocol.name), networks.allow_unverified
        network = load_network(protocol, weights, allow_unverified=unverified)
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

        def extract(params: Any, images: Array) -> dict[str, Array]:
            features, logits = network.apply(params, preprocess(protocol, images))
            return {"values": features.astype(jnp.float32), "logits": logits.astype(jnp.float32)}

        params = put(network.params, replicated(networks.mesh))
        self._run = BatchRunner(extract, params, networks)
        self.batch_size = self._run.batch_size

    def __call__(self, images: Images) -> dict[str, np.ndarray]:
        """Features `values` (n, d) and class logits `logits` (n, k)."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(f"images are not uint8 (n, h, w, 3): {images.dtype} {images.shape}")
        return self._run(images)


class BatchRunner:
    """Function (params, batch) -> arrays, over all devices and for any number of rows."""

    def __init__(self, function: Callable[[Any, Array], Any], params: Any, networks: Networks):
        mesh = networks.mesh
        self._function = jax.jit(function, out_shardings=sample_sharding(mesh))
        self._params, self._mesh = params, mesh
        size = networks.batch_size or inference_batch_size(mesh)
        self.batch_size = -(-size // mesh.size) * mesh.size

    def __call__(self, rows: np.ndarray) -> Any:
        """Outputs for all rows, as NumPy arrays."""
        parts, running = [], []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            padding = np.repeat(batch[-1:], self.batch_size - len(batch), axis=0)
            padded = put(np.concatenate([batch, padding]), sample_sharding(self._mesh))
            with jax.default_matmul_precision("highest"):
                running.append(self._function(self._params, padded))
            if len(running) == 2:  # devices work on this batch while the one before is fetched
                parts.append(jax.tree.map(fetch, running.pop(0)))
        parts += [jax.tree.map(fetch, outputs) for outputs in running]
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)


def require_images(real: np.ndarray, fake: np.ndarray, at_least: int = 2) -> None:
    """Raise EvaluationError if features are of too few images."""
    if min(len(real), len(fake)) < at_least:
        raise EvaluationError(
            f"this score needs at least {at_least} images on each side, not {len(real)} real and "
            f"{len(fake)} generated ones"
        )


def unit_rows(values: Float[np.ndarray, "n e"], name: str) -> Float[np.ndarray, "n e"]:
    """Rows scaled to length 1, in float64."""
    values = values.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    usable = (lengths > 0) & np.isfinite(lengths)
    if not usable.all():
        image = int(np.argmin(usable))
        raise EvaluationError(f"{name} of image {image} (from 0) are zero, or not finite")
    return values / lengths


def check_writable(path: Path) -> None:
    """Raise EvaluationError now, not after hours of work, if a file cannot be written."""
    if path.is_dir():
        raise EvaluationError(f"cannot write to {path}: it is a folder; name a file in it")
    with writing(path, EvaluationError), tempfile.TemporaryFile(dir=path.parent):
        pass


def save_npz(path: Path, arrays: Arrays) -> None:
    """Write named arrays, atomically."""
    with writing(path, EvaluationError), atomic_file(path) as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file; raises EvaluationError if it is missing, damaged, or holds objects."""
    try:
        # np.load alone would take a single array, or text, for something else.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # damaged archives and headers raise many types
        raise EvaluationError(f"{path} cannot be read as .npz: {error}") from None
