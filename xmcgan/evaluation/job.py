"""The evaluation job: scores of the checkpoints of a run, beside its training or after it.

A program of its own. It may be killed at any time: a checkpoint has a whole result or none, and is
pinned until it has one, so training does not delete it. Of several processes the first decides
which checkpoint comes next, and writes.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xmcgan.errors import AgreedError, CheckpointError
from xmcgan.evaluation.captions import write_manifest
from xmcgan.evaluation.evaluator import Evaluator, Options
from xmcgan.evaluation.results import Result, ResultFile, Weights, best_result
from xmcgan.evaluation.retrieval import RETRIEVALS
from xmcgan.evaluation.scores import Score
from xmcgan.sampling.sampler import load_generator
from xmcgan.training import checkpoint
from xmcgan.training.checkpoint import checkpoint_digest, read_record
from xmcgan.training.logging import TensorBoardWriter
from xmcgan.utils.distributed import broadcast_from_host0, is_host0, raise_on_all
from xmcgan.utils.files import lock_workdir

POLL_SECONDS = 10.0
_PENDING, _BEST = "evaluation", "best"


class EvaluationJob:
    """Evaluate the checkpoints of one workdir.

    Args:
        workdir: of a training run, which may be going on.
        options: what to measure.

    Raises:
        UserError: anything that would keep the job from giving a score, before it draws an image.
    """

    def __init__(self, workdir: Path, options: Options) -> None:
        self._workdir, self._weights = workdir, options.weights
        self._directory = workdir / "evaluation"
        self._checkpoints = workdir / "checkpoints"
        self._evaluator = Evaluator(workdir, options)
        self._results = ResultFile(self._directory)
        self._recipe_id = ""  # known to process 0
        self._damaged: dict[int, str] = {}  # steps that cannot be evaluated, and why

    def run(self, steps: Sequence[int] | None = None, *, watch: bool = False) -> int:
        """Evaluate what has no result yet.

        Args:
            steps: checkpoints; None takes all that are there.
            watch: wait for more, until the run's last step has been evaluated.

        Returns:
            How many results were added.

        Raises:
            CheckpointError: a step that was asked for is not there, or is damaged; another process
                evaluates this workdir.
        """
        with contextlib.ExitStack() as held:
            with raise_on_all():
                if is_host0():
                    self._directory.mkdir(parents=True, exist_ok=True)
                    held.enter_context(lock_workdir(self._directory))
                    self._prepare(steps)
            # Before the first image is drawn: what is wrong with the real ones shows now.
            self._evaluator.observe_references()
            added = 0
            while (task := self._next(steps, watch)) is not None:
                added += self._evaluate_step(*task)
        with raise_on_all():
            if self._damaged and is_host0():
                raise CheckpointError(
                    f"{added} results were added; these steps have none:\n"
                    + "\n".join(self._damaged.values())
                )
        return added

    def _prepare(self, steps: Sequence[int] | None) -> None:
        self._recipe_id = self._results.write_recipe(self._evaluator.recipe())
        write_manifest(self._evaluator.manifest, self._directory / "captions.jsonl")
        self._check_steps(steps)
        self._forget_lost_pins()
        self._pin_pending(steps)

    def _next(self, steps: Sequence[int] | None, watch: bool) -> tuple[int, list[Weights]] | None:
        """Return a step and the weights that lack a result, None at the end; wait if need be."""

        def look() -> tuple[tuple[int, list[Weights]] | None, bool]:
            pending = next(iter(self._pin_pending(steps).items()), None)
            return pending, not watch or self._is_finished()

        while True:
            pending, is_last = broadcast_from_host0(look)
            if pending or is_last:
                return pending
            time.sleep(POLL_SECONDS)

    def _evaluate_step(self, step: int, missing: list[Weights]) -> int:
        """Add the results that a step lacks; return how many."""
        for number, weights in enumerate(missing):
            start = time.time()
            try:
                with raise_on_all():
                    digest, variables = self._load(step, weights)
            except (CheckpointError, AgreedError) as error:
                self._damaged[step] = str(error)
                return number
            scores = self._evaluator.score(variables, f"step {step:,} ({weights})")
            with raise_on_all():
                if is_host0():
                    self._write(self._result(step, weights, digest, scores, start))
        return len(missing)

    def _load(self, step: int, weights: Weights) -> tuple[str, Any]:
        """Return the digest of a checkpoint and its generator, on all devices."""
        config, mesh = self._evaluator.config, self._evaluator.mesh
        is_raw = weights == "raw"
        variables = load_generator(config, self._checkpoints, step, mesh, raw=is_raw)
        return checkpoint_digest(self._checkpoints, step), variables

    def _result(
        self, step: int, weights: Weights, digest: str, scores: dict[str, Score], start: float
    ) -> Result:
        now = time.time()
        return Result(
            step=step,
            weights=weights,
            recipe=self._recipe_id,
            checkpoint=digest,
            scores=scores,
            time=round(now, 3),
            seconds=round(now - start, 3),
        )

    def _missing(self, step: int) -> list[Weights]:
        done = {result.key for result in self._results.read()}
        checkpoint = checkpoint_digest(self._checkpoints, step)
        return [w for w in self._weights if (step, w, self._recipe_id, checkpoint) not in done]

    def _write(self, result: Result) -> None:
        # TensorBoard first: a result that stands in the file is never evaluated again.
        folder = self._workdir / "tensorboard" / f"evaluation_{result.weights}"
        with TensorBoardWriter(folder) as writer:
            writer.write_scalars(result.step, {k: s.value for k, s in result.scores.items()})
        self._results.append(result)
        protocol, primary = self._evaluator.primary.split("/")
        shown = {n: result.scores.get(f"{protocol}/{n}") for n in (primary, *RETRIEVALS)}
        values = [f"{name} {score.value:.4g}" for name, score in shown.items() if score]
        tqdm.write(
            f"step {result.step:>7,} ({result.weights})  {protocol}: {'  '.join(values)}"
            f"{'  (flattered)' if protocol in self._evaluator.flattered else ''}  "
            f"({result.seconds:.0f} s)"
        )
        ratio = result.scores.get(f"{protocol}/diversity_ratio")
        if ratio and ratio.note:
            tqdm.write(f"  warning: {ratio.note}")
        self._pin_best()

    def _check_steps(self, steps: Sequence[int] | None) -> None:
        there = checkpoint.committed_steps(self._checkpoints)
        missing = sorted(set(steps or ()) - set(there))
        if missing:
            raise CheckpointError(
                f"{self._checkpoints} has no checkpoint of step {', '.join(map(str, missing))}; "
                f"it has {', '.join(map(str, there)) or 'none yet'}"
            )

    def _forget_lost_pins(self) -> None:
        """Remove the pins of steps that a run has left behind, restored from an older one."""
        there = checkpoint.committed_steps(self._checkpoints)
        for step in checkpoint.pinned_steps(self._checkpoints, _PENDING) - set(there):
            checkpoint.unpin(self._checkpoints, step, _PENDING)

    def _pin_pending(self, steps: Sequence[int] | None) -> dict[int, list[Weights]]:
        """Return what steps lack, the oldest first, after making sure that they stay."""
        pending: dict[int, list[Weights]] = {}
        for step in checkpoint.committed_steps(self._checkpoints):
            asked_for = steps is None or step in steps
            if not asked_for or step in self._damaged:
                continue
            if not checkpoint.pin(self._checkpoints, step, _PENDING):
                continue  # training was quicker
            try:
                missing = self._missing(step)
            except CheckpointError as error:
                self._damaged[step], missing = str(error), []
            if missing:
                pending[step] = missing
            else:
                checkpoint.unpin(self._checkpoints, step, _PENDING)
        return pending

    def _pin_best(self) -> None:
        best = best_result(self._results.read(), self._evaluator.primary)
        if best is None or not checkpoint.pin(self._checkpoints, best.step, _BEST):
            return
        for step in checkpoint.pinned_steps(self._checkpoints, _BEST) - {best.step}:
            checkpoint.unpin(self._checkpoints, step, _BEST)

    def _is_finished(self) -> bool:
        steps = checkpoint.committed_steps(self._checkpoints)
        if not steps:
            return False
        last_step = read_record(self._checkpoints, steps[-1]).extra.get("num_train_steps")
        return last_step is not None and steps[-1] >= last_step
