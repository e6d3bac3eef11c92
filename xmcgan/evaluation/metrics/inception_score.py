"""Inception score: Salimans et al., "Improved Techniques for Training GANs", 2016, section 4."""

import numpy as np
import scipy.special
from jaxtyping import Float

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Arrays
from xmcgan.evaluation.metrics import FeatureMetric
from xmcgan.utils.statistics import Score, resample_pair, score

NUM_SPLITS = 10


class InceptionScore(FeatureMetric):
    """Confident about each image, undecided about all of them: 1 to the number of classes."""

    labels = ("FID",)  # another network's logits make no Inception score

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Scores `is`, the mean over ten splits, and `is_one_split` of all images at once.

        The official XMC-GAN code has one split. Smaller splits give lower scores.
        """
        logits = fake["logits"]
        _, weights = resample_pair(len(logits), len(logits), **self.resampling)
        splits = split_scores(logits, weights, seed=self.resampling["seed"])
        note = f"standard deviation {splits[:, 0].std():.3g} over {len(splits)} splits"
        whole = split_scores(logits, weights, num_splits=1)
        return {
            "is": score(splits.mean(axis=0), "higher", note, least=1.0),
            "is_one_split": score(whole[0], "higher", least=1.0),
        }


def split_scores(
    logits: Float[np.ndarray, "n k"],
    weights: Float[np.ndarray, "r n"],
    *,
    num_splits: int = NUM_SPLITS,
    seed: int = 0,
) -> Float[np.ndarray, "s r"]:
    """exp of the mean KL divergence of p(y|x) from p(y) of each split, under r weightings.

    Splits are random: the order of images may follow what they show.
    """
    if len(logits) < num_splits:
        raise EvaluationError(
            f"the inception score needs {num_splits} images; there are {len(logits)}"
        )
    scores = np.empty((num_splits, len(weights)))
    order = np.random.default_rng(seed).permutation(len(logits))
    for split, rows in enumerate(np.array_split(order, num_splits)):
        log_p = scipy.special.log_softmax(logits[rows].astype(np.float64), axis=1)
        p = np.exp(log_p)
        share = weights[:, rows]
        # A small split may be left out of a resample altogether; it then counts in full.
        share = np.where(share.sum(axis=1, keepdims=True) > 0, share, 1.0)
        share = share / share.sum(axis=1, keepdims=True)
        marginal = share @ p
        of_marginal = scipy.special.xlogy(marginal, marginal).sum(axis=1)
        scores[split] = np.exp(share @ np.sum(p * log_p, axis=1) - of_marginal)
    return scores
