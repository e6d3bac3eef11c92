"""The answers of all raters: report.md, a table like the paper's, report.json and ranks.png."""

import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from scipy import stats

from xmcgan.errors import DataError
from xmcgan.evaluation.figures import add_legend, draw_panels
from xmcgan.studies.human_eval.answers import (
    QUESTIONS,
    Answers,
    drop_duplicates,
    drop_inattentive_raters,
    read_answers,
    result_files,
)
from xmcgan.studies.human_eval.page import Key, read_key
from xmcgan.utils.files import write_text, writing
from xmcgan.utils.statistics import Estimate
from xmcgan.utils.tables import markdown_table

TITLES = {"quality": "Image quality", "alignment": "Match with the caption"}
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "--", "oo", "++", "**", "||")  # for `MAX_MODELS`


def krippendorff_alpha(ratings: Float[np.ndarray, "r u"]) -> float:
    """Return Krippendorff's alpha for ordinal data: agreement of raters, 1 perfect, 0 chance.

    Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011. A rater may have left
    out units (NaN). NaN if no unit has two ratings, or all ratings are equal.
    """
    ratings = ratings[:, (~np.isnan(ratings)).sum(axis=0) >= 2]
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # (u, v)
    # Coincidences: ordered pairs of values within a unit, weighted by 1 / (ratings - 1).
    weighted = counts / (counts.sum(axis=1, keepdims=True) - 1)
    coincidences = weighted.T @ counts - np.diag(weighted.sum(axis=0))
    margins = coincidences.sum(axis=1)
    # Distance of two values: the ratings between them, half of those at both ends.
    middle = np.cumsum(margins) - margins / 2
    distances = (middle[:, None] - middle) ** 2
    expected = margins @ distances @ margins
    if expected == 0:
        return math.nan
    return float(1 - (coincidences * distances).sum() * (margins.sum() - 1) / expected)


@dataclasses.dataclass(frozen=True)
class Ranking:
    """What the raters said to one question."""

    captions: int  # that have an answer
    rankings: int  # of all raters
    krippendorff_alpha_ordinal: float | None  # over all images; None for a single rater
    models: dict[str, dict[str, Any]]  # `ranked_best`, `mean_rank`, `share_of_ranks`
    preferred: dict[tuple[str, str], Estimate]  # share of rankings with the first above the second


def rank_models(
    answers: Sequence[Answers], key: Key, question: str, *, resamples: int, seed: int
) -> Ranking:
    """Join the rankings of all raters.

    Each caption counts the same: its raters are averaged first. Intervals are percentiles of a
    bootstrap over captions, so they tell what other captions would change, with these raters.
    """
    ranks = _ranks(answers, key, question)
    ranks = ranks[:, ~np.isnan(ranks).all(axis=(0, 2))]
    if not ranks.size:
        raise DataError(f"nobody ranked a caption for {question}: all were skipped")
    answered = ~np.isnan(ranks[..., 0])

    def by_caption(values: Bool[np.ndarray, "r c"] | Float[np.ndarray, "r c"]) -> np.ndarray:
        return np.nanmean(np.where(answered, values, np.nan), axis=0)

    def estimate(values: Bool[np.ndarray, "r c"] | Float[np.ndarray, "r c"]) -> Estimate:
        means = by_caption(values)
        if len(means) < 2:
            return Estimate(float(means[0]))
        found = stats.bootstrap(
            (means,), np.mean, n_resamples=resamples, method="percentile", rng=seed
        ).confidence_interval
        return Estimate(float(means.mean()), float(found.low), float(found.high), "captions")

    by_model = dict(zip(key.models, np.moveaxis(ranks, 2, 0), strict=True))
    alpha = krippendorff_alpha(ranks.reshape(len(ranks), -1))
    models = {
        name: {
            "ranked_best": estimate(own == 1),
            "mean_rank": estimate(own),  # 1 is best
            "share_of_ranks": [
                float(by_caption(own == rank).mean()) for rank in range(1, len(by_model) + 1)
            ],
        }
        for name, own in by_model.items()
    }
    preferred = {
        (one, two): estimate(by_model[one] < by_model[two])
        for one, two in itertools.permutations(by_model, 2)
    }
    num, alpha = int(answered.sum()), None if math.isnan(alpha) else alpha
    return Ranking(ranks.shape[1], num, alpha, models, preferred)


def _ranks(answers: Sequence[Answers], key: Key, question: str) -> Float[np.ndarray, "r c m"]:
    """Return the rank by rater, caption and model, NaN if not answered; checks are left out."""
    items = [item for item in key.items.values() if item.noise is None]
    ranks = np.full((len(answers), len(items), len(key.models)), np.nan)
    for r, one in enumerate(answers):
        for c, item in enumerate(items):
            models = [item.models[image] for image in one.rankings[question].get(item.id, ())]
            if models:
                ranks[r, c] = [models.index(name) + 1 for name in key.models]
    return ranks


