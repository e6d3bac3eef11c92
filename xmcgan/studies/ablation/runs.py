"""Train and score the runs of a table, one after the other, each in processes of its own.

They are the programs that a user would start by hand. So a run that dies, for want of memory for
instance, takes no other with it; each finds the accelerator's memory free; and what a program does
already (resume, refuse another config, evaluate once) needs no second form here. The compilation
cache makes the second seed of a row start quickly.
"""

import contextlib
import dataclasses
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from xmcgan.config import fingerprint, read_config
from xmcgan.data import DataSet
from xmcgan.data.pipeline import num_steps
from xmcgan.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EvaluationError,
    TrainingError,
    UserError,
)
from xmcgan.evaluation.protocols import flattered_by, get_protocol, load_network
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import Cell
from xmcgan.training.checkpoint import checkpoint_digest, committed_steps, read_record
from xmcgan.training.logging import read_curves
from xmcgan.training.monitoring import StopSignal

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How every run is scored: its last checkpoint, with the averaged weights."""

    num_samples: int
    protocol: str  # of the Frechet distance, retrieval and diversity
    weights: str | None = None  # path of the protocol's network; None takes its own
    clip: str | None = None  # folder of CLIP ViT-B/32, for CLIPScore and R-precision

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse now what would fail after the first run was trained, or flatter some rows only."""
        if self.num_samples < 2:
            raise EvaluationError(f"--num-samples is {self.num_samples}: at least 2")
        protocol = get_protocol(self.protocol)
        if protocol.label == "PR":
            raise EvaluationError(
                f"--protocol {protocol.name} has none of the table's scores; take fd-effnet-lite2"
            )
        if len({flattered_by(cell.config, protocol) for cell in cells}) > 1:
            raise EvaluationError(
                f"--protocol {protocol.name} would flatter the rows that train with its network; "
                "take fd-effnet-lite2"
            )
        load_network(protocol, self.weights)
        if self.clip is not None and not Path(self.clip).exists():
            raise EvaluationError(f"--clip: there is no {self.clip}")

    def flags(self, workdir: Path, step: int) -> list[str]:
        """Return the flags of `scripts/eval_fid.py` for one checkpoint."""
        flags = ["--workdir", str(workdir), "--step", str(step), "--use", "ema"]
        flags += ["--num-samples", str(self.num_samples), "--protocols", self.protocol]
        flags += ["--weights", f"{self.protocol}={self.weights}"] if self.weights else []
        return flags + (["--clip", self.clip] if self.clip else [])

    def find_result(self, cell: Cell) -> Result | None:
        """Return the scores of a finished run, None if they are still to be made."""
        step = finished_step(cell)
        if step is None:
            return None
        made = (step, "ema", checkpoint_digest(cell.workdir / "checkpoints", step))
        measures = {self.protocol} | ({"clip"} if self.clip else set())
        file = ResultFile(cell.workdir / "evaluation")
        for result in reversed(file.read()):
            if (result.step, result.weights, result.checkpoint) == made:
                recipe = file.read_recipe(result.recipe)
                if recipe["samples"] == self.num_samples and measures <= recipe["measures"].keys():
                    return result
        return None

    def find_results(self, cells: Sequence[Cell]) -> dict[Path, Result]:
        """Return the scores of all runs that have them, by workdir; not those that are damaged."""
        found: dict[Path, Result] = {}
        for cell in cells:
            with contextlib.suppress(UserError):  # `run_cells` has reported it
                if result := self.find_result(cell):
                    found[cell.workdir] = result
        return found


def is_of_config(cell: Cell) -> bool:
    """Return whether the workdir of a run holds a run of the planned config."""
    try:
        stored = read_config(cell.workdir / "config.json")
    except ConfigError:
        return False
    return fingerprint(stored) == fingerprint(cell.config)


def finished_step(cell: Cell) -> int | None:
    """Return the last step of a run that is complete as planned, else None."""
    directory = cell.workdir / "checkpoints"
    steps = committed_steps(directory)
    if not steps or not is_of_config(cell):
        return None
    try:
        extra = read_record(directory, steps[-1]).extra
    except CheckpointError:
        return None  # training says what is wrong
    planned = cell.config.num_train_steps or extra.get("num_train_steps")
    return steps[-1] if steps[-1] == planned else None


