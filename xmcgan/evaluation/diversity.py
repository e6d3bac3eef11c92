"""How much the samples of one caption differ, beside how much real images do."""

import numpy as np
from jaxtyping import Float

from xmcgan.evaluation.alignment import mean_score, unit_rows
from xmcgan.evaluation.bootstrap import check_resamples, resample_counts
from xmcgan.evaluation.content_keys import content_keys
from xmcgan.evaluation.scores import Score

NUM_CAPTIONS, NUM_SAMPLES = 64, 4  # captions at most, and samples of each
# Samples of one caption that differ by less than this share of what real images do are alike.
ALIKE = 0.1


def mean_distance(values: Float[np.ndarray, "... k d"]) -> Float[np.ndarray, "..."]:
    """Return the mean cosine distance (0 to 2) of two different rows of length 1."""
    k = values.shape[-2]
    total = values.sum(axis=-2)
    return 1 - ((total**2).sum(axis=-1) - k) / (k * (k - 1))


def diversity_scores(
    real: Float[np.ndarray, "m d"],
    samples: Float[np.ndarray, "c k d"],
    *,
    resamples: int,
    seed: int,
) -> list[Score]:
    """Return the distance of samples of one caption, of real images, and their ratio.

    Args:
        real: features of real images with different captions.
        samples: features of k samples of each of c captions.
        resamples: of the bootstrap over captions, 0 for no intervals.
        seed: of the bootstrap.

    Raises:
        EvaluationError: features that are not finite or zero, or too few resamples but not 0.
    """
    check_resamples(resamples)
    rows = unit_rows(samples.reshape(-1, samples.shape[-1]), "features of the generated images")
    distances = mean_distance(rows.reshape(samples.shape))
    between = float(mean_distance(unit_rows(real, "features")))
    counts = resample_counts(content_keys(samples.mean(axis=1)), resamples, seed)
    ratios = distances / between
    note = ""
    if ratios.mean() < ALIKE:
        note = (
            f"samples of one caption are nearly alike ({ratios.mean():.1%} of the distance between "
            "real images): the noise changes little"
        )
    return [
        mean_score("diversity", distances, counts, 2.0),
        Score("diversity_real", between, None, None, "higher"),
        mean_score("diversity_ratio", ratios, counts, np.inf, note),
    ]
