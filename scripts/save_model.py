"""Write a checkpoint as a model folder: a small generator and its card.

python scripts/save_model.py --workdir runs/mine --notes notes.md --out mine/

The card is made from what the run recorded, its scores under
WORKDIR/evaluation, and the notes: a Markdown file with the sections
`## Data`, `## What it cannot do` and `## License`.
"""

import argparse
import re
from pathlib import Path
from typing import Any

from xmcgan.config import changed_fields
from xmcgan.errors import DataError, UserError, run_cli
from xmcgan.evaluation.results import ResultFile
from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.training.logging import read_curves
from xmcgan.utils.files import path_of
from xmcgan.utils.provenance import read_starts, starts_table
from xmcgan.utils.tables import markdown_table

# In this order. Notes may add to all of them, and to sections of their own.
SECTIONS = ("Data", "Training", "Scores", "What it cannot do", "License")
FROM_AUTHOR = ("Data", "What it cannot do", "License")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=path_of, required=True, metavar="DIR", help="of a training run"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to save (default: the newest)"
    )
    parser.add_argument(
        "--notes", type=Path, required=True, metavar="FILE", help="the author's part of the card"
    )
    parser.add_argument(
        "--machine",
        default="not recorded",
        metavar="TEXT",
        help="what it was trained on, for the card, such as '2 CPU cores'",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder; named as the model"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    notes = read_notes(args.notes)
    model = TrainedModel.from_workdir(args.workdir, args.step)
    out = args.out.resolve()
    facts = training_facts(args.workdir, model)
    sections = {
        "Training": training_section(args.workdir, model, facts, args.machine),
        "Scores": scores_section(args.workdir, model),
    }
    try:
        save_model(out, model.variables, model.config, facts, card(out.name, notes, sections))
    except OSError as error:
        raise UserError(f"cannot write to --out {args.out}: {error.strerror}") from None
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size / 1e6:8.3f} MB  {path}")


def read_notes(path: Path) -> dict[str, str]:
    """Read the author's part of a card: text by `## ` heading, by "" before the first.

    Raises:
        DataError: the file cannot be read, or lacks a section that only a person can write.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    introduction, *parts = re.split(r"^## +", text, flags=re.MULTILINE)
    notes = {"": introduction.strip()}
    for part in parts:
        heading, _, body = part.partition("\n")
        notes[heading.strip()] = body.strip()
    if missing := [f"`## {name}`" for name in FROM_AUTHOR if not notes.get(name)]:
        raise DataError(f"{path} lacks {', '.join(missing)}: the card of a model needs them")
    return notes


def card(name: str, notes: dict[str, str], sections: dict[str, list[str]]) -> str:
    """Return the card as Markdown: each section's lines, then the author's notes on it."""
    lines = [f"# {name}", "", notes.get("", "")]
    lines += ["", f'    python scripts/generate.py --model {name} --caption "..." --out out/']
    for section in dict.fromkeys([*SECTIONS, *filter(None, notes)]):
        parts = ["\n".join(sections.get(section, [])), notes.get(section, "")]
        lines += ["", f"## {section}", "", "\n\n".join(filter(None, parts))]
    return "\n".join(lines) + "\n"


def training_facts(workdir: Path, model: TrainedModel) -> dict[str, Any]:
    """Return what model.json says of the training."""
    config, starts = model.config, read_starts(workdir)
    # Over the steps that were logged, those included that a resumed run repeated.
    steps, rates = read_curves(workdir / "metrics.jsonl").get("images_per_second", ((), ()))
    images = config.log_every_steps * config.batch_size
    seconds = sum(
        images / rate for step, rate in zip(steps, rates, strict=True) if step <= model.step
    )
    return {
        "steps": model.step,
        "images_seen": model.step * config.batch_size,  # of the generator's updates
        "training_hours": round(seconds / 3600, 2),
        "starts": sum(start["first_step"] < model.step for start in starts),
        "commit": starts[-1].get("commit") if starts else None,
    }


def training_section(
    workdir: Path, model: TrainedModel, facts: dict[str, Any], machine: str
) -> list[str]:
    config, starts = model.config, read_starts(workdir)
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
        # Folders are the machine's: of absolute paths the names alone.
        commands = [
            re.sub(r"(?<![\w.~/-])/(?:[^\s/'\"]+/)+", "", start["command"]) for start in starts
        ]
        lines += ["", "Commands, oldest first:", ""]
        lines += [f"    {command}" for command in dict.fromkeys(commands)]
    changed = [(f"`{field}`", f"`{value!r}`") for field, value, _ in changed_fields(config)
               if not field.startswith(("wandb.", "data.data_dir"))]  # fmt: skip
    lines += ["", "Settings that are not the defaults of `xmcgan/config.py`:", ""]
    return [*lines, *markdown_table([("field", "value"), *changed], numbers=False)]


def scores_section(workdir: Path, model: TrainedModel) -> list[str]:
    """Return the newest scores of these very weights by each recipe."""
    file = ResultFile(workdir / "evaluation")
    wanted = (model.step, model.origin["weights"], model.origin["checkpoint"])
    newest = {
        result.recipe: result
        for result in file.read()
        if (result.step, result.weights, result.checkpoint) == wanted
    }
    lines: list[str] = []
    for recipe_id, result in newest.items():
        rows = [("score", "value", "95 % interval", "", "note")]
        for name, score in result.scores.items():
            known = score.low is not None and score.high is not None
            interval = f"{score.low:.4g} to {score.high:.4g}" if known else "-"
            better = f"{score.better} is better"
            rows.append((name, f"{score.value:.4g}", interval, better, score.note))
        recipe = file.read_recipe(recipe_id)
        lines += [
            *markdown_table(rows),
            "",
            f"{recipe['samples']:,} images at {recipe['image_size']} px from captions of "
            f"{recipe['data']['data']} ({recipe['data']['split']}), recipe {recipe_id}.",
            "",
        ]
    return lines[:-1] or ["This checkpoint was not evaluated."]


if __name__ == "__main__":
    run_cli(main)
