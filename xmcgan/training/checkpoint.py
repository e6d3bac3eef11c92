"""Checkpoints that are whole, verified on the way back, and owned by one run.

Several processes of one run write a step together, each the arrays that lie on its devices; process
0 alone clears, renames and removes. The folder must be the same for all of them.

A step is a folder `DIRECTORY/STEP` that Orbax writes in the background and renames into place, so
that it is either complete or absent. Beside the arrays lies the record of `record.py`.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from xmcgan.errors import CheckpointError, listed
from xmcgan.training import record as records
from xmcgan.training.record import Record
from xmcgan.training.retention import (
    committed_steps,
    note_newest,
    noted_newest,
    remove_old,
)
from xmcgan.utils.distributed import all_gather_json, is_host0
from xmcgan.utils.files import clear_leftovers
from xmcgan.utils.mesh import fetch
from xmcgan.utils.provenance import fingerprint_differences

PyTree = Any
JSON = Any

_STATE = "state"


class Checkpointer:
    """Save and restore the whole state of a run; keep the last `keep` steps and the pinned ones.

    Use it as a context manager: leaving the block waits for the save that is under way. The caller
    holds `lock_workdir`, so that nobody else writes into `directory`.
    """

    def __init__(self, directory: Path, *, keep: int, fingerprint: Mapping[str, JSON]) -> None:
        """Open `directory`, create it if absent, and clear what a killed save left there.

        Args:
            directory: the folder of the step folders, usually `WORKDIR/checkpoints`.
            keep: how many of the newest steps stay on disk, at least 1, besides those that are
                pinned (`retention.py`). One more is there until the next save begins.
            fingerprint: JSON values that must be equal when the run is resumed.
        """
        self._directory = Path(directory).absolute()
        if is_host0():
            self._directory.mkdir(parents=True, exist_ok=True)
            # Not Orbax's own cleaning, by marker files: only what is named temporary goes.
            for leftover in self._directory.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(leftover, ignore_errors=True)
            clear_leftovers(self._directory)
        all_gather_json("cleared")
        self._fingerprint = records.plain_json(fingerprint)
        self._keep = keep
        self._saving: int | None = None
        self._manager = ocp.CheckpointManager(
            self._directory, options=ocp.CheckpointManagerOptions(max_to_keep=None)
        )

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            if exc_value is None:
                raise
            logging.error("%s", error)  # The error that ended the block is the one to raise.
        finally:
            self._manager.close()

    def all_steps(self) -> list[int]:
        """Return the steps that are complete on disk, oldest first."""
        return committed_steps(self._directory)

    def latest_step(self) -> int | None:
        """Return the newest complete step, or None where none was ever saved.

        Raises:
            CheckpointError: a newer step was saved and is gone.
        """
        # What process 0 sees: on a network's file system others may see it later.
        steps, noted = all_gather_json([self.all_steps(), noted_newest(self._directory)])[0]
        if noted is not None and noted > max(steps, default=-1):
            way_out = (
                f"To go back to an older step, pass --config.restore_step={steps[-1]}."
                if steps
                else "No older step is there: to start anew, give another --workdir."
            )
            raise CheckpointError(
                f"step {noted} was saved in {self._directory} and is gone; put it back from a "
                f"copy. {way_out}"
            )
        return max(steps, default=None)

    def save(self, step: int, state: PyTree, extra: Mapping[str, JSON]) -> None:
        """Copy the state to the host now and write it in the background.

        The arrays may be donated or changed as soon as this returns. Complete steps at or after
        `step`, which a run restored from an older step leaves behind, are renamed `set-aside-N`.

        Args:
            step: the number of training steps done.
            state: a tree of plain arrays; random keys as raw key data.
            extra: JSON values stored with it, at least what is needed to find the next batch.

        Raises:
            CheckpointError: this save could not start, or the one before it had failed.
        """
        self.wait()
        self._set_aside_from(step)
        # Own copies: on a CPU a plain conversion shares memory with a buffer that may be donated.
        host_state = jax.tree.map(lambda leaf: np.array(fetch(leaf), copy=True), state)
        several = jax.process_count() > 1
        written = jax.tree.map(jnp.copy, state) if several else host_state
        record = Record(step, records.plain_json(extra), self._fingerprint, {})
        items = {
            _STATE: ocp.args.StandardSave(written),
            records.RECORD_ITEM: records.RecordSave(record, records.named_leaves(host_state)),
        }
        self._saving = step
        with self._loud_failure(OSError):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until the save under way is complete on disk, then remove what is too old.

        Raises:
            CheckpointError: it failed; steps saved before are intact.
        """
        with self._loud_failure(Exception):
            self._manager.wait_until_finished()
        if self._saving is not None and is_host0():
            note_newest(self._directory, self._saving)
            if remove_old(self._directory, self._keep):
                self._manager.reload()
        self._saving = None

    def check_fingerprint(self, step: int) -> None:
        """Refuse to go on where the stored run differs from this one.

        Raises:
            CheckpointError: naming every field that differs, stored and now.
        """
        stored = read_record(self._directory, step).fingerprint
        differences = fingerprint_differences(stored, self._fingerprint)
        if differences:
            raise CheckpointError(
                f"{self._directory} holds a run of another configuration (step {step}; field: "
                f"stored -> now):{listed(differences)}\n"
                "Give another --workdir for a new run, set these fields back to resume this one, "
                "or pass --config.allow_mismatch=true to resume it all the same."
            )

    def restore(
        self, step: int | None, abstract_state: PyTree, *, allow_mismatch: bool = False
    ) -> tuple[PyTree, dict[str, JSON]]:
        """Return the state and the extra values of a step, verified array by array.

        Args:
            step: which step, or None for the newest.
            abstract_state: the tree to fill: arrays, or `jax.ShapeDtypeStruct` with a sharding
                each, which may place them on other devices than they were saved from.
            allow_mismatch: accept a fingerprint that differs.

        Returns:
            The state, placed as asked, and the `extra` given to `save`.

        Raises:
            CheckpointError: there is no such step, it is damaged, it belongs to another
                configuration, or its arrays have other names, shapes or types.
            ValueError: a leaf of `abstract_state` says not where to place it.
        """
        self.wait()
        step = self._existing_step(step)
        if not allow_mismatch:
            self.check_fingerprint(step)
        record = read_record(self._directory, step)
        wanted = records.named_leaves(abstract_state)
        self._check_structure(record, wanted)
        for name, leaf in wanted.items():
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(f"abstract_state has no sharding for {name}")
        with _named_damage(self._directory, step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(abstract_state)})
            )
            _verify(record, restored[_STATE])
        return restored[_STATE], record.extra

    def _existing_step(self, step: int | None) -> int:
        steps = self.all_steps()
        if step is None and steps:
            return steps[-1]
        if step is None or step not in steps:
            asked = "" if step is None else f" of step {step}"
            there = f"; its steps are {', '.join(map(str, steps))}" if steps else ""
            raise CheckpointError(f"{self._directory} has no checkpoint{asked}{there}")
        return step

    def _check_structure(self, record: Record, wanted: Mapping[str, Any]) -> None:
        differences = records.structure_differences(record, wanted)
        if differences:
            raise CheckpointError(
                f"step {record.step} in {self._directory} is of another architecture (array: "
                f"stored -> now):{listed(differences)}\n"
                "Set the configuration back, or give another --workdir."
            )

    def _set_aside_from(self, step: int) -> None:
        newer = all_gather_json([other for other in self.all_steps() if other >= step])[0]
        if newer and is_host0():
            kept = [other for other in self.all_steps() if other < step]
            note_newest(self._directory, max(kept, default=None))
        for other in newer if is_host0() else ():
            target = self._directory / f"set-aside-{other}"
            shutil.rmtree(target, ignore_errors=True)
            (self._directory / str(other)).rename(target)
            logging.warning("step %d is of a course this run has left: now %s", other, target)
        if newer:
            self._manager.reload()

    @contextlib.contextmanager
    def _loud_failure(self, expected: type[Exception]) -> Iterator[None]:
        try:
            yield
        except expected as error:
            step, self._saving = self._saving, None
            self._manager.reload()  # Else Orbax goes on listing the failed step.
            kept = ", ".join(map(str, self.all_steps())) or "none"
            raise CheckpointError(
                f"step {step} could not be saved in {self._directory}: {_brief(error)}\n"
                f"Is the disk full or read-only? Complete steps there: {kept}."
            ) from error


