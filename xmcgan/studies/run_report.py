"""A run on one page: how far it is, samples, curves, scores, starts and settings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmcgan.config import changed_fields, read_config
from xmcgan.errors import EvaluationError, UserError
from xmcgan.evaluation.results import ResultFile, of_last_recipe, result_rows
from xmcgan.evaluation.results import curves as score_curves
from xmcgan.studies.training_curves import draw_curves
from xmcgan.training.logging import Curves, read_curves
from xmcgan.utils.files import atomic_file, is_in_bucket, lock_holder, write_text, writing
from xmcgan.utils.provenance import read_starts, starts_table
from xmcgan.utils.tables import markdown_table

CURVES_FILE, SCORES_FILE = "report_curves.png", "report_scores.png"
# Curves that the table shows: what to look at first.
_SHOWN = ("d_loss", "g_loss", "d_margin", "real_sentence_accuracy", "real_word_accuracy",
          "fake_sentence_accuracy", "fake_word_accuracy", "d_grad_norm", "g_grad_norm",
          "skipped_updates", "images_per_second", "data_wait_share", "peak_share")  # fmt: skip
_MAX_OLDER_SAMPLES = 8


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Write the page of a run, which may be training, to `out` (the workdir by default)."""
    config = read_config(workdir / "config.json")
    curves = read_curves(workdir / "metrics.jsonl")
    starts = read_starts(workdir)
    out, name = out or workdir, workdir.resolve().name
    chance = 1 / (config.contrastive_group_size or config.batch_size)
    lines = [f"# Run {name}", "", _state(workdir, config, curves, starts), ""]
    with writing(out, UserError):
        out.mkdir(parents=True, exist_ok=True)
        lines += _samples(workdir, out) + _training_curves(curves, chance) + _scores(workdir, out)
        lines += _starts(starts) + _settings(config)
        if curves:
            resumed_at = [start["first_step"] for start in starts if start["first_step"]]
            figure = draw_curves(curves, name, chance=chance, resumed_at=resumed_at)
            with atomic_file(out / CURVES_FILE) as file:
                figure.savefig(file, format="png", dpi=90)
        write_text(out / "report.md", "\n".join(lines))
    return out / "report.md"


def _state(
    workdir: Path, config: ConfigDict, curves: Curves, starts: Sequence[dict[str, Any]]
) -> str:
    logged = max((int(steps[-1]) for steps, _ in curves.values()), default=0)
    total = starts[-1]["num_train_steps"] if starts else config.num_train_steps
    of = f" of {total:,}" if total else ""
    if starts and (end := starts[-1].get("end")):
        state = f"Stopped by {end['how']} and saved at step {end['step']:,}{of}."
        if end["how"] == "finished":
            state = f"Finished at step {end['step']:,}."
    elif holder := lock_holder(workdir):
        state = f"Training as process {holder}; step {logged:,}{of} is logged."
    else:
        state = f"Exited without recording a status; step {logged:,}{of} is logged."
    losses = ", ".join(name for name, loss in config.losses.items() if loss.enabled)
    return (
        f"{state} Data `{config.data.name}`, {config.image_size} px, batch {config.batch_size}, "
        f"losses {losses}."
    )


def _samples(workdir: Path, out: Path) -> list[str]:
    grids = sorted((workdir / "samples").glob("step_*[0-9].png"))
    if not grids:
        return []
    lines = ["## Samples", "", f"![newest samples]({_link(grids[-1], out)})", ""]
    if older := grids[:-1][-_MAX_OLDER_SAMPLES:]:
        links = (f"[{int(grid.stem.rpartition('_')[2]):,}]({_link(grid, out)})" for grid in older)
        lines += [f"The same captions and noise at earlier steps: {', '.join(links)}.", ""]
    return lines


def _training_curves(curves: Curves, chance: float) -> list[str]:
    if not curves:
        return ["## Training curves", "", "Nothing is logged yet.", ""]
    rows: list[tuple[str, ...]] = [("", "first", "middle", "last")]
    for name in _SHOWN:
        if name in curves:
            values = curves[name][1]
            shown = values[0], values[len(values) // 2], values[-1]
            rows.append((name, *(f"{value:.4g}" for value in shown)))
    note = f"Retrieval by chance is {chance:.4g}. Dashed vertical lines: the run was resumed there."
    lines = ["## Training curves", "", f"![curves]({CURVES_FILE})", "", note, ""]
    return [*lines, *markdown_table(rows), ""]


def _scores(workdir: Path, out: Path) -> list[str]:
    folder = workdir / "evaluation"
    try:
        results = of_last_recipe(ResultFile(folder).read())
    except EvaluationError as error:
        return ["## Evaluation", "", f"{error}", ""]
    if not results:
        return []
    recipe = results[-1].recipe
    lines = ["## Evaluation", "", *markdown_table(result_rows(results)), "", f"Recipe {recipe}."]
    with atomic_file(out / SCORES_FILE) as file:
        score_curves(results, f"recipe {recipe}").savefig(file, format="png", dpi=90)
    return [*lines, "", f"![scores]({SCORES_FILE})", ""]


def _starts(starts: Sequence[dict[str, Any]]) -> list[str]:
    if not starts:
        return []
    note = (
        "The last command (`run.json` has all, with packages and variables; a + after a commit: "
        "files differed from it):"
    )
    table = markdown_table(starts_table(starts), numbers=False)
    return ["## Starts", "", *table, "", note, "", f"    {starts[-1]['command']}", ""]


def _settings(config: ConfigDict) -> list[str]:
    rows = [(name, repr(value), repr(old)) for name, value, old in changed_fields(config)]
    table = markdown_table([("field", "value", "default"), *rows], numbers=False)
    return ["## Settings that are not the defaults of `xmcgan/config.py`", "", *table, ""]


def _link(path: Path, out: Path) -> str:
    if is_in_bucket(path) and not is_in_bucket(out):
        return str(path)
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix().replace(" ", "%20")
