"""The evaluation job: scores of the checkpoints of a run, beside its training or after it.

A separate process. It may be killed at any time: a checkpoint has a whole result or none, and is
pinned until it has one, so training does not delete it.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from xmcgan.errors import CheckpointError
from xmcgan.evaluation.captions import write_manifest
from xmcgan.evaluation.evaluator import Evaluator, Options
from xmcgan.evaluation.results import Result, ResultFile, Weights, best_result
from xmcgan.sampling import load_generator
from xmcgan.training import retention
from xmcgan.training.checkpoint import lock_workdir, read_record
from xmcgan.training.writers import TensorBoardWriter

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
        self._directory.mkdir(parents=True, exist_ok=True)
        with lock_workdir(self._directory):
            recipe_id = self._results.write_recipe(self._evaluator.recipe())
            write_manifest(self._evaluator.manifest, self._directory / "captions.jsonl")
            self._check_steps(steps)
            self._forget_lost_pins()
            self._pin_pending(steps, recipe_id)
            # Before the first image is drawn: what is wrong with the real ones shows now.
            self._evaluator.observe_references()
            added = 0
            while True:
                if pending := self._pin_pending(steps, recipe_id):
                    added += self._evaluate_step(pending[0], recipe_id)
                elif watch and not self._is_finished():
                    time.sleep(POLL_SECONDS)
                else:
                    break
        if self._damaged:
            raise CheckpointError(
                f"{added} results were added; these steps have none:\n"
                + "\n".join(self._damaged.values())
            )
        return added

    def _evaluate_step(self, step: int, recipe_id: str) -> int:
        """Add the results that a step lacks; return how many."""
        missing = self._missing(step, recipe_id)
        try:
            for weights in missing:
                self._write(self._evaluate(step, weights, recipe_id))
        except CheckpointError as error:
            self._damaged[step] = str(error)
            return 0
        finally:
            if not self._missing(step, recipe_id):
                retention.unpin(self._checkpoints, step, _PENDING)
        self._pin_best()
        return len(missing)

    def _missing(self, step: int, recipe_id: str) -> list[Weights]:
        done = {result.key for result in self._results.read()}
        checkpoint = self._checkpoint_digest(step)
        return [w for w in self._weights if (step, w, recipe_id, checkpoint) not in done]

    def _evaluate(self, step: int, weights: Weights, recipe_id: str) -> Result:
        start = time.time()
        raw = weights == "raw"
        variables = load_generator(self._checkpoints, step, self._evaluator.mesh, raw=raw)
        scores = self._evaluator.score(variables, f"step {step:,} ({weights})")
        return Result(
            step=step,
            weights=weights,
            recipe=recipe_id,
            checkpoint=self._checkpoint_digest(step),
            scores=scores,
            time=round(time.time(), 3),
            seconds=round(time.time() - start, 3),
        )

    def _write(self, result: Result) -> None:
        # TensorBoard first: a result that stands in the file is never evaluated again.
        folder = self._workdir / "tensorboard" / f"evaluation_{result.weights}"
        with TensorBoardWriter(folder) as writer:
            writer.write_scalars(result.step, {k: s.value for k, s in result.scores.items()})
        self._results.append(result)
        value = result.scores[self._evaluator.primary].value
        tqdm.write(
            f"step {result.step:>7,} ({result.weights})  {self._evaluator.primary} {value:.4g}  "
            f"({result.seconds:.0f} s)"
        )

    def _checkpoint_digest(self, step: int) -> str:
        leaves = read_record(self._checkpoints, step).leaves
        return hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()[:16]

    def _check_steps(self, steps: Sequence[int] | None) -> None:
        there = retention.committed_steps(self._checkpoints)
        missing = sorted(set(steps or ()) - set(there))
        if missing:
            raise CheckpointError(
                f"{self._checkpoints} has no checkpoint of step {', '.join(map(str, missing))}; "
                f"it has {', '.join(map(str, there)) or 'none yet'}"
            )

    def _forget_lost_pins(self) -> None:
        """Remove the pins of steps that a run has left behind, restored from an older one."""
        there = retention.committed_steps(self._checkpoints)
        for step in retention.pinned_steps(self._checkpoints, _PENDING) - set(there):
            retention.unpin(self._checkpoints, step, _PENDING)

    def _pin_pending(self, steps: Sequence[int] | None, recipe_id: str) -> list[int]:
        """Return the steps that lack a result, oldest first, after making sure that they stay."""
        pending = []
        for step in retention.committed_steps(self._checkpoints):
            asked_for = steps is None or step in steps
            if not asked_for or step in self._damaged:
                continue
            if not retention.pin(self._checkpoints, step, _PENDING):
                continue  # training was quicker
            try:
                missing = self._missing(step, recipe_id)
            except CheckpointError as error:
                self._damaged[step], missing = str(error), []
            if missing:
                pending.append(step)
            else:
                retention.unpin(self._checkpoints, step, _PENDING)
        return pending

    def _pin_best(self) -> None:
        best = best_result(self._results.read(), self._evaluator.primary)
        if best is None or not retention.pin(self._checkpoints, best.step, _BEST):
            return
        for step in retention.pinned_steps(self._checkpoints, _BEST) - {best.step}:
            retention.unpin(self._checkpoints, step, _BEST)

    def _is_finished(self) -> bool:
        steps = retention.committed_steps(self._checkpoints)
        if not steps:
            return False
        last_step = read_record(self._checkpoints, steps[-1]).extra.get("num_train_steps")
        return last_step is not None and steps[-1] >= last_step
