"""The ablation table as ablation.md, with all numbers as ablation.json, and as ablation.png."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from xmcgan.errors import EvaluationError, listed
from xmcgan.evaluation.figures import add_legend, draw_panels
from xmcgan.evaluation.protocols import FeatureProtocol
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import BASELINE, Cell
from xmcgan.utils.files import write_text
from xmcgan.utils.provenance import provenance
from xmcgan.utils.statistics import Estimate
from xmcgan.utils.tables import markdown_table

# Scores of the table beside the Frechet distance, where the evaluation has them.
_SHOWN = (
    "{protocol}/retrieval@1", "{protocol}/retrieval@10", "{protocol}/diversity",
    "clip/score", "clip/r_precision",
    "shapes/colors", "shapes/objects", "shapes/background", "shapes/positions", "shapes/placement",
)  # fmt: skip
# Scores that put another one in proportion: what real images reach, and what chance gives.
_RULERS = {"_real": "real images", "_shuffled": "shuffled captions"}
Results = Mapping[int, Result]  # of one combination of losses, by seed
Row = Mapping[str, Any]  # as ablation.json has it

_SINGLE = (
    "Intervals: 95 %, the evaluation's bootstrap over images. With one seed nothing tells how much "
    "training varies, so that differences have none."
)
_SEVERAL = (
    "Intervals: 95 %, Student's t over seeds; differences are taken within seeds, whose runs begin "
    "alike and see the same batches. What has one seed only has the evaluation's bootstrap over "
    "images instead, and no interval of its difference."
)


def students_interval(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval, if the values are several and differ."""
    if len(set(values)) < 2:
        return Estimate(values[0])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return Estimate(sum(values) / len(values), float(low), float(high), "seeds")


def compare_scores(results: Results, baseline: Results) -> dict[str, dict[str, Any]]:
    """Return by score its `values`, one per seed, their `mean`, and `difference` from the baseline.

    Runs of one seed begin with the same parameters, as far as they have them in common, and see
    the same batches, so their scores rise and fall together: differences are within seeds.
    """
    compared = {}
    for name in dict.fromkeys(name for result in results.values() for name in result.scores):
        ours, theirs = (
            {seed: result.scores[name] for seed, result in side.items() if name in result.scores}
            for side in (results, baseline)
        )
        values = [score.value for score in ours.values()]
        mean = students_interval(values)
        if len(values) == 1:  # says nothing of how training varies
            (score,) = ours.values()
            source = "" if score.low is None else "images"
            mean = Estimate(score.value, score.low, score.high, source)
        within = [ours[seed].value - theirs[seed].value for seed in ours if seed in theirs]
        difference = students_interval(within) if within and results is not baseline else None
        compared[name] = {"values": values, "mean": mean, "difference": difference}
    return compared


def write_report(
    cells: Sequence[Cell],
    found: Mapping[Path, Result],
    protocol: FeatureProtocol,
    failures: Sequence[str],
    out: Path,
) -> str:
    """Write the table of all runs that have a score (`found`, by workdir), and return its text."""
    results = {
        losses: {c.seed: found[c.workdir] for c in cells
                 if c.losses == losses and c.workdir in found}
        for losses in dict.fromkeys(cell.losses for cell in cells)
    }  # fmt: skip
    baseline = results[cells[0].losses]  # `plan_cells` begins with it
    rows = [
        {"losses": losses, "seeds": [*reached], "scores": compare_scores(reached, baseline)}
        for losses, reached in results.items()
    ]
    made = _provenance(cells, found)
    better = {n: score.better for result in found.values() for n, score in result.scores.items()}
    shown = (f"{protocol.name}/{protocol.label.lower()}", *_SHOWN)
    names = [n for each in shown if (n := each.format(protocol=protocol.name)) in better]
    seeds = f"{made['seeds']} seed{'s' * (made['seeds'] > 1)}"
    heading = f"{made['config']}: {made['steps']:,} steps, {seeds}"
    directions = [
        f"{way.capitalize()} is better: {', '.join(map(_label, those))}"
        for way in ("lower", "higher")
        if (those := [name for name in names if better[name] == way])
    ]
    notes = ["; ".join(directions), _SEVERAL if made["seeds"] > 1 else _SINGLE, *_how(made)]
    if missing := [cell.name for cell in cells if cell.workdir not in found]:
        notes.append(f"No score yet: {'; '.join(missing)}")
    notes += [f"Failed: {line}" for line in failures]
    lines = ["# Ablation of the contrastive losses", "", heading, ""]
    lines += [*markdown_table(_means(rows, names)), ""]
    lines += [f"## Difference to `{BASELINE}`, the hinge loss alone", ""]
    differences = [[_name(row), *_texts(row, names, "difference", "+")] for row in rows[1:]]
    lines += markdown_table([["losses", *map(_label, names)], *differences])
    lines += ["", *(f"- {note}" for note in notes), ""]
    content = {"rows": rows, "failures": list(failures), "protocol": made}
    text = json.dumps(content, indent=2, allow_nan=False, default=dataclasses.asdict)
    write_text(out / "ablation.json", text + "\n")
    write_text(out / "ablation.md", "\n".join([*lines, "![as a picture](ablation.png)", ""]))
    chart(rows, {name: better[name] for name in names}, heading).savefig(
        out / "ablation.png", dpi=110
    )
    return "\n".join(lines)


