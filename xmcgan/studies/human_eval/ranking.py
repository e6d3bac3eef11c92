"""What rankings say: who is preferred, how often, and how sure that is."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.agreement import krippendorff_alpha
from xmcgan.studies.human_eval.answers import Answers
from xmcgan.studies.human_eval.key import Key


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Hold a number and its 95 % interval; no interval (None) with fewer than two captions."""

    value: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Hold what the raters said to one question.

    Attributes:
        first: share of rankings with a model on top, by model.
        mean_rank: 1 is best.
        shares: of each rank, by model.
        preferred: share of rankings with the first model above the second.
        alpha: Krippendorff's ordinal alpha over all images; NaN for a single rater.
        captions: that have an answer.
        rankings: of all raters.
    """

    first: dict[str, Estimate]
    mean_rank: dict[str, Estimate]
    shares: dict[str, list[float]]
    preferred: dict[tuple[str, str], Estimate]
    alpha: float
    captions: int
    rankings: int


def outcome(
    answers: Sequence[Answers], key: Key, question: str, *, resamples: int, seed: int
) -> Outcome:
    """Join the rankings of all raters.

    Each caption counts the same: the raters of a caption are averaged first. Intervals are 2.5 and
    97.5 % percentiles of a bootstrap over captions, so they tell what other captions would change,
    with these raters.

    Args:
        answers: of valid raters.
        key: of the page.
        question: "quality" or "alignment".
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: nobody ranked anything.
    """
    ranks = _ranks(answers, key, question)  # (rater, caption, model), NaN where not answered
    answered = ~np.isnan(ranks[..., 0])
    ranks, answered = ranks[:, answered.any(axis=0)], answered[:, answered.any(axis=0)]
    num = ranks.shape[1]
    if not num:
        raise DataError(f"nobody ranked a caption for {question}: all were skipped")
    draws = np.random.default_rng(seed).integers(num, size=(resamples, num))

    def estimate(indicator: Float[np.ndarray, "r c"]) -> Estimate:
        by_caption = np.nanmean(np.where(answered, indicator, np.nan), axis=0)
        if num < 2:
            return Estimate(float(by_caption.mean()), None, None)
        low, high = np.percentile(by_caption[draws].mean(axis=1), [2.5, 97.5])
        return Estimate(float(by_caption.mean()), float(low), float(high))

    names = list(enumerate(key.models))
    return Outcome(
        first={name: estimate(ranks[..., m] == 1) for m, name in names},
        mean_rank={name: estimate(ranks[..., m]) for m, name in names},
        shares={
            name: [estimate(ranks[..., m] == rank).value for rank in range(1, len(names) + 1)]
            for m, name in names
        },
        preferred={
            (one, two): estimate(ranks[..., a] < ranks[..., b])
            for a, one in names
            for b, two in names
            if a != b
        },
        alpha=krippendorff_alpha(ranks.reshape(len(ranks), -1), "ordinal"),
        captions=num,
        rankings=int(answered.sum()),
    )


def _ranks(answers: Sequence[Answers], key: Key, question: str) -> Float[np.ndarray, "r c m"]:
    items = [item for item, content in key.items.items() if content.noise is None]
    column = {name: index for index, name in enumerate(key.models)}
    ranks = np.full((len(answers), len(items), len(column)), np.nan)
    for r, one in enumerate(answers):
        for c, item in enumerate(items):
            for rank, image in enumerate(one.rankings[question].get(item, ()), start=1):
                model = key.items[item].models[image]
                if model is not None:
                    ranks[r, c, column[model]] = rank
    return ranks
