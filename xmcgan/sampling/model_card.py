"""The card of a model folder: what a run says about itself, and what only its author can say."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmcgan.config import changed_fields
from xmcgan.errors import DataError
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.utils.provenance import read_starts
from xmcgan.utils.run_log import read_curves, starts_table
from xmcgan.utils.tables import markdown_table

# In this order. The notes must have what only the author can say, and may add to the others.
SECTIONS = ("Data", "Training", "Scores", "What it cannot do", "License")
_FROM_AUTHOR = ("Data", "What it cannot do", "License")


def read_notes(path: Path) -> dict[str, str]:
    """Read the author's part of a card: text by `## ` heading, "" for what stands before the first.

    Raises:
        DataError: the file is not readable, or a section is missing that only a person can write.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    before, *parts = re.split(r"^## +", text, flags=re.MULTILINE)
    notes = {"": before.strip()}
    for part in parts:
        heading, _, body = part.partition("\n")
        notes[heading.strip()] = body.strip()
    if missing := [f"`## {name}`" for name in _FROM_AUTHOR if not notes.get(name)]:
        raise DataError(f"{path} lacks {', '.join(missing)}: the card of a model needs them")
    return notes


def training_facts(workdir: Path, model: TrainedModel) -> dict[str, Any]:
    """Return what `save_model` stores about the training, as JSON values."""
    config = model.config
    starts = read_starts(workdir)
    return {
        "steps": model.step,
        "images_seen": model.step * config.batch_size,  # of the generator's updates
        "training_hours": round(_hours(workdir, config, model.step), 2),
        "starts": sum(start["first_step"] < model.step for start in starts),
        "commit": starts[-1].get("commit") if starts else None,
    }


def model_card(
    name: str, workdir: Path, model: TrainedModel, notes: dict[str, str], machine: str
) -> str:
    """Return the card of a checkpoint as Markdown.

    Args:
        name: of the model.
        workdir: of the run.
        model: the checkpoint.
        notes: see `read_notes`.
        machine: what it was trained on, such as "2 CPU cores, shared with other work".
    """
    generated = {
        "Training": _training(workdir, model, machine),
        "Scores": _scores(workdir / "evaluation", model),
    }
    lines = [f"# {name}", "", notes.get("", "")]
    lines += ["", f'    python scripts/generate.py --model {name} --caption "..." --out out/']
    for section in (*SECTIONS, *(each for each in notes if each and each not in SECTIONS)):
        parts = ["\n".join(generated.get(section, [])), notes.get(section, "")]
        lines += ["", f"## {section}", "", "\n\n".join(filter(None, parts))]
    return "\n".join(lines) + "\n"


def _training(workdir: Path, model: TrainedModel, machine: str) -> list[str]:
    config, facts = model.config, training_facts(workdir, model)
    starts = read_starts(workdir)
    rows = [
        ("", ""),
        ("data set", config.data.name),
        ("image size", f"{config.image_size} px"),
        ("steps", f"{facts['steps']:,}"),
        ("batch size", f"{config.batch_size}"),
        ("images seen", f"{facts['images_seen']:,}"),
        ("hours of training steps", f"{facts['training_hours']:.2f}"),
        ("machine", machine),
        ("weights", "moving average (EMA)"),
    ]
    lines = markdown_table(rows, numbers=False)
    if starts:
        lines += ["", f"Started {len(starts)} times:" if len(starts) > 1 else "Started once:", ""]
        lines += markdown_table(starts_table(starts), numbers=False)
        commands = dict.fromkeys(_without_folders(start["command"]) for start in starts)
        lines += ["", "Commands, oldest first:", "", *(f"    {command}" for command in commands)]
    changed = [(f"`{field}`", f"`{value!r}`") for field, value, _ in changed_fields(config)
               if not field.startswith(("wandb.", "data.data_dir"))]  # fmt: skip
    lines += ["", "Settings that are not the defaults of `xmcgan/config.py`:", ""]
    return [*lines, *markdown_table([("field", "value"), *changed], numbers=False)]


def _scores(folder: Path, model: TrainedModel) -> list[str]:
    file = ResultFile(folder)
    origin = model.origin
    newest = {
        result.recipe: result
        for result in file.read()
        if (result.step, result.weights) == (model.step, origin["weights"])
        and result.checkpoint == origin["checkpoint"]
    }
    lines: list[str] = []
    for recipe_id, result in newest.items():
        recipe = file.read_recipe(recipe_id)
        lines += [
            *markdown_table(_score_rows(result)),
            "",
            f"{recipe['samples']:,} images at {recipe['image_size']} px from captions of "
            f"{recipe['data']['data']} ({recipe['data']['split']}), recipe {recipe_id}.",
            "",
        ]
    return lines[:-1] or ["This checkpoint was not evaluated."]


def _score_rows(result: Result) -> Sequence[tuple[str, ...]]:
    rows = [("score", "value", "95 % interval", "", "note")]
    for name, score in result.scores.items():
        known = score.low is not None and score.high is not None
        interval = f"{score.low:.4g} to {score.high:.4g}" if known else "-"
        rows.append((name, f"{score.value:.4g}", interval, f"{score.better} is better", score.note))
    return rows


def _hours(workdir: Path, config: ConfigDict, step: int) -> float:
    """Return the time that the logged steps took, those that were repeated included."""
    steps, rates = read_curves(workdir / "metrics.jsonl").get("images_per_second", ((), ()))
    images = config.log_every_steps * config.batch_size
    return sum(images / rate for at, rate in zip(steps, rates, strict=True) if at <= step) / 3600


def _without_folders(command: str) -> str:
    """Return a command line with the names alone of absolute paths: folders are the machine's."""
    return re.sub(r"(?<![\w.~/-])/(?:[^\s/'\"]+/)+", "", command)
