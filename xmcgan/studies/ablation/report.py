"""The ablation table on disk.

OUT/ablation.md      the tables and how they were made, for people
OUT/ablation.json    the same numbers of every seed, and all other scores
OUT/ablation.png     the scores as a picture
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from xmcgan.errors import EvaluationError, listed
from xmcgan.evaluation.protocols import FeatureProtocol
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import BASELINE, Cell
from xmcgan.studies.estimates import Estimate
from xmcgan.utils.files import write_text
from xmcgan.utils.provenance import provenance
from xmcgan.utils.statistics import Score
from xmcgan.utils.tables import markdown_table

# Scores of the table beside the Frechet distance, where the evaluation has them.
_SHOWN = (
    "{protocol}/retrieval@1", "{protocol}/retrieval@10", "{protocol}/diversity",
    "clip/score", "clip/r_precision",
    "shapes/colors", "shapes/objects", "shapes/background", "shapes/positions", "shapes/placement",
)  # fmt: skip
# Scores that put another one in proportion: what real images reach, and what chance gives.
_RULERS = {"_real": "real images", "_shuffled": "shuffled captions"}
_SINGLE = (
    "Intervals: 95 %, the evaluation's bootstrap over images. With one seed nothing tells how much "
    "training varies, so that differences have none."
)
_SEVERAL = (
    "Intervals: 95 %, Student's t over seeds; differences are taken within seeds, whose runs begin "
    "alike and see the same batches. What has one seed only has the evaluation's bootstrap over "
    "images instead, and no interval of its difference."
)
_MAX_COLUMNS = 3


def students_interval(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval, if the values are several and differ."""
    if len(set(values)) < 2:
        return Estimate(values[0])
    test = stats.ttest_1samp(values, 0)
    low, high = test.confidence_interval(0.95)
    return Estimate(sum(values) / len(values), float(low), float(high), "seeds")


@dataclasses.dataclass(frozen=True)
class Row:
    """What one combination of losses reached: results by seed, of the runs that have one."""

    losses: str
    results: dict[int, Result]

    @property
    def label(self) -> str:
        """Name of the row, with spaces at which a terminal may break it."""
        return self.losses.replace("+", " + ")

    def scores(self, name: str) -> dict[int, Score]:
        """Return a score by seed, of the seeds that have it."""
        return {
            s: result.scores[name] for s, result in self.results.items() if name in result.scores
        }

    def values(self, name: str) -> list[float]:
        """Return the values of a score, one per seed."""
        return [score.value for score in self.scores(name).values()]

    def mean(self, name: str) -> Estimate | None:
        """Return the mean of a score over seeds, None if no run has it.

        One seed says nothing of how training varies: its interval is that of the evaluation.
        """
        scores = list(self.scores(name).values())
        if len(scores) == 1:
            source = "" if scores[0].low is None else "images"
            return Estimate(scores[0].value, scores[0].low, scores[0].high, source)
        return students_interval(self.values(name)) if scores else None

    def difference(self, name: str, baseline: "Row") -> Estimate | None:
        """Return how far a score lies from the baseline's, None if no seed has both.

        Runs of one seed begin with the same parameters, as far as they have them in common, and see
        the same batches, so their scores rise and fall together: differences are within seeds.
        """
        ours, theirs = self.scores(name), baseline.scores(name)
        within = [ours[seed].value - theirs[seed].value for seed in ours if seed in theirs]
        return students_interval(within) if within else None


