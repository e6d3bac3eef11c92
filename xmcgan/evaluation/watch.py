"""The evaluation job: scores of the checkpoints of a run, during its training or after it.

It may be killed at any time: a checkpoint has a whole result or none, and is pinned until it has
one, so training does not delete it. Process 0 decides which checkpoint comes next, and writes.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from xmcgan.errors import AgreedError, CheckpointError
from xmcgan.evaluation.evaluator import Evaluator, Options
from xmcgan.evaluation.metrics.diversity import ALIKE
from xmcgan.evaluation.metrics.retrieval import RETRIEVALS
from xmcgan.evaluation.results import Result, ResultFile, Weights, best_result
from xmcgan.sampling.sample_files import check_writable, part_of
from xmcgan.sampling.sampler import load_generator
from xmcgan.training import checkpoint
from xmcgan.training.checkpoint import checkpoint_digest, read_record
from xmcgan.training.logging import TensorBoardWriter
from xmcgan.utils.distributed import broadcast_from_host0, is_host0, raise_on_all
from xmcgan.utils.files import lock_workdir, write_text

POLL_SECONDS = 10.0
_PENDING, _BEST = "evaluation", "best"  # reasons of pins


class EvaluationJob:
    """Evaluation of the checkpoints of one workdir, whose training may still run.

    Only of steps that `every` divides, and of the run's last one. `save_samples` is a folder or a
    zip for the scored images; a step whose samples are not there is scored once more.
    """

    def __init__(
        self,
        workdir: Path,
        options: Options,
        *,
        every: int = 1,
        newest_first: bool = False,
        save_samples: Path | None = None,
    ) -> None:
        if save_samples:
            check_writable(save_samples)
        self._every, self._newest_first, self._save = every, newest_first, save_samples
        self._workdir, self._weights = workdir, options.weights
        self._directory = workdir / "evaluation"
        self._checkpoints = workdir / "checkpoints"
        self._evaluator = Evaluator(workdir, options)
        self._results = ResultFile(self._directory)
        self._recipe_id = ""  # known to process 0
        self._damaged: dict[int, str] = {}  # steps that cannot be evaluated, and why

    @classmethod
    def in_training(cls, workdir: Path, config: ConfigDict) -> "EvaluationJob":
        """The job that a training process runs itself, as `config.evaluation` asks."""
        chosen = config.evaluation
        options = Options(
            metrics=chosen.training_metrics.split(",") if chosen.training_metrics else None,
            num_samples=chosen.training_samples or None,
            weights=("ema",),
        )
        return cls(workdir, options, every=chosen.every_steps)

    def run(self, steps: Sequence[int] | None = None, *, watch: bool = False) -> int:
        """Evaluate `steps` (None: all) that have no result; return how many results were added.

        `watch` waits for more, until the run's last step has been evaluated.
        """
        with contextlib.ExitStack() as held:
            with raise_on_all():
                if is_host0():
                    self._directory.mkdir(parents=True, exist_ok=True)
                    held.enter_context(lock_workdir(self._directory))
                    self._prepare(steps)
            # Before the first image is sampled: an error in the real ones shows now.
            self._evaluator.extract_references()
            added = 0
            while True:
                pending, is_last = broadcast_from_host0(
                    lambda: (self._next(steps), not watch or self._is_finished())
                )
                if pending:
                    added += self._evaluate_step(*pending)
                elif is_last:
                    break
                else:
                    time.sleep(POLL_SECONDS)
        with raise_on_all():
            if self._damaged and is_host0():
                faults = "\n".join(self._damaged.values())
                raise CheckpointError(
                    f"{added} results were added; these steps have none:\n{faults}"
                )
        return added

    def _prepare(self, steps: Sequence[int] | None) -> None:
        there = checkpoint.committed_steps(self._checkpoints)
        if missing := sorted(set(steps or ()) - set(there)):
            raise CheckpointError(
                f"{self._checkpoints} has no checkpoint of step {', '.join(map(str, missing))}; "
                f"it has {', '.join(map(str, there)) or 'none yet'}"
            )
        self._recipe_id = self._results.write_recipe(self._evaluator.recipe())
        write_text(self._directory / "captions.jsonl", self._evaluator.manifest.text)
        # Pins of steps that a run has left behind, restored from an older one.
        for step in checkpoint.pinned_steps(self._checkpoints, _PENDING) - set(there):
            checkpoint.unpin(self._checkpoints, step, _PENDING)
        self._next(steps)

    def _next(self, steps: Sequence[int] | None) -> tuple[int, list[Weights]] | None:
        """The next step that lacks results, and for which weights; all such steps are pinned."""
        pending: list[tuple[int, list[Weights]]] = []
        done = {result.key for result in self._results.read()}
        for step in checkpoint.committed_steps(self._checkpoints):
            if step in self._damaged or (steps is not None and step not in steps):
                continue
            if step % self._every and not self._is_last(step):
                continue
            if not checkpoint.pin(self._checkpoints, step, _PENDING):
                continue  # training was quicker
            try:
                digest = checkpoint_digest(self._checkpoints, step)
            except CheckpointError as error:
                self._damaged[step] = str(error)
                checkpoint.unpin(self._checkpoints, step, _PENDING)
                continue
            key = self._recipe_id, digest
            lacking: list[Weights] = []
            for weights in self._weights:
                samples = self._sample_path(step, weights)
                if (step, weights, *key) not in done or (samples and not samples.exists()):
                    lacking.append(weights)
            if lacking:
                pending.append((step, lacking))
            else:
                checkpoint.unpin(self._checkpoints, step, _PENDING)
        return pending[-1 if self._newest_first else 0] if pending else None

    def _sample_path(self, step: int, weights: Weights) -> Path | None:
        return self._save and part_of(self._save, f"step_{step}_{weights}")

    def _is_last(self, step: int) -> bool:
        last_step = read_record(self._checkpoints, step).extra.get("num_train_steps")
        return last_step is not None and step >= last_step

    def _evaluate_step(self, step: int, lacking: list[Weights]) -> int:
        """Add the results that a step lacks; return how many."""
        for number, weights in enumerate(lacking):
            start = time.time()
            try:
                with raise_on_all():
                    variables = load_generator(
                        self._evaluator.sampler,
                        self._checkpoints,
                        step,
                        raw=weights == "raw",
                        raw_statistics=self._evaluator.config.evaluation.raw_statistics,
                    )
                    digest = checkpoint_digest(self._checkpoints, step)
            except (CheckpointError, AgreedError) as error:
                self._damaged[step] = str(error)
                return number
            path = self._sample_path(step, weights)
            scores = self._evaluator.score(variables, f"step {step:,} ({weights})", path)
            with raise_on_all():
                if is_host0():
                    times = round(time.time(), 3), round(time.time() - start, 3)
                    self._write(Result(step, weights, self._recipe_id, digest, scores, *times))
        return len(lacking)

    def _write(self, result: Result) -> None:
        # TensorBoard first: a result that is in the file is never evaluated again.
        folder = self._workdir / "tensorboard" / f"evaluation_{result.weights}"
        with TensorBoardWriter(folder) as writer:
            writer.write_scalars(result.step, {k: s.value for k, s in result.scores.items()})
        self._results.append(result)
        primary = next(iter(result.scores))
        self._print(result, primary)
        best = best_result(self._results.read(), primary)
        if best is not None and checkpoint.pin(self._checkpoints, best.step, _BEST):
            for step in checkpoint.pinned_steps(self._checkpoints, _BEST) - {best.step}:
                checkpoint.unpin(self._checkpoints, step, _BEST)

    def _print(self, result: Result, primary: str) -> None:
        prefix = primary.partition("/")[0]
        shown = dict.fromkeys([primary, *(f"{prefix}/{name}" for name in RETRIEVALS)])
        found = {name: result.scores[name] for name in shown if name in result.scores}
        values = [f"{name.partition('/')[2]} {score.value:.4g}" for name, score in found.items()]
        flattered = "  (flattered)" if found[primary].flattered else ""
        tqdm.write(
            f"step {result.step:>7,} ({result.weights})  {prefix}: {'  '.join(values)}{flattered}  "
            f"({result.seconds:.0f} s)"
        )
        ratio = result.scores.get(f"{prefix}/diversity_ratio")
        if ratio and ratio.value < ALIKE:
            tqdm.write(f"  warning: {ratio.note}")

    def _is_finished(self) -> bool:
        steps = checkpoint.committed_steps(self._checkpoints)
        return bool(steps) and self._is_last(steps[-1])
