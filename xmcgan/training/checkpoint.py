"""Checkpoints: written by Orbax in the background, verified on restore, owned by one run.

    checkpoints/STEP/state         arrays; every process writes those on its devices
    checkpoints/STEP/record        position in the data, fingerprint, and SHA-256 of every array
    checkpoints/newest             the last step saved, so that its loss is noticed
    checkpoints/pins/STEP.REASON   keeps a step from being removed
    checkpoints/set-aside-STEP     a step of a branch that `restore_step` abandoned

A step is complete or absent: Orbax renames it into place, in a bucket it writes `_COMMITTED` last.
Process 0 alone renames and removes.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

import xmcgan
from xmcgan.errors import CheckpointError, listed
from xmcgan.utils.distributed import all_gather_json, is_host0
from xmcgan.utils.files import (
    absolute,
    clear_leftovers,
    errors_of_bucket,
    is_in_bucket,
    lock_folder,
    remove_tree,
    write_text,
)
from xmcgan.utils.mesh import fetch
from xmcgan.utils.provenance import fingerprint_differences

PyTree = Any
JSON = Any
_TEMPORARY = ".orbax-checkpoint-tmp"  # Orbax's suffix of an incomplete step
_COMMITTED = "commit_success.txt"


@dataclasses.dataclass(frozen=True)
class Record:
    """Description of a checkpoint, stored beside its arrays."""

    step: int
    extra: dict[str, JSON]  # whatever the caller of `save` needs to resume
    fingerprint: dict[str, JSON]  # choices that a run must not change when it is resumed
    leaves: dict[str, dict[str, JSON]]  # {"shape", "dtype", "digest"} by path of the array
    version: str = "0.1.0"  # of xmcgan; 0.1.0 stored none


class Checkpointer(contextlib.AbstractContextManager):
    """Saves and restores the state of a run; the caller holds `lock_workdir`.

    Keeps the newest `keep` steps and the pinned ones, plus one more until the next save begins.
    `fingerprint` holds JSON values that must be equal when the run is resumed.
    """

    def __init__(self, directory: Path, *, keep: int, fingerprint: Mapping[str, JSON]) -> None:
        self._directory = absolute(directory)
        if is_host0():
            self._directory.mkdir(parents=True, exist_ok=True)
            for leftover in _incomplete(self._directory):
                remove_tree(leftover)
            clear_leftovers(self._directory)
        all_gather_json("cleared")
        self._fingerprint, self._keep = _plain_json(fingerprint), keep
        self._saving: int | None = None
        # Not Orbax's CheckpointManager: its preservation policies decide before they delete, and
        # an evaluation may pin a step in between. Removal here holds the lock of the pins.
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                state=ocp.StandardCheckpointHandler(),
                record=ocp.JsonCheckpointHandler("record.json"),
            )
        )

    def __exit__(self, kind: Any, error_of_block: BaseException | None, traceback: Any) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if error_of_block is None:
                raise
            logging.error("%s", error)  # The error that ended the block is the one to raise.
        finally:
            self._checkpointer.close()

    def latest_step(self) -> int | None:
        """Return the newest complete step, None if none was ever saved; refuse if one is gone."""
        # As process 0 sees it: on a network file system others may see it later.
        steps, newest = all_gather_json([committed_steps(self._directory), self._read_newest()])[0]
        if newest > max(steps, default=-1):
            raise CheckpointError(
                f"step {newest} was saved in {self._directory} and is gone. {_way_back(steps)}"
            )
        return max(steps, default=None)

    def save(self, step: int, state: PyTree, extra: Mapping[str, JSON]) -> None:
        """Copy `state`, a tree of plain arrays, to the host and write it in the background.

        The arrays may be donated as soon as this returns. Complete steps from `step` on, which a
        run restored from an older one leaves behind, are renamed to `set-aside-STEP`.
        """
        self.wait()
        self._set_aside_from(step)
        leaves, structure = jax.tree.flatten(jax.tree.map(fetch, state))
        with ThreadPoolExecutor() as pool:  # NumPy and hashlib release the interpreter's lock
            # Copies: on a CPU a fetched array shares memory with a buffer that may be donated.
            copies = [*pool.map(lambda leaf: np.array(leaf, copy=True), leaves)]
            descriptions = dict(zip(named_leaves(state), pool.map(_describe, copies), strict=True))
        record = dataclasses.asdict(
            Record(step, _plain_json(extra), self._fingerprint, descriptions, xmcgan.__version__)
        )
        saved = jax.tree.unflatten(structure, copies)
        if jax.process_count() > 1:
            saved = jax.tree.map(jnp.copy, state)  # every process writes its own shards
        self._saving = step
        with self._wrap_save_errors():
            self._checkpointer.save(
                self._directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(saved),
                    record=ocp.args.JsonSave(record | {"digest": _json_digest(record)}),
                ),
            )

    def wait(self) -> None:
        """Wait for the save in progress, then remove old steps; if it failed, they stay."""
        with self._wrap_save_errors():
            self._checkpointer.wait_until_finished()
        if self._saving is not None and is_host0():
            write_text(self._directory / "newest", str(self._saving))
            remove_old(self._directory, self._keep)
        self._saving = None

    def restore(
        self, step: int, abstract_state: PyTree, *, allow_mismatch: bool = False
    ) -> tuple[PyTree, dict[str, JSON]]:
        """Return the state of a step and the `extra` it was saved with.

        Leaves of `abstract_state` have the sharding to restore to, on any number of devices. A step
        that is damaged or has other arrays or (unless `allow_mismatch`) choices is refused.
        """
        self.wait()
        record = read_record(self._directory, step)
        if not allow_mismatch:
            self._refuse(
                record,
                fingerprint_differences(record.fingerprint, self._fingerprint),
                "is of another configuration (field: stored -> now)",
                ", or pass --config.allow_mismatch=true to resume it anyway",
            )
        wanted = named_leaves(abstract_state)
        # Compared here, because Orbax casts dtypes silently.
        stored = {name: f"{leaf['dtype']}{leaf['shape']}" for name, leaf in record.leaves.items()}
        now = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
        changes = fingerprint_differences(stored, now)
        self._refuse(record, changes, "is of another architecture (array: stored -> now)")
        # Orbax would place such an array where it was saved from, without a word.
        if unplaced := [n for n, leaf in wanted.items() if getattr(leaf, "sharding", None) is None]:
            raise ValueError(f"abstract_state has no sharding for {unplaced[0]}")
        placement = ocp.checkpoint_utils.construct_restore_args(abstract_state)
        request = ocp.args.PyTreeRestore(abstract_state, restore_args=placement)
        return _restore_arrays(self._directory, record, lambda stored: request), record.extra

    def _refuse(self, record: Record, changes: list[str], what: str, way_out: str = "") -> None:
        if changes:
            raise CheckpointError(
                f"step {record.step} in {self._directory}, written by xmcgan {record.version}, "
                f"{what}:{listed(changes)}\n"
                "Set the configuration (or the version of xmcgan) back to resume it, or give "
                f"another --workdir for a new run{way_out}."
            )

    def _set_aside_from(self, step: int) -> None:
        steps = all_gather_json(committed_steps(self._directory))[0]
        abandoned = [other for other in steps if other >= step]
        if not abandoned or not is_host0():
            return
        # Before they move: a run killed in between must not take them for lost.
        remaining = max(set(steps) - set(abandoned), default=-1)
        write_text(self._directory / "newest", str(remaining))
        for other in abandoned:
            path, target = self._directory / str(other), self._directory / f"set-aside-{other}"
            remove_tree(target)
            if is_in_bucket(path):  # moved file by file
                _hide(path).rename(target)
                (target / _COMMITTED).touch()
            else:
                path.rename(target)
            logging.warning("step %d belongs to an abandoned branch; moved to %s", other, target)

    def _read_newest(self) -> int:
        try:
            return int((self._directory / "newest").read_bytes())
        except (OSError, ValueError):  # nothing saved yet, or the note itself is damaged
            return -1

    @contextlib.contextmanager
    def _wrap_save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            step, self._saving = self._saving, None
            raise CheckpointError(
                f"step {step} could not be saved in {self._directory}: {_brief(error)}\n"
                "Is the disk full or read-only? Complete steps: "
                f"{_steps_in_words(committed_steps(self._directory))}."
            ) from error


def committed_steps(directory: Path) -> list[int]:
    """Return the complete steps of a checkpoint directory, oldest first."""
    if is_in_bucket(directory):
        with errors_of_bucket(directory):
            names = [path.parent.name for path in directory.glob(f"*/{_COMMITTED}")]
    else:
        names = [path.name for path in directory.glob("*")]
    return sorted(int(name) for name in names if name.isdigit())


def _incomplete(directory: Path) -> list[Path]:
    """Return what killed saves and removals left."""
    if not is_in_bucket(directory):
        return list(directory.glob(f"*{_TEMPORARY}*"))
    complete = {str(step) for step in committed_steps(directory)}
    numbered = (path for path in directory.glob("*") if path.name.isdigit())
    return [path for path in numbered if path.name not in complete]


def _hide(path: Path) -> Path:
    """Make a step incomplete before it is removed, so that nobody sees half of it."""
    if is_in_bucket(path):
        (path / _COMMITTED).unlink()
        return path
    return path.rename(f"{path}{_TEMPORARY}-removed")


def read_record(directory: Path, step: int) -> Record:
    """Read the description of a step; raises CheckpointError if it is missing or damaged."""
    if step not in (steps := committed_steps(directory)):
        there = _steps_in_words(steps)
        raise CheckpointError(f"{directory} has no checkpoint of step {step}; it has {there}")
    with _wrap_restore_errors(directory, step):
        path = directory / str(step) / "record" / "record.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("digest") != _json_digest(stored):
            raise ValueError(f"{path} was changed after it was written")
        return Record(**stored)


def checkpoint_digest(directory: Path, step: int) -> str:
    """Return a digest of all arrays, which tells apart checkpoints of the same step."""
    return _json_digest(read_record(directory, step).leaves)[:16]


def restore_subtree(
    directory: Path, step: int, keys: Sequence[str], optional: Collection[str] = ()
) -> dict[str, PyTree]:
    """Read top-level fields of a saved state as NumPy arrays in nested dictionaries.

    Fields in `optional` are left out if they hold no array: a generator may have no statistics.
    """
    record = read_record(directory, step)
    fields = {name.split("/")[0] for name in record.leaves}
    keys = [key for key in keys if key in fields or key not in optional]
    if missing := sorted(set(keys) - fields):
        raise CheckpointError(
            f"step {step} in {directory} has no {', '.join(missing)}; "
            f"it has {', '.join(sorted(fields))}"
        )

    def request(stored: Any) -> ocp.args.PyTreeRestore:
        wanted = {key: stored[key] for key in keys}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        return ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)

    return _restore_arrays(directory, record, request)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their paths, such as `g_params/dense/kernel`."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def pin(directory: Path, step: int, reason: str) -> bool:
    """Keep a step, for a reason such as "evaluation", until it is unpinned; False if it is gone."""
    if step in pinned_steps(directory, reason):
        return step in committed_steps(directory)
    # A file, so that it outlives a killed evaluation.
    with lock_folder(directory / "pins", CheckpointError):
        if step not in committed_steps(directory):
            return False
        (directory / "pins" / f"{step}.{reason}").touch()
        return True


def unpin(directory: Path, step: int, reason: str) -> None:
    (directory / "pins" / f"{step}.{reason}").unlink(missing_ok=True)


def pinned_steps(directory: Path, reason: str = "*") -> set[int]:
    """Return the steps that are pinned, by default for any reason."""
    paths = (directory / "pins").glob(f"[0-9]*.{reason}")
    return {int(path.name.partition(".")[0]) for path in paths}


def remove_old(directory: Path, keep: int) -> None:
    """Remove all steps but the newest `keep` and the pinned ones."""
    with lock_folder(directory / "pins", CheckpointError):
        old = {*committed_steps(directory)[:-keep]} - pinned_steps(directory)
        doomed = [_hide(directory / str(step)) for step in old]
    for path in doomed:
        remove_tree(path)


def _restore_arrays(
    directory: Path, record: Record, request: Callable[[Any], ocp.args.PyTreeRestore]
) -> PyTree:
    # Reads what `request` makes of the stored tree, and compares digests.
    path = epath.Path(absolute(directory) / str(record.step) / "state")
    with (
        _wrap_restore_errors(directory, record.step),
        contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader,
    ):
        tree = reader.restore(path, args=request(reader.metadata(path).tree))
        leaves = {name: fetch(leaf) for name, leaf in named_leaves(tree).items()}
        with ThreadPoolExecutor() as pool:
            found = dict(zip(leaves, pool.map(_describe, leaves.values()), strict=True))
        if damaged := [name for name in found if found[name] != record.leaves[name]]:
            raise ValueError(f"bytes differ from those saved in:{listed(damaged)}")
    return tree


@contextlib.contextmanager
def _wrap_restore_errors(directory: Path, step: int) -> Iterator[None]:
    """Turn whatever a library raises on damaged files into one error with a way out."""
    try:
        yield
    except Exception as error:
        older = [other for other in committed_steps(directory) if other < step]
        raise CheckpointError(
            f"the checkpoint of step {step} in {directory} is damaged: {_brief(error)}\n"
            f"{_way_back(older)}"
        ) from error


def _way_back(steps: Sequence[int]) -> str:
    restore = "restore the folder from a copy, or"
    if not steps:
        return f"There is no older step: {restore} start anew in another --workdir."
    back = f"go back to one of them with --config.restore_step={steps[-1]}"
    return f"Older steps: {_steps_in_words(steps)}; {restore} {back}."


def _steps_in_words(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps)) or "none"


def _describe(leaf: np.ndarray) -> dict[str, JSON]:
    data: Any = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(data).hexdigest()
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "digest": digest}


def _json_digest(values: Mapping[str, JSON]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain_json(values: Mapping[str, JSON]) -> dict[str, JSON]:
    # As JSON restores them: tuples become lists, keys strings.
    return json.loads(json.dumps(dict(values)))


def _brief(error: BaseException) -> str:
    # Without the pages that some libraries append.
    text = str(error).split(" [tensorstore_spec")[0].strip() or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."