def read_record(directory: Path, step: int) -> Record:
    """Read what a step says about itself, without its arrays.

    Raises:
        CheckpointError: the record is missing or damaged.
    """
    with _named_damage(directory, step):
        return records.read_record(directory / str(step))


def checkpoint_digest(directory: Path, step: int) -> str:
    """Return what tells a step from another of its number: a digest of its arrays' digests.

    Raises:
        CheckpointError: the record is missing or damaged.
    """
    leaves = read_record(directory, step).leaves
    return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]


def restore_subtree(directory: Path, step: int, keys: Sequence[str]) -> dict[str, PyTree]:
    """Read some top-level fields of the state as NumPy arrays in nested dictionaries.

    No network or optimizer has to be built, and nothing is written, so sampling can read the
    averaged generator this way while training goes on.

    Args:
        directory: the folder of the step folders.
        step: which step.
        keys: names of top-level fields of the saved state.

    Raises:
        CheckpointError: there is no such step or field, or the step is damaged.
    """
    directory = directory.absolute()
    if step not in committed_steps(directory):
        raise CheckpointError(f"{directory} has no checkpoint of step {step}")
    record = read_record(directory, step)
    present = {name.split("/")[0] for name in record.leaves}
    missing = sorted(set(keys) - present)
    if missing:
        raise CheckpointError(
            f"step {step} in {directory} has no {', '.join(missing)}; "
            f"it has {', '.join(sorted(present))}"
        )
    with (
        _named_damage(directory, step),
        contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader,
    ):
        path = epath.Path(directory / str(step) / _STATE)
        stored = reader.metadata(path).tree
        wanted = {key: stored[key] for key in keys}
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        request = ocp.args.PyTreeRestore(wanted, restore_args=as_numpy, partial_restore=True)
        subtree = reader.restore(path, args=request)
        _verify(record, subtree)
    return subtree


