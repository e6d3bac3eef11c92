"""What a checkpoint says about itself: position, fingerprint, and a digest of every array.

Orbax restores flipped bytes without a word and casts types silently, so the names, shapes, types
and digests of all arrays are written beside them, in the same commit, and compared on the way back.
"""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from xmcgan.utils.mesh import fetch

PyTree = Any
JSON = Any

RECORD_ITEM = "record"
_FILE = "record.json"


@dataclasses.dataclass(frozen=True)
class Record:
    """What is stored beside the arrays of a step.

    Attributes:
        step: the training step it was saved after.
        extra: what the caller stored with the state, for example the position in the data.
        fingerprint: the choices that a run must not change on its way.
        leaves: for each array of the state its `{"shape", "dtype", "digest"}`.
    """

    step: int
    extra: dict[str, JSON]
    fingerprint: dict[str, JSON]
    leaves: dict[str, dict[str, JSON]]


def read_record(step_dir: Path) -> Record:
    """Read the record of a step's folder.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is missing or damaged.
    """
    path = step_dir / RECORD_ITEM / _FILE
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.pop("digest") != _digest(_canonical(stored)):
        raise ValueError(f"{path} was changed after it was written")
    return Record(**stored)


def plain_json(values: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return the values as JSON gives them back: tuples become lists, keys strings."""
    return json.loads(json.dumps(dict(values)))


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, such as `g_params/dense/kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def structure_differences(record: Record, wanted: Mapping[str, Any]) -> list[str]:
    """Return one line for each array whose name, shape or type is not as wanted.

    Args:
        record: of the stored step.
        wanted: arrays or shapes by name, see `named_leaves`.
    """
    stored = {name: _kind(leaf["shape"], leaf["dtype"]) for name, leaf in record.leaves.items()}
    now = {name: _kind(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    return [
        f"{name}: {stored.get(name, 'absent')} -> {now.get(name, 'absent')}"
        for name in sorted(stored.keys() | now.keys())
        if stored.get(name) != now.get(name)
    ]


def damaged_leaves(record: Record, leaves: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays whose bytes are not those that were saved."""
    return [name for name, leaf in leaves.items() if _describe(fetch(leaf)) != record.leaves[name]]


class RecordHandler(ocp.AsyncCheckpointHandler):
    """Write the record as an item of an Orbax step, complete or absent together with it."""

    async def async_save(self, directory: Any, args: "RecordSave") -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Digest the arrays and write the record, in the background."""
        work = _write(Path(directory), args)
        return [future.CommitFutureAwaitingContractedSignals(work, name=RECORD_ITEM)]

    def save(self, directory: Any, args: "RecordSave") -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do the same at once."""
        asyncio.run(_write(Path(directory), args))

    def restore(self, directory: Any, args: "RecordRestore | None" = None) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read the record back."""
        return read_record(Path(directory).parent)


@ocp.args.register_with_handler(RecordHandler, for_save=True)
@dataclasses.dataclass
class RecordSave(ocp.args.CheckpointArgs):
    """What `RecordHandler` writes.

    Attributes:
        record: with its `leaves` still empty.
        leaves: the arrays to describe, by name.
    """

    record: Record
    leaves: Mapping[str, np.ndarray]


@ocp.args.register_with_handler(RecordHandler, for_restore=True)
@dataclasses.dataclass
class RecordRestore(ocp.args.CheckpointArgs):
    """Ask for the record back; Orbax wants such a class for every handler."""


async def _write(directory: Path, args: RecordSave) -> None:
    if jax.process_index() != 0:
        return
    leaves = {name: _describe(leaf) for name, leaf in args.leaves.items()}
    stored = dataclasses.asdict(dataclasses.replace(args.record, leaves=leaves))
    stored["digest"] = _digest(_canonical(stored))
    (directory / _FILE).write_text(json.dumps(stored, indent=1), encoding="utf-8")


def _describe(leaf: np.ndarray) -> dict[str, JSON]:
    data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": _digest(data)}


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def _canonical(stored: Mapping[str, JSON]) -> bytes:
    return json.dumps(stored, sort_keys=True).encode()


def _kind(shape: Any, dtype: Any) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"
