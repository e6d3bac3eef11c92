"""What the evaluations of a run say: a table, curves over training, and how to repeat them.

WORKDIR/evaluation/report.md       the table, for people
WORKDIR/evaluation/curves.png      every score over training steps
WORKDIR/evaluation/manifest.json   recipe, captions, checkpoints and scores, to repeat them
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.results import Result, ResultFile, Weights
from xmcgan.evaluation.scores import Score
from xmcgan.utils.files import write_text
from xmcgan.utils.provenance import provenance
from xmcgan.utils.tables import aligned_table, markdown_table

_COLUMNS = 3
_COLORS: dict[Weights, str] = {"ema": "#1f6feb", "raw": "#d9822b"}
_LABELS: dict[Weights, str] = {"ema": "averaged weights (EMA)", "raw": "raw weights"}
# Scores that are the ruler of another one: what real images reach, and what chance gives.
_RULERS = {"_real": ("real images", "#2a9d5c"), "_shuffled": ("shuffled captions", "#888888")}


def write_report(workdir: Path) -> str:
    """Write the report of a workdir's evaluations.

    Only the results of the recipe that was used last are shown; others would not compare.

    Args:
        workdir: of a training run.

    Returns:
        The table, and where the files are.

    Raises:
        EvaluationError: there are no results.
    """
    directory = workdir / "evaluation"
    file = ResultFile(directory)
    everything = file.read()
    if not everything:
        raise EvaluationError(
            f"{directory} has no results yet; run\n  python scripts/eval_fid.py --workdir {workdir}"
        )
    recipe_id = everything[-1].recipe
    results = newest(result for result in everything if result.recipe == recipe_id)
    recipe = file.read_recipe(recipe_id)
    title = (
        f"{recipe['samples']:,} images at {recipe['image_size']} px from captions of "
        f"{recipe['data']['data']} ({recipe['data']['split']}), recipe {recipe_id}"
    )
    table = score_lines(results)
    text = "\n".join([title, "", *aligned_table(table), *_notes(results)])
    write_text(directory / "report.md", _markdown(title, table, _notes(results)))
    curves(results, title).savefig(directory / "curves.png", dpi=100)
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
            f"{r.step}/{r.weights}": {name: vars(score) for name, score in r.scores.items()}
            for r in results
        },
    }
    write_text(directory / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return f"{text}\n\nreport.md, curves.png and manifest.json in {directory}"


def newest(results) -> list[Result]:
    """Return one result a step and kind of weights, the one finished last, in order of step."""
    found = {(result.step, result.weights): result for result in results}
    return [found[key] for key in sorted(found)]


def score_lines(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Return the rows of the table: newest averaged and raw value and the best, of each score."""
    rows = [("score", "last (EMA)", "95 % interval", "last (raw)", "best (EMA)", "at step", "")]
    averaged = [result for result in results if result.weights == "ema"]
    raw = [result for result in results if result.weights == "raw"]
    for name in _names(results):
        last = _last(averaged, name)
        best, step = _best(averaged, name)
        interval = "-"
        if last is not None and last.low is not None and last.high is not None:
            interval = f"{number(last.low)} to {number(last.high)}"
        direction = next(r.scores[name].better for r in results if name in r.scores)
        values = (last, _last(raw, name), best)
        shown = ["-" if score is None else number(score.value) for score in values]
        mark = ", flattered" if any(s.flattered for s in values if s) else ""
        rows.append(
            (name, shown[0], interval, shown[1], shown[2], step, f"{direction} is better{mark}")
        )
    return rows


def curves(results: Sequence[Result], title: str) -> Figure:
    """Draw each score over training steps, with its interval and its rulers.

    Args:
        results: of one recipe.
        title: stands above.
    """
    names = [name for name in _names(results) if not name.endswith(tuple(_RULERS))]
    rows = math.ceil(len(names) / _COLUMNS)
    figure = Figure(figsize=(4.2 * _COLUMNS, 2.8 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    for axis, name in zip(axes, names, strict=False):
        _draw(axis, results, name)
    for axis in list(axes)[len(names) :]:
        axis.set_axis_off()
    handles = {label: line for axis in figure.axes for line, label in
               zip(*axis.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.suptitle(title, fontsize=11)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )
    return figure


def _draw(axis: Axes, results: Sequence[Result], name: str) -> None:
    for weights, color in _COLORS.items():
        points = [
            (r.step, r.scores[name]) for r in results if r.weights == weights and name in r.scores
        ]
        if not points:
            continue
        steps = [step for step, _ in points]
        values = [score.value for _, score in points]
        axis.plot(steps, values, "o-", color=color, markersize=3, label=_LABELS[weights])
        known = [(step, s.low, s.high) for step, s in points if s.low is not None]
        if known:
            at, low, high = zip(*known, strict=True)
            axis.fill_between(at, low, high, color=color, alpha=0.18, linewidth=0)
            axis.vlines(at, low, high, color=color, alpha=0.4, linewidth=1)
    for suffix, (label, color) in _RULERS.items():
        ruler = [r.scores[name + suffix].value for r in results if name + suffix in r.scores]
        if ruler:
            axis.axhline(ruler[-1], color=color, linestyle="--", linewidth=1, label=label)
    direction = next(r.scores[name].better for r in results if name in r.scores)
    mark = (
        ", flattered" if any(r.scores[name].flattered for r in results if name in r.scores) else ""
    )
    axis.set_title(f"{name}  ({direction} is better{mark})", fontsize=9)
    axis.set_xlabel("training step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def number(value: float) -> str:
    """Return a value with four significant digits, and no exponent where it can be avoided."""
    return f"{value:.4g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.1e}"


def _names(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result.scores))


def _last(results: Sequence[Result], name: str) -> Score | None:
    found = [result.scores[name] for result in results if name in result.scores]
    return found[-1] if found else None


def _best(results: Sequence[Result], name: str) -> tuple[Score | None, str]:
    found = [(result.scores[name], result.step) for result in results if name in result.scores]
    if not found or name.endswith(tuple(_RULERS)):
        return None, "-"
    sign = 1 if found[0][0].better == "lower" else -1
    score, step = min(found, key=lambda pair: sign * pair[0].value)
    return score, f"{step:,}"


def _notes(results: Sequence[Result]) -> list[str]:
    scores = results[-1].scores
    lines = [f"{name}: {score.note}" for name, score in scores.items() if score.note]
    if any(score.flattered for score in scores.values()):
        lines.append(
            "flattered: training used the network of this protocol, so that the score rises faster "
            "than the images get better; judge by another protocol"
        )
    return ["", *lines] if lines else []


def _markdown(title: str, rows: Sequence[tuple[str, ...]], notes: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Evaluation",
            "",
            title,
            "",
            *markdown_table(rows),
            *notes,
            "",
            "![curves](curves.png)",
            "",
        ]
    )
