"""Batches of one size from batches of any, and a network's outputs of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from xmcgan.errors import EvaluationError
from xmcgan.utils.mesh import fetch, inference_batch_size, put, sample_sharding

Batches = Iterable[UInt8[np.ndarray, "b h w 3"]]


def whole_batch_size(mesh: Mesh, batch_size: int | None) -> int:
    """Return a size of batch that all devices share evenly.

    Args:
        mesh: the devices.
        batch_size: rows at once, rounded up to a multiple of the devices; None fits the devices.
    """
    return -(-(batch_size or inference_batch_size(mesh)) // mesh.size) * mesh.size


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


def run_batches(
    run: Callable[[Array], Any], batches: Iterable[np.ndarray], size: int, mesh: Mesh
) -> Iterator[Any]:
    """Yield what a network gives for each batch.

    Args:
        run: from a batch (size, ...), spread over the devices, to one or several arrays of as many
            rows; does not wait for them.
        batches: of at most `size` rows, drawn while the devices work.
        size: a multiple of the number of devices; shorter batches are padded to it.
        mesh: the devices.

    Yields:
        The arrays as NumPy's, without the padding.
    """
    running = None
    for rows in batches:
        padding = np.repeat(rows[-1:], size - len(rows), axis=0)
        padded = put(np.concatenate([rows, padding]), sample_sharding(mesh))
        # Devices work on this batch while the one before is fetched and the next is decoded.
        started = run(padded), len(rows)
        if running is not None:
            yield _fetch(*running)
        running = started
    if running is not None:
        yield _fetch(*running)


def _fetch(outputs: Any, count: int) -> Any:
    return jax.tree.map(lambda x: fetch(x)[:count], outputs)
