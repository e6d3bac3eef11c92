"""The device mesh, and how state and batches are sharded over it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmcgan.errors import ConfigError

_BATCH = ("data", "fsdp")  # images are spread over both axes
# Elements below which an array is not worth gathering: biases, batch statistics, vectors.
_MIN_SHARDED_SIZE = 4096


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
    """Create the mesh of all devices; `fsdp` neighboring ones share one copy of the state."""
    devices = jax.devices() if devices is None else devices
    # In the order of the processes: each feeds one slice of a batch.
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{i}: {n}" for i, n in sorted(counts.items()))
        raise ConfigError(f"processes have different numbers of devices ({listed})")
    if len(devices) % fsdp:
        raise ConfigError(f"mesh.fsdp = {fsdp} does not divide the {len(devices)} devices")
    grid = np.array(devices).reshape(-1, fsdp)
    return Mesh(grid, _BATCH, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of frozen parameters and metrics: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a training batch (d_steps, b, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec(None, _BATCH))


def sample_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch to sample from (b, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec(_BATCH))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Shardings of parameters, averages and optimizer state, split over the `fsdp` axis.

    One rule: an array is split along its largest dimension that the axis divides, the last of
    equals; a small array, or one without such a dimension, is replicated.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        sizes = [(size, axis) for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not sizes or leaf.size < _MIN_SHARDED_SIZE:
            return replicated(mesh)
        _, axis = max(sizes)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(place, state)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Place NumPy arrays that every process holds whole on the mesh, without blocking."""
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: place(sharding, np.asarray(x), np.shape(x)), tree)


def put_shares(tree: Any, sharding: NamedSharding) -> Any:
    """Join NumPy arrays of which every process holds its share, without blocking."""
    place = jax.make_array_from_process_local_data
    return jax.tree.map(lambda x: place(sharding, np.asarray(x)), tree)


def fetch(array: Any) -> np.ndarray:
    """Return a whole array in every process; all of them must call it."""
    is_split = isinstance(array, jax.Array) and not array.is_fully_replicated
    if not is_split or array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def inference_batch_size(mesh: Mesh) -> int:
    """Images that a frozen network takes at once."""
    # A CPU is fastest if the arrays of a batch stay in its caches, an accelerator if a batch fills
    # it. A single CPU device shares two images among its cores; of several each takes one.
    return max(mesh.size, 2) if _is_cpu(mesh) else 64 * mesh.size


def sampling_batch_size(mesh: Mesh) -> int:
    """Images that a generator samples at once, outside training."""
    # CPU devices share one memory, and the generator's maps are larger than a frozen network's.
    return 16 if _is_cpu(mesh) else 16 * mesh.size


def _is_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"
