"""The page of a run: `report.md` and `report_curves.png`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmcgan.config import changed_fields, read_config
from xmcgan.errors import EvaluationError, UserError
from xmcgan.evaluation.report import newest, score_lines
from xmcgan.evaluation.results import ResultFile
from xmcgan.studies.run_report.log import Curves, read_curves
from xmcgan.studies.run_report.plots import draw_curves
from xmcgan.training.starts import read_starts
from xmcgan.utils.files import atomic_file, lock_holder, write_text
from xmcgan.utils.tables import markdown_table

CURVES_FILE = "report_curves.png"
# What to look at first.
_SHOWN = ("d_loss", "g_loss", "d_margin", "real_sentence_accuracy", "real_word_accuracy",
          "fake_sentence_accuracy", "fake_word_accuracy", "d_grad_norm", "g_grad_norm",
          "skipped_updates", "images_per_second")  # fmt: skip


def write_report(workdir: Path, out: Path | None = None) -> Path:
    """Write the page of a run, which may be going on; nothing else in its folder changes.

    Args:
        workdir: of the run.
        out: folder for the page and its picture; the workdir by default.

    Returns:
        The page.

    Raises:
        UserError: the folder is no workdir, or `out` cannot be written to.
    """
    config = read_config(workdir / "config.json")
    curves = read_curves(workdir / "metrics.jsonl")
    starts = read_starts(workdir)
    out = workdir if out is None else out
    name = workdir.resolve().name
    chance = 1 / (config.contrastive_group_size or config.batch_size)
    sections = [
        [f"# Run {name}", "", _state(workdir, config, curves, starts)],
        _samples(workdir, out),
        _course(curves, chance),
        _scores(workdir, out),
        _starts(starts),
        _settings(config),
    ]
    lines = [line for section in sections if section for line in [*section, ""]]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if curves:
            resumed_at = [start["first_step"] for start in starts if start.get("first_step")]
            figure = draw_curves(curves, name, chance=chance, resumed_at=resumed_at)
            with atomic_file(out / CURVES_FILE) as file:
                figure.savefig(file, format="png", dpi=90)
        write_text(out / "report.md", "\n".join(lines))
    except OSError as error:
        raise UserError(f"cannot write the report to {out}: {error.strerror}") from None
    return out / "report.md"


def _state(
    workdir: Path, config: ConfigDict, curves: Curves, starts: Sequence[dict[str, Any]]
) -> str:
    """Return in a sentence how far the run is."""
    logged = max((int(steps[-1]) for steps, _ in curves.values()), default=0)
    total = starts[-1]["num_train_steps"] if starts else config.num_train_steps
    of = f" of {total:,}" if total else ""
    if starts and (end := starts[-1].get("end")):
        if end["how"] == "finished":
            state = f"Finished at step {end['step']:,}."
        else:
            state = f"Stopped by {end['how']} and saved at step {end['step']:,}{of}."
    elif holder := lock_holder(workdir):
        state = f"Going on as process {holder}; step {logged:,}{of} is logged."
    else:
        state = f"Not running, and it left no word of its end; step {logged:,}{of} is logged."
    losses = ", ".join(name for name, loss in config.losses.items() if loss.enabled)
    return (
        f"{state} Data `{config.data.name}`, {config.image_size} px, batch {config.batch_size}, "
        f"losses {losses}."
    )


def _samples(workdir: Path, out: Path) -> list[str]:
    """Show the newest grid, and link the first, to see what has changed."""
    grids = sorted((workdir / "samples").glob("step_*.png"))
    if not grids:
        return []
    lines = ["## Samples", "", f"![newest samples]({_link(grids[-1], out)})"]
    if len(grids) > 1:
        links = ", ".join(f"[{_step(grid):,}]({_link(grid, out)})" for grid in grids[:-1][-8:])
        lines += ["", f"The same captions and noise at earlier steps: {links}."]
    return lines


def _course(curves: Curves, chance: float) -> list[str]:
    if not curves:
        return ["## Course", "", "Nothing is logged yet."]
    rows: list[tuple[str, ...]] = [("", "first", "middle", "last")]
    for name in _SHOWN:
        if name in curves:
            values = curves[name][1]
            at = (0, len(values) // 2, -1)
            rows.append((name, *(f"{values[index]:.4g}" for index in at)))
    return [
        "## Course",
        "",
        f"![curves]({CURVES_FILE})",
        "",
        f"Retrieval by chance is {chance:.4g}. Dashed lines across: the run was resumed there.",
        "",
        *markdown_table(rows),
    ]


def _scores(workdir: Path, out: Path) -> list[str]:
    folder = workdir / "evaluation"
    try:
        everything = ResultFile(folder).read()
    except EvaluationError as error:
        return ["## Evaluation", "", f"{error}"]
    if not everything:
        return []
    recipe = everything[-1].recipe
    results = newest(result for result in everything if result.recipe == recipe)
    lines = ["## Evaluation", "", *markdown_table(score_lines(results)), "", f"Recipe {recipe}."]
    if (picture := folder / "curves.png").exists():
        lines += ["", f"![scores]({_link(picture, out)})"]
    return lines


def _starts(starts: Sequence[dict[str, Any]]) -> list[str]:
    if not starts:
        return []
    return [
        "## Starts",
        "",
        *markdown_table(starts_table(starts), numbers=False),
        "",
        "The last command (`run.json` has all, with packages and variables; a + after a commit: "
        "files differed from it):",
        "",
        f"    {starts[-1]['command']}",
    ]


def starts_table(starts: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table of a run's starts, the header first."""
    rows = [("started (UTC)", "from step", "ended", "commit", "devices", "Python, JAX")]
    for start in starts:
        end = start.get("end")
        rows.append(
            (
                start["time"].replace("+00:00", ""),
                f"{start['first_step']:,}",
                f"{end['how']}, step {end['step']:,}" if end else "no word",
                _short(start.get("commit")),
                start["device"],
                f"{start['python']}, {start['jax_version']}",
            )
        )
    return rows


def _settings(config: ConfigDict) -> list[str]:
    rows = [("field", "value", "default")]
    rows += [(name, repr(value), repr(old)) for name, value, old in changed_fields(config)]
    return [
        "## Settings that are not the defaults of `xmcgan/config.py`",
        "",
        *markdown_table(rows, numbers=False),
    ]


def _link(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix().replace(" ", "%20")


def _step(grid: Path) -> int:
    digits = grid.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else 0


def _short(commit: str | None) -> str:
    return "unknown" if not commit else commit[:10] + "+" * commit.endswith("+")
