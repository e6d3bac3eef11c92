"""How often a generated image is nearer to the real image of its caption than to 99 others."""

import numpy as np
from jaxtyping import Bool, Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.alignment import NUM_DISTRACTORS, TIE, mean_score, unit_rows
from xmcgan.evaluation.bootstrap import MIN_IMAGES, check_resamples, resample_counts
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.scores import Score

TOP = (1, 10)
RETRIEVALS = tuple(f"retrieval@{k}" for k in TOP)  # names of the scores


def retrieval(
    real: Float[np.ndarray, "m d"],
    fake: Float[np.ndarray, "n d"],
    seed: int,
    targets: Int[np.ndarray, "n"] | None = None,
    own: Int[np.ndarray, "n"] | None = None,
) -> dict[int, Bool[np.ndarray, "n"]]:
    """Return for k of `TOP` whether each real target is among the k nearest of 100 real images.

    The other 99 follow from the seed and the target, not from the order of the generated images. By
    chance 1 % and 10 % are hits. A tie counts against the generated image.

    Args:
        real: features of distinct real images.
        fake: features of generated images.
        seed: of the choice of the other real images.
        targets: row of the real image of each generated image's caption; row i for i if None.
        own: where real images stand in for generated ones: their rows, which are passed over.

    Raises:
        EvaluationError: too few real images, or features that are not finite or zero.
    """
    require_enough(len(real))
    targets = np.arange(len(fake)) if targets is None else targets
    real, fake = unit_rows(real, "features"), unit_rows(fake, "features of the generated images")
    ranks = np.empty(len(fake), np.int64)
    # One more than is needed, as one may be passed over.
    num = min(NUM_DISTRACTORS + 1, len(real) - 1)
    for row, target in enumerate(targets.tolist()):
        rng = np.random.default_rng([seed, target])
        others = rng.choice(len(real) - 1, num, replace=False)
        others += others >= target  # all rows but the target's
        others = others[others != (-1 if own is None else own[row])][:NUM_DISTRACTORS]
        ranks[row] = (real[others] @ fake[row] > real[target] @ fake[row] - TIE).sum()
    return {k: ranks < k for k in TOP}


def retrieval_scores(
    real: Float[np.ndarray, "m d"],
    fake: Float[np.ndarray, "n d"],
    targets: Int[np.ndarray, "n"],
    twins: Int[np.ndarray, "n"] | None = None,
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """Return retrieval@1 and @10, beside what other real images of the same captions reach.

    Args:
        real: see `retrieval`.
        fake: see `retrieval`.
        targets: see `retrieval`.
        twins: row of another real image that has the same caption, -1 where there is none.
        resamples: of the bootstrap over captions, 0 for no intervals.
        seed: of the bootstrap and of the choice of the other real images.

    Raises:
        EvaluationError: as for `retrieval`, or too few resamples but not 0.
    """
    check_resamples(resamples)
    hits = retrieval(real, fake, seed, targets)
    counts = resample_counts(content_keys(fake), resamples, seed)
    scores = [
        mean_score(f"retrieval@{k}", hit.astype(float), counts, 1.0, f"chance {k} %")
        for k, hit in hits.items()
    ]
    shared = np.flatnonzero(twins >= 0) if twins is not None else ()
    if twins is not None and len(shared) >= MIN_IMAGES:
        rows = twins[shared]
        note = f"real images, of the {len(shared)} captions that another image has as well"
        scores += [
            mean_score(f"retrieval@{k}_real", hit.astype(float), counts[:, shared], 1.0, note)
            for k, hit in retrieval(real, real[rows], seed, targets[shared], rows).items()
        ]
    return scores


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
