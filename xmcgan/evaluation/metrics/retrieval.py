"""Retrieval: is a generated image nearer to the real image of its caption than to 99 others?"""

import numpy as np
from jaxtyping import Bool, Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Arrays, unit_rows
from xmcgan.evaluation.metrics import NUM_DISTRACTORS, Context, FeatureMetric
from xmcgan.evaluation.metrics.clip_alignment import TIE
from xmcgan.utils.statistics import MIN_IMAGES, Score, mean_score

TOP = (1, 10)
RETRIEVALS = tuple(f"retrieval@{k}" for k in TOP)  # names of the scores


class Retrieval(FeatureMetric):
    """Retrieval@1 and @10, and what other real images of the same captions reach."""

    def __init__(self, context: Context, protocol: str) -> None:
        if context.targets is None:
            raise EvaluationError(
                "retrieval ranks the real image of each caption: leave out --reference-split and "
                "evaluation.num_references, or take other --metrics"
            )
        if context.num_real <= NUM_DISTRACTORS:
            raise EvaluationError(
                f"retrieval needs {NUM_DISTRACTORS + 1} real images; there are {context.num_real} "
                "real ones: take another --split, or other --metrics"
            )
        super().__init__(context, protocol)
        self._context = context

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Scores `retrieval@K`, and `retrieval@K_real` if enough captions have two images."""
        targets, find_twins = self._context.targets, self._context.find_twins
        assert targets is not None
        assert find_twins is not None
        x, seed, twins = real["values"], self._context.seed, find_twins()
        hits = retrieval(x, fake["values"], seed, targets)
        scores = {
            f"retrieval@{k}": mean_score(hit * 1.0, note=f"chance {k} %", **self.resampling)
            for k, hit in hits.items()
        }
        shared = np.flatnonzero(twins >= 0)
        if len(shared) >= MIN_IMAGES:
            note = f"real images, of the {len(shared)} captions that another image has as well"
            hits = retrieval(x, x[twins[shared]], seed, targets[shared], twins[shared])
            for k, hit in hits.items():
                score = mean_score(hit * 1.0, note=note, **self.resampling)
                scores[f"retrieval@{k}_real"] = score
        return scores


def retrieval(
    real: Float[np.ndarray, "m d"],
    fake: Float[np.ndarray, "n d"],
    seed: int,
    targets: Int[np.ndarray, "n"],
    own: Int[np.ndarray, "n"] | None = None,
) -> dict[int, Bool[np.ndarray, "n"]]:
    """For each k of `TOP`, whether the target is among the k nearest of 100 real images.

    The other 99 follow from the seed and the target, not from the order of the generated images. By
    chance 1 % and 10 % are hits. A tie counts against the generated image. If real images stand in
    for generated ones, their `own` rows are skipped.
    """
    real, fake = unit_rows(real, "features"), unit_rows(fake, "features of the generated images")
    ranks = np.empty(len(fake), np.int64)
    # One more than is needed, as one may be skipped.
    num = min(NUM_DISTRACTORS + 1, len(real) - 1)
    for row, target in enumerate(targets.tolist()):
        rng = np.random.default_rng([seed, target])
        others = rng.choice(len(real) - 1, num, replace=False)
        others += others >= target  # all rows but the target's
        others = others[others != (-1 if own is None else own[row])][:NUM_DISTRACTORS]
        ranks[row] = (real[others] @ fake[row] > real[target] @ fake[row] - TIE).sum()
    return {k: ranks < k for k in TOP}
