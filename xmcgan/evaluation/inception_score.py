"""The inception score: confident about each image, undecided about all of them."""

import numpy as np
from jaxtyping import Float, UInt64

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.content_keys import content_keys, keyed_order
from xmcgan.evaluation.finite_rows import require_finite

NUM_SPLITS = 10


def inception_score(
    logits: Float[np.ndarray, "n k"], *, num_splits: int = NUM_SPLITS
) -> tuple[float, float]:
    """Return the inception score: exp of the mean KL divergence of p(y|x) from p(y).

    Salimans et al., "Improved Techniques for Training GANs", 2016, section 4. Split i of s has the
    images from i * n // s to (i + 1) * n // s of an order that is shuffled by what the images show,
    so that the order in which they come changes nothing.

    Args:
        logits: of the classes.
        num_splits: parts that are scored on their own.

    Returns:
        The mean and the standard deviation (ddof 0) over the splits, from 1 to the classes.

    Raises:
        EvaluationError: NaN, or fewer images than splits.
    """
    require_finite(logits, "logits")
    scores = split_scores(
        logits, content_keys(logits), np.ones((1, len(logits))), num_splits=num_splits
    )[:, 0]
    return float(scores.mean()), float(scores.std())


def split_scores(
    logits: Float[np.ndarray, "n k"],
    keys: UInt64[np.ndarray, "n"],
    weights: Float[np.ndarray, "r n"],
    *,
    num_splits: int = NUM_SPLITS,
) -> Float[np.ndarray, "s r"]:
    """Return the score of every split under several weightings of the images.

    Args:
        logits: of the classes.
        keys: content keys of the logits.
        weights: how often each image counts, in r weightings.
        num_splits: s.

    Raises:
        EvaluationError: there are fewer images than splits.
    """
    if len(logits) < num_splits:
        raise EvaluationError(
            f"the inception score needs at least one image for each of its {num_splits} splits; "
            f"there are {len(logits)}"
        )
    order = keyed_order(keys)
    scores = np.empty((num_splits, len(weights)))
    for split in range(num_splits):
        start, stop = (len(order) * i // num_splits for i in (split, split + 1))
        rows = order[start:stop]
        log_p = _log_softmax(logits[rows].astype(np.float64))
        p = np.exp(log_p)
        share = weights[:, rows]
        # A small split may be left out of a resample altogether; it then counts in full.
        share = np.where(share.sum(axis=1, keepdims=True) > 0, share, 1.0)
        share = share / share.sum(axis=1, keepdims=True)
        marginal = share @ p
        log_marginal = np.log(np.maximum(marginal, np.finfo(np.float64).tiny))
        divergence = share @ np.sum(p * log_p, axis=1) - np.sum(marginal * log_marginal, axis=1)
        scores[split] = np.exp(divergence)
    return scores


def _log_softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
