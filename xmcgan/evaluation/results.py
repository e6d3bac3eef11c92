"""Scores of checkpoints on disk, and what they say: a table, curves, and how to repeat them.

WORKDIR/evaluation/results.jsonl     one line per checkpoint and kind of weights
WORKDIR/evaluation/recipes/ID.json   how the scores of a line were made
WORKDIR/evaluation/report.md         the table, for people
WORKDIR/evaluation/curves.png        every score over training steps
WORKDIR/evaluation/manifest.json     recipe, captions, checkpoints and scores, to repeat them
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.figures import add_legend, draw_panels
from xmcgan.utils.files import atomic_file, parsing, read_json, write_text
from xmcgan.utils.provenance import provenance
from xmcgan.utils.statistics import Score
from xmcgan.utils.tables import aligned_table, markdown_table

Weights = Literal["ema", "raw"]

_CURVES: dict[Weights, dict[str, Any]] = {
    "ema": {"color": "#1f6feb", "label": "averaged weights (EMA)"},
    "raw": {"color": "#d9822b", "label": "raw weights"},
}
# By suffix of a score: that of real images, and chance.
_REFERENCES: dict[str, dict[str, Any]] = {
    "_real": {"color": "#2a9d5c", "label": "real images"},
    "_shuffled": {"color": "#888888", "label": "shuffled captions"},
}


@dataclasses.dataclass(frozen=True)
class Result:
    """All scores of one checkpoint."""

    step: int
    weights: Weights
    recipe: str  # id of how the scores were made; scores of two recipes are not compared
    checkpoint: str  # digest of its arrays
    scores: dict[str, Score]  # by name, such as "fd-effnet-lite2/fd"
    time: float  # when it was finished, in seconds since 1970
    seconds: float  # how long it took

    @property
    def key(self) -> tuple[int, str, str, str]:
        """Evaluations with the same key are not repeated."""
        return self.step, self.weights, self.recipe, self.checkpoint


class ResultFile:
    """Results of `WORKDIR/evaluation`; the caller holds the lock of the folder."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._path = directory, directory / "results.jsonl"

    def read(self) -> list[Result]:
        """Whole results, in the order in which they were finished."""
        if not self._path.exists():
            return []
        results = []
        for number, line in enumerate(self._path.read_bytes().splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break  # a killed write, which `append` clears away
            what = "a result (delete the line to evaluate its checkpoint again)"
            with parsing(f"{self._path} line {number}", EvaluationError, what):
                results.append(_parse(line))
        return results

    def append(self, result: Result) -> None:
        """Add a result as one line, on the disk when this returns."""
        scores = {name: _to_json(name, score) for name, score in result.scores.items()}
        line = json.dumps(vars(result) | {"scores": scores}) + "\n"
        kept = self._path.read_bytes() if self._path.exists() else b""
        with atomic_file(self._path) as file:
            file.write(kept[: kept.rfind(b"\n") + 1])  # drop half a line of a killed write
            file.write(line.encode())

    def write_recipe(self, recipe: dict[str, Any]) -> str:
        """Write a recipe, once, and return its id."""
        text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = self._directory / "recipes" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        return name

    def read_recipe(self, name: str) -> dict[str, Any]:
        """Recipe of an id; raises EvaluationError if the file is missing or damaged."""
        path = self._directory / "recipes" / f"{name}.json"
        return read_json(path, EvaluationError, "a recipe")


def _to_json(name: str, score: Score) -> dict[str, Any]:
    return {"name": name.rpartition("/")[2], **vars(score)}


def _parse(line: bytes) -> Result:
    fields = json.loads(line)
    for score in fields["scores"].values():
        del score["name"]
    fields["scores"] = {name: Score(**score) for name, score in fields["scores"].items()}
    result = Result(**fields)
    texts = (result.weights, result.recipe, result.checkpoint)
    numbers = (result.time, result.seconds, *(score.value for score in result.scores.values()))
    is_valid = type(result.step) is int and all(isinstance(text, str) for text in texts)
    if not is_valid or not all(isinstance(number, int | float) for number in numbers):
        raise TypeError("a field is of another type")
    return result


def best_result(results: Sequence[Result], name: str) -> Result | None:
    """Best result of averaged weights by one score, of the last recipe."""
    averaged = of_last_recipe([r for r in results if r.weights == "ema" and name in r.scores])
    return _best(averaged, name) if averaged else None


def _best(results: Sequence[Result], name: str) -> Result:
    choose = min if results[0].scores[name].better == "lower" else max
    return choose(results, key=lambda result: result.scores[name].value)


def of_last_recipe(results: Sequence[Result]) -> list[Result]:
    """The newest result of each step and kind of weights made as the last one, in order of step."""
    found = {(r.step, r.weights): r for r in results if r.recipe == results[-1].recipe}
    return [found[key] for key in sorted(found)]


def write_report(workdir: Path) -> str:
    """Write the report of the last recipe; return the table and where the files are."""
    directory = workdir / "evaluation"
    file = ResultFile(directory)
    results = of_last_recipe(file.read())
    if not results:
        raise EvaluationError(
            f"{directory} has no results yet; run\n  python scripts/eval_fid.py --workdir {workdir}"
        )
    recipe_id = results[-1].recipe
    recipe = file.read_recipe(recipe_id)
    images = f"{recipe['samples']:,} images at {recipe['image_size']} px"
    captions = f"captions of {recipe['data']['data']} ({recipe['data']['split']})"
    title = f"{images} from {captions}, recipe {recipe_id}"
    table, notes = result_rows(results), _notes(results[-1].scores)
    markdown = ["# Evaluation", "", title, "", *markdown_table(table), *notes]
    write_text(directory / "report.md", "\n".join([*markdown, "", "![curves](curves.png)", ""]))
    with atomic_file(directory / "curves.png") as file:
        curves(results, title).savefig(file, format="png", dpi=100)
    manifest = {
        "recipe_id": recipe_id,
        "recipe": recipe,
        "captions": "captions.jsonl",
        "report_made_with": provenance(),
        "checkpoints": [
            {"step": r.step, "weights": r.weights, "sha256": r.checkpoint, "seconds": r.seconds}
            for r in results
        ],
        "scores": {
            f"{r.step}/{r.weights}": {name: _to_json(name, s) for name, s in r.scores.items()}
            for r in results
        },
    }
    write_text(directory / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    text = "\n".join([title, "", *aligned_table(table), *notes])
    return f"{text}\n\nreport.md, curves.png and manifest.json in {directory}"


def result_rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Rows of the table: newest averaged and raw value and the best, of each score."""
    rows = [("score", "last (EMA)", "95 % interval", "last (raw)", "best (EMA)", "at step", "")]
    for name in _names(results):
        averaged, raw = (
            [r for r in results if r.weights == weights and name in r.scores] for weights in _CURVES
        )
        last, interval, best, at = "-", "-", "-", "-"
        if averaged:
            score = averaged[-1].scores[name]
            last = number(score.value)
            if score.low is not None and score.high is not None:
                interval = f"{number(score.low)} to {number(score.high)}"
            if not name.endswith(tuple(_REFERENCES)):
                result = _best(averaged, name)
                best, at = number(result.scores[name].value), f"{result.step:,}"
        last_raw = number(raw[-1].scores[name].value) if raw else "-"
        rows.append((name, last, interval, last_raw, best, at, _direction(results, name)))
    return rows


def curves(results: Sequence[Result], title: str) -> Figure:
    """Each score over training steps, with its interval and its references."""
    names = [name for name in _names(results) if not name.endswith(tuple(_REFERENCES))]
    figure, axes = draw_panels(len(names), title, (4.2, 2.8), columns=3)
    for axis, name in zip(axes, names, strict=True):
        _plot(axis, results, name)
    add_legend(figure, axes)
    return figure


def _plot(axis: Axes, results: Sequence[Result], name: str) -> None:
    for weights, style in _CURVES.items():
        found = {
            r.step: r.scores[name] for r in results if r.weights == weights and name in r.scores
        }
        steps, scores = [*found], found.values()
        if found:
            axis.plot(steps, [score.value for score in scores], "o-", markersize=3, **style)
        if found and all(score.low is not None for score in scores):
            low, high = np.array([(score.low, score.high) for score in scores]).T
            axis.fill_between(steps, low, high, color=style["color"], alpha=0.18, linewidth=0)
            axis.vlines(steps, low, high, color=style["color"], alpha=0.4, linewidth=1)
    for suffix, style in _REFERENCES.items():
        reference = [r.scores[name + suffix].value for r in results if name + suffix in r.scores]
        if reference:
            axis.axhline(reference[-1], linestyle="--", linewidth=1, **style)
    axis.set_title(f"{name}  ({_direction(results, name)})", fontsize=9)
    axis.set_xlabel("training step", fontsize=8)


def number(value: float) -> str:
    """Four significant digits, without an exponent if possible."""
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def score_table(scores: Mapping[str, Score], recipe: Mapping[str, Any]) -> str:
    """Scores of folders as aligned lines, then what was compared."""
    verified = ", UNVERIFIED" if recipe.get("weights_verified") is False else ""
    lines = [
        *score_lines(scores),
        "",
        f"protocol  {recipe.get('protocol', 'of the statistics')}",
        f"weights   sha256 {recipe.get('weights_sha256', 'unknown')}{verified}",
    ]
    for side in ("real", "fake"):
        images = recipe[side]
        num = "?" if images["num_images"] is None else images["num_images"]
        prepared = images.get("preparation", "preparation unknown")
        source = images.get("statistics") or images["source"]
        lines.append(f"{side}      {source} ({num} images, {prepared})")
    return "\n".join(lines)


def score_lines(scores: Mapping[str, Score]) -> list[str]:
    """Aligned lines: one per score with its interval, then the notes."""
    rows = [("score", "value", "95 % interval", "better")]
    for name, score in scores.items():
        interval = "-" if score.low is None else f"{score.low:.4f} to {score.high:.4f}"
        flattered = " (flattered)" if score.flattered else ""
        rows.append((f"{name}{flattered}", f"{score.value:.4f}", interval, score.better))
    return [*aligned_table(rows), *_notes(scores)]


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.scores))


def _direction(results: Sequence[Result], name: str) -> str:
    scores = [r.scores[name] for r in results if name in r.scores]
    flattered = ", flattered" if any(score.flattered for score in scores) else ""
    return f"{scores[0].better} is better{flattered}"


def _notes(scores: Mapping[str, Score]) -> list[str]:
    lines = [f"{name}: {score.note}" for name, score in scores.items() if score.note]
    if any(score.flattered for score in scores.values()):
        lines.append(
            "flattered: training used the network of this protocol, so that the score rises faster "
            "than the images get better; judge by another protocol"
        )
    return ["", *lines] if lines else []
