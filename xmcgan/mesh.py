"""The device mesh, and how state and batches lie on it."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Put all devices on one `data` axis.

    Args:
        devices: which; all of them by default.

    Returns:
        A mesh whose axis is of type Auto: the compiler places what is not said.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of the state and of frozen parameters: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a training batch (d_steps, b, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec(None, "data"))


def sample_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch to sample from (b, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Place a tree of this process's NumPy arrays on the mesh, without waiting for the copy."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def inference_batch_size(mesh: Mesh) -> int:
    """Return how many images a frozen network takes at once.

    A CPU is fastest where the arrays of a batch stay in its caches, an accelerator where a batch
    fills it.
    """
    return mesh.size * (2 if mesh.devices.flat[0].platform == "cpu" else 64)