def write_report(
    key_file: Path,
    results: Sequence[Path],
    out: Path,
    *,
    min_share: float,
    resamples: int,
    seed: int,
) -> str:
    """Join raters' files (or folders of them) with the key, write the report, return its text.

    Raters with less than `min_share` of the attention questions right are left out.
    """
    key = read_key(key_file)
    given = [read_answers(path, key) for path in result_files(results)]
    unique, doubles = drop_duplicates(given)
    valid, inattentive = drop_inattentive_raters(unique, key, min_share)
    found = {
        question: rank_models(valid, key, question, resamples=resamples, seed=seed)
        for question in QUESTIONS
    }
    lines = ["# Human ranking", ""]
    for question, ranking in found.items():
        lines += _section(TITLES[question], ranking)
    lines += [f"- Raters: {', '.join(one.label for one in valid)}"]
    skipped = [(one.label, reason) for one in valid for reason in one.skipped.values()]
    for label, reason in sorted(set(skipped)):
        lines += [f"- Skipped by {label}: {skipped.count((label, reason))} ({reason})"]
    lines += [f"- Sent twice: {note}" for note in doubles]
    asked = f"at least {100 * min_share:g} % asked"
    lines += [f"- Inattentive: {note} ({asked})" for note in inattentive]
    lines += [
        f"- Intervals: 95 %, percentiles of {resamples} bootstrap resamples of the captions; each "
        "caption counts the same"
    ]
    questions = {}
    for question, ranking in found.items():
        preferred = [
            {"model": one, "over": two, **vars(share)}
            for (one, two), share in ranking.preferred.items()
        ]
        questions[question] = vars(ranking) | {"preferred": preferred}
    content = {
        "page": key.page,
        "models": key.models,
        "raters": [
            {"name": one.name, "id": one.rater, "file": one.file.name, "checksum": one.checksum}
            for one in valid
        ],
        "sent_twice": doubles,
        "inattentive": inattentive,
        "questions": questions,
        "min_checks": min_share,
        "resamples": resamples,
        "seed": seed,
    }
    with writing(out, DataError):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "report.md", "\n".join([*lines, "", "![ranks](ranks.png)", ""]))
        text = json.dumps(content, indent=2, allow_nan=False, default=vars)
        write_text(out / "report.json", text + "\n")
        histograms(found).savefig(out / "ranks.png", dpi=110)
    return "\n".join(lines)


def _section(title: str, found: Ranking) -> list[str]:
    alpha = found.krippendorff_alpha_ordinal
    agreement = "-" if alpha is None else f"{alpha:.3f}"
    names = list(found.models)
    lower_ranks = [f"rank {rank}, %" for rank in range(2, len(names) + 1)]
    ranks = [["model", "ranked best, %", "mean rank", *lower_ranks]]
    for name, model in found.models.items():
        shares = [f"{100 * share:.1f}" for share in model["share_of_ranks"][1:]]
        texts = model["ranked_best"].text(1, 100), model["mean_rank"].text()
        ranks.append([name, *texts, *shares])
    pairs = [["", *names]]
    for name in names:
        over = [found.preferred.get((name, other)) for other in names]
        pairs.append([name, *(share.text(1, 100) if share else "-" for share in over)])
    heading = (
        f"## {title}: {found.rankings} rankings of {found.captions} captions, Krippendorff's alpha "
        f"(ordinal) {agreement}"
    )
    lines = [heading, "", *markdown_table(ranks), ""]
    lines += ["How often the row is preferred over the column, %", "", *markdown_table(pairs), ""]
    return lines


def histograms(rankings: Mapping[str, Ranking]) -> Figure:
    """Draw how often each model got each rank, a panel per question."""
    figure, panels = draw_panels(len(rankings), "", (5, 2.9), len(rankings), share_y=True)
    for axis, (question, found) in zip(panels, rankings.items(), strict=True):
        places, width = np.arange(1, len(found.models) + 1), 0.8 / len(found.models)
        for index, (name, model) in enumerate(found.models.items()):
            at = places + (index + 0.5) * width - 0.4
            heights = 100 * np.array(model["share_of_ranks"])
            axis.bar(at, heights, width, label=name, hatch=_HATCHES[index], edgecolor="white")
        axis.set(title=TITLES[question], xlabel="rank (1 = best)", xticks=places)
    panels[0].set_ylabel("% of rankings")
    add_legend(figure, panels, columns=5)
    return figure