def write_report(
    cells: Sequence[Cell],
    found: Mapping[Path, Result],
    protocol: FeatureProtocol,
    failures: Sequence[str],
    out: Path,
) -> str:
    """Write the table of all runs that have a score (`found`, by workdir), and return its text.

    Raises:
        EvaluationError: runs were scored in different ways.
    """
    rows = [
        Row(losses, {c.seed: found[c.workdir] for c in cells
                     if c.losses == losses and c.workdir in found})
        for losses in dict.fromkeys(cell.losses for cell in cells)
    ]  # fmt: skip
    made = _provenance(cells, found)
    named = {name for result in found.values() for name in result.scores}
    shown = (f"{protocol.name}/{protocol.label.lower()}", *_SHOWN)
    names = [n for each in shown if (n := each.format(protocol=protocol.name)) in named]
    seeds = f"{made['seeds']} seed{'s' * (made['seeds'] > 1)}"
    heading = f"{made['config']}: {made['steps']:,} steps, {seeds}"
    directions = [
        f"{way.capitalize()} is better: {', '.join(map(_label, those))}"
        for way in ("lower", "higher")
        if (those := [name for name in names if _better(rows, name) == way])
    ]
    notes = ["; ".join(directions), _SEVERAL if made["seeds"] > 1 else _SINGLE, *_how(made)]
    if missing := [cell.name for cell in cells if cell.workdir not in found]:
        notes.append(f"No score yet: {'; '.join(missing)}")
    notes += [f"Failed: {line}" for line in failures]
    lines = ["# Ablation of the contrastive losses", "", heading, ""]
    lines += [*markdown_table(_means(rows, names)), ""]
    lines += [f"## Difference to `{BASELINE}`, the hinge loss alone", ""]
    lines += [*markdown_table(_differences(rows, names)), "", *(f"- {note}" for note in notes), ""]
    content = {"rows": _json(rows), "failures": list(failures), "protocol": made}
    text = json.dumps(content, indent=2, allow_nan=False, default=dataclasses.asdict)
    write_text(out / "ablation.json", text + "\n")
    write_text(out / "ablation.md", "\n".join([*lines, "![as a picture](ablation.png)", ""]))
    chart(rows, names, heading).savefig(out / "ablation.png", dpi=110)
    return "\n".join(lines)


def _provenance(cells: Sequence[Cell], found: Mapping[Path, Result]) -> dict[str, Any]:
    """Return how all runs were trained and scored, or refuse to compare what does not compare."""
    workdirs = {result.recipe: workdir for workdir, result in found.items()}
    if len(workdirs) > 1:
        lines = [f"recipe {recipe}: {workdir}" for recipe, workdir in workdirs.items()]
        raise EvaluationError(
            "runs of this table were scored in different ways, by another version for instance; "
            f"delete `evaluation/` in those to be scored again, such as{listed(lines)}"
        )
    ((recipe_id, workdir),) = workdirs.items()
    recipe = ResultFile(workdir / "evaluation").read_recipe(recipe_id)
    first, measures = cells[0], recipe["measures"].values()
    return {
        "config": first.spec.replace(f"ablation={first.losses}", "").rstrip(":,"),
        "overrides": list(first.overrides),
        "steps": found[workdir].step,
        "batch_size": first.config.batch_size,
        "d_steps": first.config.d_steps,
        "seeds": len({cell.seed for cell in cells}),
        "weights": "ema",
        "samples": recipe["samples"],
        "data": recipe["data"],
        "text_encoder": recipe["text_encoder"]["weights"],
        "network_weights_sha256": [m["weights_sha256"] for m in measures if "weights_sha256" in m],
        "detector_sha256": [m["detector_sha256"] for m in measures if "detector_sha256" in m],
        "flattered": recipe.get("flattered", {}),
        "recipe": recipe_id,
        "cpu_cores": os.cpu_count(),
        **provenance(),
    }


def _how(made: dict[str, Any]) -> list[str]:
    data, images = made["data"], made["steps"] * made["batch_size"] * made["d_steps"]
    settings = "".join(f" --config.{override}" for override in made["overrides"])
    sha256 = [*made["network_weights_sha256"], *made["detector_sha256"]]
    return [
        *(f"Flattered: {name}, whose network training used ({part})"
          for name, part in made["flattered"].items()),
        f"Training: `--config {made['config']}{settings}`, {made['steps']:,} steps of "
        f"{made['batch_size']} images, d_steps {made['d_steps']} ({images:,} images in all), text "
        f"encoder {made['text_encoder']}, the same in every row",
        f"Scores: {made['samples']:,} images of the averaged weights after the last step, from "
        f"captions of {data['data']} ({data['split']}), recipe {made['recipe']}, sha256 of the "
        f"networks {', '.join(each[:16] for each in sha256)}",
        f"Made with version {made['package_version']}, commit {made['commit'] or 'unknown'}, jax "
        f"{made['jax_version']}, {made['device']}, {made['cpu_cores']} CPU cores: "
        f"`{made['command']}`",
    ]  # fmt: skip