def run_cells(
    cells: Sequence[Cell], scoring: Scoring, evaluate: Sequence[str], stop: StopSignal
) -> list[str]:
    """Train what is not trained and score what is not scored, until the end or a signal.

    `evaluate` is the command line of `scripts/eval_fid.py` without flags. A program that is running
    when a signal comes gets it too, and saves. Returns a line for each run that failed.
    """
    failures = []
    for number, cell in enumerate(cells, start=1):
        if stop.received:
            break
        print(f"[{number} of {len(cells)}] {cell.name}", flush=True)
        try:
            _finish(cell, scoring, evaluate, stop)
        except UserError as error:
            if not stop.received:
                failures.append(f"{cell.name}: {error}")
                print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)
    return failures


def _finish(cell: Cell, scoring: Scoring, evaluate: Sequence[str], stop: StopSignal) -> None:
    if scoring.find_result(cell):
        return
    if finished_step(cell) is None:
        _call("training", cell.train_command, stop)
    step = finished_step(cell)
    if step is None:
        raise TrainingError(
            f"{cell.workdir} does not end where this table's runs end; use another --out"
        )
    if not stop.received:
        _call("evaluation", [*evaluate, *scoring.flags(cell.workdir, step)], stop)


def _call(what: str, command: Sequence[str], stop: StopSignal) -> None:
    """Run a program to its end and forward a signal to it once; an error if it fails."""
    shown = shlex.join(command)
    print(f"$ {shown}", flush=True)
    # In a group of its own a terminal's Ctrl-C does not reach it beside the one from here.
    with subprocess.Popen(command, process_group=0) as process:
        forwarded = False
        while True:
            try:
                status = process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if stop.received and not forwarded:
                    process.send_signal(stop.received)
                    forwarded = True
            except KeyboardInterrupt:  # the second signal: at once
                process.send_signal(signal.SIGINT)
    if status != 0:
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        raise TrainingError(f"{what} {how}; its output is above, and comes again with\n  {shown}")


def dry_run(cells: Sequence[Cell], scoring: Scoring) -> str:
    """Return a line per run, and what is left to do; its time, if a run has logged its speed."""
    length = _planned_steps(cells[0])
    lines = [f"{len(cells)} runs, each of {f'{length:,} steps' if length else 'unknown length'}:"]
    images, evaluations, seconds, speeds = 0, 0, [], []
    for cell in cells:
        result, step = scoring.find_result(cell), finished_step(cell)
        done = max(committed_steps(cell.workdir / "checkpoints"), default=0)
        state = "done" if result else "trained" if step else f"at step {done:,}"
        if done and not is_of_config(cell):
            state = "in the way: a run of another config, which training will refuse"
        lines.append(f"  {cell.name}: {state}")
        evaluations += result is None
        seconds += [result.seconds] if result else []
        images += 0 if step else max((length or 0) - done, 0) * cell.config.batch_size
        curves = read_curves(cell.workdir / "metrics.jsonl")
        speeds += [*curves["images_per_second"][1]] if "images_per_second" in curves else []
    lines.append(
        f"left: {images:,} images of generator updates, {evaluations} evaluations of "
        f"{scoring.num_samples:,} images"
    )
    time = "not known before a run of this table has logged its speed"
    if speeds and length:
        speed = statistics.median(speeds)
        left = images / speed + (evaluations * statistics.median(seconds) if seconds else 0)
        missing = ", evaluations not counted" if evaluations and not seconds else ""
        time = (
            f"about {left / 60:.0f} minutes at the logged {speed:.0f} images per second, plus "
            f"start and compilation of each program{missing}"
        )
    return "\n".join([*lines, f"time: {time}"])


def _planned_steps(cell: Cell) -> int | None:
    """Return the length of a run, None if it counts in passes over data not yet prepared."""
    config = cell.config
    if config.num_train_steps:
        return config.num_train_steps
    try:
        data_set = DataSet(config.data.name, config.data.data_dir, **config.data.fields)
        source = data_set.load(config.data.train_split)
    except DataError:
        return None
    return num_steps(config.num_epochs, len(source), config.batch_size, config.d_steps)