def _provenance(cells: Sequence[Cell], found: Mapping[Path, Result]) -> dict[str, Any]:
    """Return how all runs were trained and scored, or refuse to compare what does not compare."""
    workdirs = {result.recipe: workdir for workdir, result in found.items()}
    if len(workdirs) > 1:
        lines = [f"recipe {recipe}: {workdir}" for recipe, workdir in workdirs.items()]
        raise EvaluationError(
            "runs of this table were scored in different ways; delete `evaluation/` in those to be "
            f"scored again, such as{listed(lines)}"
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
    cells += [[_name(row), f"{len(row['seeds'])}", *_texts(row, names, "mean")] for row in rows]
    for suffix, kind in _RULERS.items():
        values = [_ruler(rows, name + suffix) for name in names]
        if any(values):
            cells.append([kind, "", *map(_text, values, names)])
    return cells


def _texts(row: Row, names: Sequence[str], part: str, sign: str = "") -> list[str]:
    return [_text(row["scores"].get(name, {}).get(part), name, sign) for name in names]


def _name(row: Row) -> str:
    return row["losses"].replace("+", " + ")  # a terminal may break it at spaces


def _scale(name: str) -> int:
    """Return what a score is multiplied with to be shown: shares are in percent."""
    return 100 if name.startswith("shapes/") or "/retrieval@" in name else 1


def _label(name: str) -> str:
    return name.rpartition("/")[2] + (" (%)" if _scale(name) == 100 else "")


def _text(found: Estimate | None, name: str, sign: str = "") -> str:
    digits = 3 if name.endswith(("clip/score", "clip/r_precision", "/diversity")) else 2
    scale = _scale(name)
    return found.text(1 if scale == 100 else digits, scale, sign) if found else "-"


def _ruler(rows: Sequence[Row], name: str) -> Estimate | None:
    """Return the mean of a score over all runs, None if none has it."""
    values = [value for row in rows for value in row["scores"].get(name, {}).get("values", [])]
    return Estimate(sum(values) / len(values)) if values else None


def chart(rows: Sequence[Row], better: Mapping[str, str], heading: str) -> Figure:
    """Draw a panel per score of `better`: a line per row, with its mean, interval and seeds."""
    columns = 2 if len(better) == 4 else min(3, len(better))
    size = (4.7, 0.33 * len(rows) + 1.2)
    figure, panels = draw_panels(len(better), heading, size, columns, share_y=True)
    for panel, name in zip(panels, better, strict=True):
        _draw(panel, rows, name)
        panel.set_title(f"{_label(name)} ({better[name]} is better)", fontsize=10)
    panels[0].set_yticks(range(len(rows)), [row["losses"] for row in rows], fontsize=9)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    add_legend(figure, panels)
    return figure


def _draw(panel: Axes, rows: Sequence[Row], name: str) -> None:
    scale, shown = _scale(name), []
    for height, row in enumerate(rows):
        if name not in row["scores"]:
            continue
        mean, seeds = row["scores"][name]["mean"], scale * np.array(row["scores"][name]["values"])
        shown += [*seeds]
        if len(seeds) > 1:
            panel.plot(seeds, [height] * len(seeds), "o", color="#9bbcf2", ms=5, label="a seed")
        if mean.low is not None:
            panel.hlines(height, scale * mean.low, scale * mean.high, "#1f6feb", lw=1.6)
        label = "mean, 95 % interval"
        panel.plot([scale * mean.value], [height], "D", color="#0b3d91", ms=5, label=label)
        if row["losses"] == BASELINE:
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
