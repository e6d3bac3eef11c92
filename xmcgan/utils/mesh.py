"""The device mesh, and how state and batches lie on it."""

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
_SMALLEST_SHARDED = 4096


def make_mesh(devices: Sequence[Any] | None = None, fsdp: int = 1) -> Mesh:
    """Put all devices of all processes on the axes `data` and `fsdp`.

    Args:
        devices: which; all of them by default.
        fsdp: how many neighbouring devices share one copy of the state; 1 gives each its own.

    Returns:
        A mesh whose axes are of type Auto: the compiler places what is not said. Devices stand in
        the order of their processes, so that each process feeds one slice of every batch.

    Raises:
        ConfigError: `fsdp` does not divide the devices, or processes have different numbers.
    """
    devices = jax.devices() if devices is None else devices
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
    """Return the sharding of frozen parameters and metrics: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a training batch (parts, n, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec(None, _BATCH))


def sample_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch to sample from (b, ...): images over devices."""
    return NamedSharding(mesh, PartitionSpec(_BATCH))


def state_sharding(mesh: Mesh, state: Any) -> Any:
    """Return where parameters, averages and optimiser state lie: split over the `fsdp` axis.

    The one rule: an array is split along its largest dimension that the axis divides, the last of
    equals; a small array, or one without such a dimension, is copied to every device.

    Args:
        mesh: the devices.
        state: a tree of arrays or of their shapes.

    Returns:
        A tree of shardings.
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        sizes = [(size, axis) for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not sizes or leaf.size < _SMALLEST_SHARDED:
            return replicated(mesh)
        _, axis = max(sizes)
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

    return jax.tree.map(place, state)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Place NumPy arrays that every process holds whole on the mesh, without waiting."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x), np.shape(x)),
        tree,
    )


def put_shares(tree: Any, sharding: NamedSharding) -> Any:
    """Join NumPy arrays of which every process holds its share, without waiting."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(array: Any) -> np.ndarray:
    """Return an array whole, in every process; all of them must ask for it."""
    is_split = isinstance(array, jax.Array) and not array.is_fully_replicated
    if not is_split or array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def inference_batch_size(mesh: Mesh) -> int:
    """Return how many images a frozen network takes at once.

    A CPU is fastest where the arrays of a batch stay in its caches, an accelerator where a batch
    fills it. A single CPU device shares two images among its cores; of several each takes one.
    """
    if _is_cpu(mesh):
        return max(mesh.size, 2)
    return 64 * mesh.size


def sampling_batch_size(mesh: Mesh) -> int:
    """Return how many images a generator draws at once, outside training.

    CPU devices share one memory, and the generator's maps are larger than a frozen network's.
    """
    return 16 if _is_cpu(mesh) else 16 * mesh.size


def _is_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"