def _means(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    """Return the header, the means of all rows, and the rulers below them."""
    cells = [["losses", "seeds", *map(_label, names)]]
    for row in rows:
        cells.append([row.label, f"{len(row.results)}", *(_text(row.mean(n), n) for n in names)])
    for suffix, kind in _RULERS.items():
        values = [_ruler(rows, name + suffix) for name in names]
        if any(values):
            shown = [_text(value, name) for value, name in zip(values, names, strict=True)]
            cells.append([kind, "", *shown])
    return cells


def _differences(rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    baseline, *others = rows  # `plan_cells` begins with it
    found = [[_text(row.difference(n, baseline), n, "+") for n in names] for row in others]
    cells = [[row.label, *texts] for row, texts in zip(others, found, strict=True)]
    return [["losses", *map(_label, names)], *cells]


def _json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    baseline = rows[0]
    content = []
    for row in rows:
        scores = {}
        for name in dict.fromkeys(n for result in row.results.values() for n in result.scores):
            difference = None if row is baseline else row.difference(name, baseline)
            values, mean = row.values(name), row.mean(name)
            scores[name] = {"values": values, "mean": mean, "difference": difference}
        content.append({"losses": row.losses, "seeds": list(row.results), "scores": scores})
    return content


def _scale(name: str) -> int:
    """Return what a score is multiplied with to be shown: shares are in percent."""
    return 100 if name.startswith("shapes/") or "/retrieval@" in name else 1


def _label(name: str) -> str:
    return name.rpartition("/")[2] + (" (%)" if _scale(name) == 100 else "")


def _text(found: Estimate | None, name: str, sign: str = "") -> str:
    digits = 3 if name.endswith(("clip/score", "clip/r_precision", "/diversity")) else 2
    scale = _scale(name)
    return found.text(1 if scale == 100 else digits, scale, sign) if found else "-"


def _better(rows: Sequence[Row], name: str) -> str:
    return next(score.better for row in rows for score in row.scores(name).values())


def _ruler(rows: Sequence[Row], name: str) -> Estimate | None:
    """Return the mean of a score over all runs, None if none has it."""
    values = [value for row in rows for value in row.values(name)]
    return Estimate(sum(values) / len(values)) if values else None


def chart(rows: Sequence[Row], names: Sequence[str], heading: str) -> Figure:
    """Draw a panel per score: a line per row, with its mean, interval and seeds."""
    columns = 2 if len(names) == 4 else min(_MAX_COLUMNS, len(names))
    lines = -(-len(names) // columns)
    size = (4.3 * columns + 1.2, lines * (0.33 * len(rows) + 1.2) + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for panel, name in zip(panels.flat, names, strict=False):
        _draw(panel, rows, name)
    for panel in list(panels.flat)[len(names) :]:
        panel.set_axis_off()
    panels[0, 0].set_yticks(range(len(rows)), [row.losses for row in rows], fontsize=9)
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    figure.suptitle(heading, fontsize=11)
    pairs = [zip(*panel.get_legend_handles_labels(), strict=True) for panel in figure.axes]
    handles = {label: handle for each in pairs for handle, label in each}  # each label once
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _draw(panel: Axes, rows: Sequence[Row], name: str) -> None:
    scale, shown = _scale(name), []
    for height, row in enumerate(rows):
        seeds = [scale * value for value in row.values(name)]
        shown += seeds
        if len(seeds) > 1:
            panel.plot(seeds, [height] * len(seeds), "o", color="#9bbcf2", ms=5, label="a seed")
        if (mean := row.mean(name)) is None:
            continue
        if mean.low is not None and mean.high is not None:
            panel.hlines(height, scale * mean.low, scale * mean.high, "#1f6feb", lw=1.6)
        label = "mean, 95 % interval"
        panel.plot([scale * mean.value], [height], "D", color="#0b3d91", ms=5, label=label)
        if row.losses == BASELINE:
            label = "without these losses"
            panel.axvline(scale * mean.value, color="#555555", ls="--", lw=1, label=label)
    if chance := _ruler(rows, f"{name}_shuffled"):
        shown.append(scale * chance.value)
        label = "chance (shuffled captions)"
        panel.axvline(shown[-1], color="#d9822b", ls=":", lw=1.6, label=label)
    # All seeds are shown; the wide intervals of few seeds may leave the panel.
    room = 0.75 * (max(shown) - min(shown)) or 1.0
    low, high = panel.get_xlim()
    panel.set_xlim(max(low, min(shown) - room), min(high, max(shown) + room))
    panel.set_title(f"{_label(name)} ({_better(rows, name)} is better)", fontsize=10)
    panel.tick_params(labelsize=9)
    panel.grid(axis="x", alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
