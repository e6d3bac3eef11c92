"""How the runs of a table are scored, and what stands on the disk about a run."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmcgan.config import fingerprint, read_config
from xmcgan.errors import CheckpointError, ConfigError, EvaluationError, UserError
from xmcgan.evaluation.protocols import flattered_by, get_protocol, load_network
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import Cell
from xmcgan.studies.run_report.log import read_curves
from xmcgan.training.checkpoint import checkpoint_digest, read_record
from xmcgan.training.retention import committed_steps


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Say how every run is scored: its last checkpoint, with the averaged weights.

    Attributes:
        num_samples: images to draw.
        protocol: of the Frechet distance.
        weights: path of the protocol's network; None takes its own.
        clip: folder of CLIP ViT-B/32 for CLIPScore and R-precision; None leaves them out.
    """

    num_samples: int
    protocol: str
    weights: str | None = None
    clip: str | None = None

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse now what would fail after the first run was trained.

        Args:
            cells: the runs of the table.

        Raises:
            UserError: too few samples, an unknown protocol, weights that cannot be read, or a
                protocol that flatters some rows and not the others.
        """
        if self.num_samples < 2:
            raise EvaluationError(f"--num-samples is {self.num_samples}: at least 2")
        protocol = get_protocol(self.protocol)
        if len({flattered_by(cell.config, protocol) for cell in cells}) > 1:
            raise EvaluationError(
                f"--protocol {protocol.name} would flatter some rows: its network takes part in "
                "their training and not in that of others; take fd-effnet-lite2"
            )
        load_network(protocol, self.weights)
        if self.clip is not None and not Path(self.clip).exists():
            raise EvaluationError(f"--clip: there is no {self.clip}")

    def arguments(self, workdir: Path, step: int) -> list[str]:
        """Return the flags of `scripts/eval_fid.py` for one checkpoint."""
        flags = ["--workdir", str(workdir), "--step", str(step), "--use", "ema"]
        flags += ["--num-samples", str(self.num_samples), "--protocols", self.protocol]
        flags += ["--weights", f"{self.protocol}={self.weights}"] if self.weights else []
        return flags + (["--clip", self.clip] if self.clip else [])

    def made(self, recipe: Mapping[str, Any]) -> bool:
        """Return whether scores of a recipe are what this asks for."""
        measures = {self.protocol} | ({"clip"} if self.clip else set())
        return recipe["samples"] == self.num_samples and measures <= recipe["measures"].keys()


def is_of_config(cell: Cell) -> bool:
    """Return whether what stands in a run's workdir is of the planned config."""
    try:
        stored = read_config(cell.workdir / "config.json")
    except ConfigError:
        return False
    return fingerprint(stored) == fingerprint(cell.config)


def finished_step(cell: Cell) -> int | None:
    """Return the last step of a run that is complete as planned, None where there is none."""
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


def find_result(cell: Cell, scoring: Scoring) -> Result | None:
    """Return the scores of a finished run, None where they are still to be made.

    Raises:
        UserError: the checkpoint or the results are damaged.
    """
    step = finished_step(cell)
    if step is None:
        return None
    digest = checkpoint_digest(cell.workdir / "checkpoints", step)
    file = ResultFile(cell.workdir / "evaluation")
    for result in reversed(file.read()):
        is_of_it = (result.step, result.weights, result.checkpoint) == (step, "ema", digest)
        if is_of_it and scoring.made(file.read_recipe(result.recipe)):
            return result
    return None


def find_results(cells: Sequence[Cell], scoring: Scoring) -> dict[Path, Result]:
    """Return the scores of all runs that have them, by workdir; damaged ones count as without."""
    found: dict[Path, Result] = {}
    for cell in cells:
        with contextlib.suppress(UserError):  # `Runner` has told of it
            if result := find_result(cell, scoring):
                found[cell.workdir] = result
    return found


def images_per_second(cell: Cell) -> list[float]:
    """Return the speeds that a run has logged."""
    curves = read_curves(cell.workdir / "metrics.jsonl")
    return curves["images_per_second"][1].tolist() if "images_per_second" in curves else []
