"""The ablation table on the disk.

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

from xmcgan.errors import EvaluationError, listed
from xmcgan.evaluation.protocols import FeatureProtocol
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.chart import chart
from xmcgan.studies.ablation.plan import BASELINE, Cell
from xmcgan.studies.ablation.table import (
    Row,
    better,
    difference_cells,
    label,
    score_cells,
    shown_names,
)
from xmcgan.utils.files import write_text
from xmcgan.utils.provenance import provenance
from xmcgan.utils.tables import aligned_table, markdown_table

_SINGLE = (
    "Intervals: 95 %, the evaluation's bootstrap over images. With one seed nothing tells how much "
    "training varies, so that differences have none."
)
_SEVERAL = (
    "Intervals: 95 %, Student's t over seeds; differences are taken within seeds, whose runs begin "
    "alike and see the same batches. What has one seed only has the evaluation's bootstrap over "
    "images instead, and no interval of its difference."
)


def write_report(
    cells: Sequence[Cell],
    found: Mapping[Path, Result],
    protocol: FeatureProtocol,
    failures: Sequence[str],
    out: Path,
) -> str:
    """Write the table of all runs that have a score.

    Args:
        cells: the runs of the table.
        found: the scores by workdir, of one run at least.
        protocol: of the Frechet distance.
        failures: a line for each run that failed.
        out: folder to write.

    Returns:
        The tables, and where the files are.

    Raises:
        EvaluationError: runs were scored in different ways.
    """
    recipe = _one_recipe(found)
    rows = [
        Row(losses, {c.seed: found[c.workdir] for c in cells if _is_in(c, losses, found)})
        for losses in dict.fromkeys(cell.losses for cell in cells)
    ]
    names = shown_names(rows, f"{protocol.name}/{protocol.label.lower()}")
    made = _protocol(cells, next(iter(found.values())), recipe)
    missing = [cell.name for cell in cells if cell.workdir not in found]
    directions = [
        f"{way.capitalize()} is better: {', '.join(map(label, those))}"
        for way in ("lower", "higher")
        if (those := [name for name in names if better(rows, name) == way])
    ]
    notes = [
        "; ".join(directions),
        _SEVERAL if made["seeds"] > 1 else _SINGLE,
        *_protocol_lines(made),
    ]
    notes += [f"No score yet: {'; '.join(missing)}"] if missing else []
    notes += [f"Failed: {line}" for line in failures]
    seeds = f"{made['seeds']} seed{'s' * (made['seeds'] > 1)}"
    heading = f"{made['config']}: {made['steps']:,} steps, {seeds}"
    tables = score_cells(rows, names), difference_cells(rows, names)
    write_text(out / "ablation.md", _markdown(heading, tables, notes))
    content = {"rows": _values(rows), "failures": list(failures), "protocol": made}
    write_text(out / "ablation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
    chart(rows, names, heading).savefig(out / "ablation.png", dpi=110)
    scores, differences = (aligned_table(table) for table in tables)
    text = [heading, "", *scores, "", f"difference to {BASELINE!r}", "", *differences, "", *notes]
    return "\n".join([*text, "", f"ablation.md, ablation.json and ablation.png in {out}"])


def _is_in(cell: Cell, losses: str, found: Mapping[Path, Result]) -> bool:
    return cell.losses == losses and cell.workdir in found


def _one_recipe(found: Mapping[Path, Result]) -> dict[str, Any]:
    """Return how all runs were scored, or refuse to compare what does not compare."""
    workdirs: dict[str, Path] = {}
    for workdir, result in found.items():
        workdirs.setdefault(result.recipe, workdir)
    if len(workdirs) > 1:
        lines = [f"recipe {recipe}: {workdir}" for recipe, workdir in workdirs.items()]
        raise EvaluationError(
            "runs of this table were scored in different ways, by another version for instance; "
            f"delete `evaluation/` in those to be scored again, such as{listed(lines)}"
        )
    ((recipe, workdir),) = workdirs.items()
    return ResultFile(workdir / "evaluation").read_recipe(recipe)


def _protocol(cells: Sequence[Cell], result: Result, recipe: dict[str, Any]) -> dict[str, Any]:
    first = cells[0]
    config = first.config
    measures = recipe["measures"].values()
    return {
        "config": first.spec.replace(f"ablation={first.losses}", "").rstrip(":,"),
        "overrides": list(first.overrides),
        "steps": result.step,
        "batch_size": config.batch_size,
        "d_steps": config.d_steps,
        "seeds": len({cell.seed for cell in cells}),
        "weights": "ema",
        "samples": recipe["samples"],
        "data": recipe["data"],
        "text_encoder": recipe["text_encoder"]["weights"],
        "network_weights_sha256": [m["weights_sha256"] for m in measures if "weights_sha256" in m],
        "detector_sha256": [m["detector_sha256"] for m in measures if "detector_sha256" in m],
        "flattered": recipe.get("flattered", {}),
        "recipe": result.recipe,
        "cpu_cores": os.cpu_count(),
        **provenance(),
    }


def _protocol_lines(made: dict[str, Any]) -> list[str]:
    data, seen = made["data"], made["steps"] * made["batch_size"] * made["d_steps"]
    settings = "".join(f" --config.{override}" for override in made["overrides"])
    sha256 = [*made["network_weights_sha256"], *made["detector_sha256"]]
    flattered = [
        f"Flattered: {name}, whose network training used ({part})"
        for name, part in made["flattered"].items()
    ]
    return [
        *flattered,
        f"Training: `--config {made['config']}{settings}`, {made['steps']:,} steps of "
        f"{made['batch_size']} images, d_steps {made['d_steps']} ({seen:,} images in all), text "
        f"encoder {made['text_encoder']}, the same in every row",
        f"Scores: {made['samples']:,} images of the averaged weights after the last step, from "
        f"captions of {data['data']} ({data['split']}), recipe {made['recipe']}, sha256 of the "
        f"networks {', '.join(each[:16] for each in sha256)}",
        f"Made with version {made['package_version']}, commit {made['commit'] or 'unknown'}, jax "
        f"{made['jax_version']}, {made['device']}, {made['cpu_cores']} CPU cores: "
        f"`{made['command']}`",
    ]


def _values(rows: Sequence[Row]) -> list[dict[str, Any]]:
    baseline = next(row for row in rows if row.losses == BASELINE)
    return [
        {
            "losses": row.losses,
            "seeds": list(row.results),
            "scores": {
                name: {
                    "values": list(row.values(name).values()),
                    "mean": _fields(row.mean(name)),
                    "difference": None
                    if row is baseline
                    else _fields(row.difference(name, baseline)),
                }
                for name in dict.fromkeys(n for r in row.results.values() for n in r.scores)
            },
        }
        for row in rows
    ]


def _fields(estimate: Any) -> dict[str, Any] | None:
    return None if estimate is None else dataclasses.asdict(estimate)


def _markdown(heading: str, tables: tuple[list[list[str]], ...], notes: Sequence[str]) -> str:
    scores, differences = (markdown_table(table) for table in tables)
    lines = ["# Ablation of the contrastive losses", "", heading, "", *scores, ""]
    lines += [f"## Difference to `{BASELINE}`, the hinge loss alone", "", *differences, ""]
    lines += [f"- {note}" for note in notes]
    return "\n".join([*lines, "", "![the scores as a picture](ablation.png)", ""])
