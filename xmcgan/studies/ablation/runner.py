"""Train and score the runs of a table, one after the other, each in processes of its own.

They are the programs that a user would start by hand. So a run that dies, for want of memory for
instance, takes no other with it; each finds the accelerator's memory free; and what a program does
already (resume, refuse another config, evaluate once) needs no second form here. The compilation
cache makes the second seed of a row start quickly.
"""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

from xmcgan.errors import UserError
from xmcgan.studies.ablation.plan import Cell
from xmcgan.studies.ablation.scoring import Scoring, find_result, finished_step
from xmcgan.training.monitoring import StopSignal

_POLL_SECONDS = 0.2


def train_command(cell: Cell) -> list[str]:
    """Return the command line that trains a run, or goes on with it."""
    overrides = [f"--config.{override}" for override in cell.overrides]
    workdir = ["--workdir", str(cell.workdir)]
    return [sys.executable, "-m", "xmcgan.train", "--config", cell.spec, *workdir, *overrides]


class Runner:
    """Bring the runs of a table to an end.

    Args:
        cells: the runs, in their order.
        scoring: how each is scored.
        evaluate: command line of `scripts/eval_fid.py`, without flags.
        stop: says when to end; a run that is going on gets the signal too, and saves.

    Attributes:
        failures: what went wrong, a line for each run that has no score.
    """

    def __init__(
        self, cells: Sequence[Cell], scoring: Scoring, evaluate: Sequence[str], stop: StopSignal
    ) -> None:
        self._cells, self._scoring = cells, scoring
        self._evaluate, self._stop = evaluate, stop
        self.failures: list[str] = []

    def run(self) -> None:
        """Train what is not trained and score what is not scored, until the end or a signal."""
        for number, cell in enumerate(self._cells, start=1):
            if self._stop.received:
                return
            print(f"[{number} of {len(self._cells)}] {cell.name}", flush=True)
            try:
                problem = self._finish(cell)
            except UserError as error:
                problem = str(error)
            if problem and not self._stop.received:
                self.failures.append(f"{cell.name}: {problem}")
                print(f"failed: {self.failures[-1]}", file=sys.stderr, flush=True)

    def _finish(self, cell: Cell) -> str | None:
        """Return what went wrong, None where the run has its scores."""
        if find_result(cell, self._scoring):
            return None
        if finished_step(cell) is None:
            if problem := self._call("training", train_command(cell)):
                return problem
            if self._stop.received:
                return None
        step = finished_step(cell)
        if step is None:
            return (
                f"{cell.workdir} does not stand where this table's runs end; another --out has "
                "room for another length or config"
            )
        arguments = self._scoring.arguments(cell.workdir, step)
        return self._call("evaluation", [*self._evaluate, *arguments])

    def _call(self, what: str, command: Sequence[str]) -> str | None:
        """Run a program to its end; hand a signal on to it, once for each."""
        shown = shlex.join(command)
        print(f"$ {shown}", flush=True)
        # In a group of its own a terminal's Ctrl-C does not reach it beside the one from here.
        with subprocess.Popen(command, process_group=0) as process:
            handed_on = False
            while True:
                try:
                    status = process.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if self._stop.received and not handed_on:
                        process.send_signal(self._stop.received)
                        handed_on = True
                except KeyboardInterrupt:  # the second signal: at once
                    process.send_signal(signal.SIGINT)
        if status == 0:
            return None
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{what} {how}; what it said stands above, and comes again with\n  {shown}"
