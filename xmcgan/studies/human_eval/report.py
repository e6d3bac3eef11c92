"""The answers of all raters as a table like the paper's, as JSON and as histograms.

OUT/report.md      the tables, for people
OUT/report.json    the same numbers, and which files they were made from
OUT/ranks.png      how often each model got each rank
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.answers import (
    QUESTIONS,
    Answers,
    attentive,
    read_answers,
    result_files,
    without_duplicates,
)
from xmcgan.studies.human_eval.key import Key, read_key
from xmcgan.studies.human_eval.ranking import Estimate, Outcome, outcome
from xmcgan.utils.files import write_text
from xmcgan.utils.tables import aligned_table, markdown_table

TITLES = {"quality": "Image quality", "alignment": "Match with the caption"}
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "--", "oo", "++", "**", "||")  # without colours


def write_report(
    key_file: Path, results: Sequence[Path], out: Path, *, lowest: float, resamples: int, seed: int
) -> str:
    """Join raters' files with the key, and write the report.

    Args:
        key_file: that `create` wrote.
        results: files of raters, or folders of them.
        out: folder to write.
        lowest: share of attention questions that a rater has to get right.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The tables, and where the files are.

    Raises:
        DataError: a file cannot be used, or no rater is valid.
    """
    key = read_key(key_file)
    given = [read_answers(path, key) for path in result_files(results)]
    unique, doubles = without_duplicates(given)
    valid, inattentive = attentive(unique, key, lowest)
    outcomes = {
        question: outcome(valid, key, question, resamples=resamples, seed=seed)
        for question in QUESTIONS
    }
    notes = _notes(valid, doubles, inattentive, lowest, resamples)
    text = "\n".join([*_sections(outcomes, aligned_table, "", ""), "", *notes])
    markdown = ["# Human ranking", "", *_sections(outcomes, markdown_table, "## ", "**"), ""]
    markdown += [f"- {note}" for note in notes] + ["", "![ranks](ranks.png)", ""]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "report.md", "\n".join(markdown))
        content = _content(key, valid, doubles, inattentive, outcomes)
        content |= {"min_checks": lowest, "resamples": resamples, "seed": seed}
        write_text(out / "report.json", json.dumps(content, indent=2, allow_nan=False) + "\n")
        histograms(outcomes).savefig(out / "ranks.png", dpi=110)
    except OSError as error:
        raise DataError(f"cannot write to --out {out}: {error.strerror}") from None
    return f"{text}\n\nreport.md, report.json and ranks.png in {out}"


def histograms(outcomes: Mapping[str, Outcome]) -> Figure:
    """Draw how often each model got each rank, a panel a question."""
    figure = Figure(figsize=(5 * len(outcomes), 3.8), layout="constrained")
    panels = figure.subplots(1, len(outcomes), squeeze=False, sharey=True)[0]
    for axis, (question, found) in zip(panels, outcomes.items(), strict=True):
        width = 0.8 / len(found.shares)
        for index, (name, shares) in enumerate(found.shares.items()):
            at = [rank + (index + 0.5) * width - 0.4 for rank in range(1, len(shares) + 1)]
            heights = [100 * share for share in shares]
            hatch = _HATCHES[index % len(_HATCHES)]
            axis.bar(at, heights, width, label=name, hatch=hatch, edgecolor="white")
        axis.set_title(TITLES[question])
        axis.set_xlabel("rank (1 = best)")
        axis.set_xticks(range(1, len(found.shares) + 1))
        axis.grid(axis="y", alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of rankings")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _sections(outcomes: Mapping[str, Outcome], table, heading: str, strong: str) -> list[str]:
    lines: list[str] = []
    for question, found in outcomes.items():
        alpha = "-" if math.isnan(found.alpha) else f"{found.alpha:.3f}"
        lines += [
            *([""] if lines else []),
            f"{heading}{TITLES[question]}: {found.rankings} rankings of {found.captions} captions, "
            f"Krippendorff's alpha (ordinal) {alpha}",
            "",
            *table(_rank_rows(found)),
            "",
            f"{strong}How often the row is preferred over the column, %{strong}",
            "",
            *table(_pair_rows(found)),
        ]
    return lines


def _rank_rows(found: Outcome) -> list[list[str]]:
    ranks = range(2, len(found.shares) + 1)
    rows = [["model", "ranked best, %", "mean rank", *(f"rank {rank}, %" for rank in ranks)]]
    for name, shares in found.shares.items():
        shown = [f"{100 * share:.1f}" for share in shares[1:]]
        rows.append([name, _percent(found.first[name]), _number(found.mean_rank[name]), *shown])
    return rows


def _pair_rows(found: Outcome) -> list[list[str]]:
    names = list(found.shares)
    rows = [["", *names]]
    for one in names:
        cells = ["-" if one == two else _percent(found.preferred[one, two]) for two in names]
        rows.append([one, *cells])
    return rows


def _percent(found: Estimate) -> str:
    return _number(found, digits=1, scale=100)


def _number(found: Estimate, digits: int = 2, scale: int = 1) -> str:
    value = f"{scale * found.value:.{digits}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({scale * found.low:.{digits}f} to {scale * found.high:.{digits}f})"


def _notes(
    valid: Sequence[Answers],
    doubles: Sequence[str],
    inattentive: Sequence[str],
    lowest: float,
    resamples: int,
) -> list[str]:
    notes = [f"Raters: {', '.join(one.label for one in valid)}"]
    skipped = [(one.label, reason) for one in valid for reason in one.skipped.values()]
    for label, reason in sorted(set(skipped)):
        notes.append(f"Skipped by {label}: {skipped.count((label, reason))} ({reason})")
    notes += [f"Sent twice: {note}" for note in doubles]
    notes += [f"Inattentive: {note} (at least {100 * lowest:g} % asked)" for note in inattentive]
    notes.append(
        f"Intervals: 95 %, percentiles of {resamples} bootstrap resamples of the captions; each "
        "caption counts the same"
    )
    return notes


def _content(
    key: Key,
    valid: Sequence[Answers],
    doubles: Sequence[str],
    inattentive: Sequence[str],
    outcomes: Mapping[str, Outcome],
) -> dict[str, Any]:
    return {
        "page": key.page,
        "models": list(key.models),
        "raters": [
            {"name": one.name, "id": one.rater, "file": one.file.name, "checksum": one.checksum}
            for one in valid
        ],
        "sent_twice": list(doubles),
        "inattentive": list(inattentive),
        "questions": {question: _values(found) for question, found in outcomes.items()},
    }


def _values(found: Outcome) -> dict[str, Any]:
    return {
        "captions": found.captions,
        "rankings": found.rankings,
        "krippendorff_alpha_ordinal": None if math.isnan(found.alpha) else found.alpha,
        "models": {
            name: {
                "ranked_best": dataclasses.asdict(found.first[name]),
                "mean_rank": dataclasses.asdict(found.mean_rank[name]),
                "share_of_ranks": shares,
            }
            for name, shares in found.shares.items()
        },
        "preferred": [
            {"model": one, "over": two, **dataclasses.asdict(share)}
            for (one, two), share in found.preferred.items()
        ],
    }
