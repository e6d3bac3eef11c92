"""Precision and recall, density and coverage: scores from nearest neighbors."""

import numpy as np
from jaxtyping import Float

from xmcgan.evaluation.features import Arrays, require_images
from xmcgan.evaluation.metrics import FeatureMetric
from xmcgan.utils.statistics import Score, resample_pair, score

PRECISION_K, DENSITY_K = 3, 5  # neighbors of precision and recall, of density and coverage
ROWS, COLUMNS = 1024, 4096  # tiles of the distances: 32 MB of float64
# Squared distances below this share of the squared lengths count as zero. Features are trusted to
# 1e-5, so these are copies of one image, which rounding must not set apart.
SAME_IMAGE = 1e-10


class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage."""

    labels = ("FID", "FD", "PR")

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Scores `precision`, `recall`, `density` and `coverage`."""
        sides = real["values"], fake["values"]
        num = min(map(len, sides))
        # Each score depends on both numbers: of the larger side, as many images at random.
        rng = np.random.default_rng(self.resampling["seed"])
        x, y = (v if len(v) == num else v[np.sort(rng.permutation(len(v))[:num])] for v in sides)
        note = "" if len(sides[0]) == len(sides[1]) else f"of {num:,} random images of each side"
        weights = resample_pair(num, num, **self.resampling)
        most = {"density": np.inf}
        return {
            name: score(values, "higher", note, least=0.0, most=most.get(name, 1.0))
            for name, values in neighbor_scores(x, y, *weights).items()
        }


def neighbor_scores(
    real: Float[np.ndarray, "n d"],
    fake: Float[np.ndarray, "m d"],
    weights_real: Float[np.ndarray, "r n"],
    weights_fake: Float[np.ndarray, "r m"],
    *,
    precision_k: int = PRECISION_K,
    density_k: int = DENSITY_K,
) -> dict[str, Float[np.ndarray, "r"]]:
    """Precision, recall, density, coverage under r weightings, from one pass over distances.

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models",
    2019, equations 1 and 2: a generated image counts as real if it lies in the ball of a real
    image whose radius is the distance to its k-th neighbor; recall with the sides exchanged.

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020, equations 4
    and 5. For equal distributions density is 1 and coverage nearly 1 - 1 / 2^k on average.
    Deviation: balls include their surface, as those of precision and recall; the authors' code has
    them without it. Only exact copies of images can tell.

    The balls are those of all images under every weighting, because in a bootstrap resample copies
    would have balls of radius zero. An image of weight 0 is absent, and so is its ball.
    """
    require_images(real, fake, at_least=max(precision_k, density_k) + 1)
    # Distances do not change with the origin; near the features they lose the fewest digits.
    origin = real.mean(axis=0, dtype=np.float64)
    near_real, dense_real = _squared_radii(real, origin, precision_k, density_k)
    (near_fake,) = _squared_radii(fake, origin, precision_k)
    # Sums of whole numbers below 2^24 are exact in float32.
    of_real, of_fake = weights_real.T.astype(np.float32), weights_fake.T.astype(np.float32)
    real_around, fake_around = np.zeros_like(of_fake), np.zeros_like(of_real)
    balls_around, fake_inside = np.zeros_like(of_fake), np.zeros_like(of_real)
    for rows, columns, squared in _tiles(real, fake, origin):
        inside = (squared <= near_real[rows, None]).astype(np.float32)
        real_around[columns] += inside.T @ of_real[rows]
        inside = (squared <= near_fake[None, columns]).astype(np.float32)
        fake_around[rows] += inside @ of_fake[columns]
        inside = (squared <= dense_real[rows, None]).astype(np.float32)
        balls_around[columns] += inside.T @ of_real[rows]
        fake_inside[rows] += inside @ of_fake[columns]
    # A resample has more or fewer real images, hence balls, than the set whose radii these are.
    balls = balls_around * (len(real) / weights_real.sum(axis=1))
    return {
        "precision": _mean(real_around > 0, weights_fake),
        "recall": _mean(fake_around > 0, weights_real),
        "density": _mean(balls / density_k, weights_fake),
        "coverage": _mean(fake_inside > 0, weights_real),
    }


def _mean(per_image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.einsum("nr,rn->r", per_image.astype(np.float64), weights) / weights.sum(axis=1)


def _squared_radii(values: np.ndarray, origin: np.ndarray, *neighbors: int) -> list[np.ndarray]:
    """For each k the squared distance to the (k + 1)-th neighbor, the image itself the first."""
    most = max(neighbors)
    nearest = np.full((len(values), most + 1), np.inf)
    for rows, _, squared in _tiles(values, values, origin):
        if squared.shape[1] > most + 1:
            squared.partition(most, axis=1)
        both = np.concatenate([nearest[rows], squared[:, : most + 1]], axis=1)
        nearest[rows] = np.sort(both, axis=1)[:, : most + 1]
    return [nearest[:, k] for k in neighbors]


def _tiles(a: np.ndarray, b: np.ndarray, origin: np.ndarray):
    """Yield (rows, columns, squared distances): the whole matrix is never in memory."""
    for j in range(0, len(b), COLUMNS):
        columns = slice(j, j + COLUMNS)
        y = b[columns] - origin
        squares_y = np.einsum("id,id->i", y, y)
        for i in range(0, len(a), ROWS):
            rows = slice(i, i + ROWS)
            x = a[rows] - origin
            squares = np.einsum("id,id->i", x, x)[:, None] + squares_y
            squared = x @ y.T
            squared *= -2
            squared += squares
            squares *= SAME_IMAGE
            squared[squared <= squares] = 0
            yield rows, columns, squared
