"""How often a generated image is nearer to the real image of its caption than to 99 others."""

import numpy as np
from jaxtyping import Bool, Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.alignment import NUM_DISTRACTORS, TIE, mean_score, unit_rows
from xmcgan.evaluation.bootstrap import check_resamples, resample_counts
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.scores import Score

TOP = (1, 10)
RETRIEVALS = tuple(f"retrieval@{k}" for k in TOP)  # names of the scores


def retrieval(
    real: Float[np.ndarray, "m d"],
    fake: Float[np.ndarray, "n d"],
    seed: int,
    targets: Int[np.ndarray, "n"] | None = None,
) -> dict[int, Bool[np.ndarray, "n"]]:
    """Return for k of `TOP` whether each real target is among the k nearest of 100 real images.

    The other 99 follow from the seed and the target, not from the order of the generated images. By
    chance 1 % and 10 % are hits. A tie counts against the generated image.

    Args:
        real: features of distinct real images.
        fake: features of generated images.
        seed: of the choice of the other real images.
        targets: row of the real image of each generated image's caption; row i for i if None.

    Raises:
        EvaluationError: too few real images, or features that are not finite or zero.
    """
    require_enough(len(real))
    targets = np.arange(len(fake)) if targets is None else targets
    real, fake = unit_rows(real, "features"), unit_rows(fake, "features of the generated images")
    ranks = np.empty(len(fake), np.int64)
    for row, target in enumerate(targets.tolist()):
        rng = np.random.default_rng([seed, target])
        others = rng.choice(len(real) - 1, NUM_DISTRACTORS, replace=False)
        others += others >= target  # all rows but the target's
        ranks[row] = (real[others] @ fake[row] > real[target] @ fake[row] - TIE).sum()
    return {k: ranks < k for k in TOP}


def retrieval_scores(
    real: Float[np.ndarray, "m d"],
    fake: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, "n"],
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """Return retrieval@1 and @10, with intervals over the generated images.

    Args:
        real: see `retrieval`.
        fake: see `retrieval`.
        targets: see `retrieval`.
        resamples: of the bootstrap, 0 for no intervals.
        seed: of the bootstrap and of the choice of the other real images.

    Raises:
        EvaluationError: as for `retrieval`, or too few resamples but not 0.
    """
    check_resamples(resamples)
    hits = retrieval(real, fake, seed, targets)
    counts = resample_counts(content_keys(fake), resamples, seed)
    return [
        mean_score(f"retrieval@{k}", hit.astype(float), counts, 1.0, f"chance {k / 100:.0%}")
        for k, hit in hits.items()
    ]


def require_enough(num_real: int) -> None:
    """Refuse fewer real images than a target and its distractors.

    Raises:
        EvaluationError: there are fewer than 100.
    """
    if num_real <= NUM_DISTRACTORS:
        raise EvaluationError(
            f"retrieval ranks one real image among {NUM_DISTRACTORS} others and needs "
            f"{NUM_DISTRACTORS + 1}, but there are {num_real} real images; take another --split, "
            "or other --metrics"
        )