def _verify(record: Record, tree: PyTree) -> None:
    damaged = records.damaged_leaves(record, records.named_leaves(tree))
    if damaged:
        raise ValueError(f"bytes differ from those saved in:{listed(damaged)}")


@contextlib.contextmanager
def _named_damage(directory: Path, step: int) -> Iterator[None]:
    """Turn whatever a library raises on damaged files into one message with a way out."""
    try:
        yield
    except Exception as error:
        logging.getLogger("asyncio").addFilter(_is_no_abandoned_read)
        older = [other for other in committed_steps(directory) if other < step]
        way_out = (
            f"Older steps: {', '.join(map(str, older))}. To go back to one of them, pass "
            f"--config.restore_step={older[-1]}."
            if older
            else "There is no older step: restore the folder from a copy, or start anew in "
            "another --workdir."
        )
        raise CheckpointError(
            f"the checkpoint of step {step} in {directory} is damaged: {_brief(error)}\n{way_out}"
        ) from error


def _is_no_abandoned_read(log: logging.LogRecord) -> bool:
    """Drop what Orbax's other reads of a failed restore would print, a page for each array."""
    return "exception was never retrieved" not in log.getMessage()


def _brief(error: BaseException) -> str:
    """Return an error's message without the pages that some libraries append to it."""
    text = str(error).split(" [tensorstore_spec")[0].strip() or type(error).__name__
    return text if len(text) <= 500 else f"{text[:500]} ..."
