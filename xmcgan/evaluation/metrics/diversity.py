"""Diversity: how much the samples of one caption differ, relative to real images."""

import numpy as np
from jaxtyping import Float

from xmcgan.evaluation.features import Arrays, unit_rows
from xmcgan.evaluation.metrics import FeatureMetric
from xmcgan.utils.statistics import Score, mean_score

ALIKE = 0.1  # a smaller share of the distance between real images is warned of


class Diversity(FeatureMetric):
    """Mean cosine distance between 4 samples of one caption, and its ratio to real images'."""

    samples_per_caption = 4

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Scores `diversity`, `diversity_real` and `diversity_ratio`."""
        samples = fake["values"]  # (captions, samples, d)
        rows = unit_rows(samples.reshape(-1, samples.shape[-1]), "features of the generated images")
        distances = mean_distance(rows.reshape(samples.shape))
        between = float(mean_distance(unit_rows(real["values"], "features")))
        ratios = distances / between
        note = ""
        if ratios.mean() < ALIKE:
            note = (
                f"samples of one caption are nearly alike ({ratios.mean():.1%} of the distance "
                "between real images): the noise changes little"
            )
        return {
            "diversity": mean_score(distances, most=2.0, **self.resampling),
            "diversity_real": Score(between, better="higher"),
            "diversity_ratio": mean_score(ratios, most=np.inf, note=note, **self.resampling),
        }


def mean_distance(values: Float[np.ndarray, "... k d"]) -> Float[np.ndarray, "..."]:
    """Mean cosine distance (0 to 2) of two different rows of length 1."""
    k = values.shape[-2]
    total = values.sum(axis=-2)
    return 1 - ((total**2).sum(axis=-1) - k) / (k * (k - 1))
