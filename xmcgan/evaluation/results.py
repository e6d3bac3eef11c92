"""Results of evaluations on disk: one whole line for a checkpoint, or none.

    WORKDIR/evaluation/results.jsonl      a line a checkpoint and kind of weights
    WORKDIR/evaluation/recipes/ID.json    how the scores of a line were made

A line is appended after the last score is known, so that an evaluation which was killed leaves no
partial result.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.scores import Score
from xmcgan.utils.files import write_text

Weights = Literal["ema", "raw"]


@dataclasses.dataclass(frozen=True)
class Result:
    """Hold all scores of one checkpoint.

    Attributes:
        step: the training step.
        weights: "ema" (the averaged generator) or "raw".
        recipe: id of how the scores were made; scores of two recipes are not compared.
        checkpoint: digest of the checkpoint's arrays.
        scores: by name, such as "fd-effnet-lite0/fd".
        time: when it was finished, in seconds since 1970.
        seconds: how long it took.
    """

    step: int
    weights: Weights
    recipe: str
    checkpoint: str
    scores: dict[str, Score]
    time: float
    seconds: float

    @property
    def key(self) -> tuple[int, str, str, str]:
        """Return what makes another evaluation the same as this one."""
        return self.step, self.weights, self.recipe, self.checkpoint


class ResultFile:
    """Read and append results; the caller holds the lock of the folder.

    Args:
        directory: `WORKDIR/evaluation`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / "results.jsonl"

    def read(self) -> list[Result]:
        """Return all whole results, in the order in which they were finished.

        Raises:
            EvaluationError: a line that ends is no result.
        """
        if not self._path.exists():
            return []
        results = []
        for number, line in enumerate(self._path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break  # a killed write, which `append` clears away
            try:
                results.append(_parse(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise EvaluationError(
                    f"{self._path} line {number} is no result ({error}); delete the line to "
                    "evaluate its checkpoint again"
                ) from None
        return results

    def append(self, result: Result) -> None:
        """Add a result as one line, on the disk when this returns."""
        line = json.dumps(dataclasses.asdict(result)) + "\n"
        with self._path.open("a+b") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def write_recipe(self, recipe: dict[str, Any]) -> str:
        """Write how scores are made, once, and return its id."""
        text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = self._directory / "recipes" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        return name

    def read_recipe(self, name: str) -> dict[str, Any]:
        """Read a recipe by its id.

        Raises:
            EvaluationError: the file is missing or damaged.
        """
        path = self._directory / "recipes" / f"{name}.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path} cannot be read: {error}") from None


def _parse(line: bytes) -> Result:
    fields = json.loads(line)
    scores = {name: Score(**score) for name, score in fields.pop("scores").items()}
    result = Result(scores=scores, **fields)
    texts = (result.weights, result.recipe, result.checkpoint)
    numbers = (result.time, result.seconds, *(score.value for score in scores.values()))
    if (
        type(result.step) is not int
        or not all(isinstance(text, str) for text in texts)
        or not all(isinstance(number, int | float) for number in numbers)
    ):
        raise TypeError("a field is of another type")
    return result


def best_result(results: list[Result], metric: str) -> Result | None:
    """Return the best result by one metric, of the recipe that was used last; averaged weights.

    Args:
        results: in the order in which they were finished.
        metric: name of a score.
    """
    averaged = [r for r in results if r.weights == "ema" and metric in r.scores]
    comparable = [r for r in averaged if r.recipe == averaged[-1].recipe]
    if not comparable:
        return None
    sign = 1 if comparable[0].scores[metric].better == "lower" else -1
    return min(comparable, key=lambda r: sign * r.scores[metric].value)
