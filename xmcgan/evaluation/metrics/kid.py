"""Kernel distance of features: KID, Binkowski et al., "Demystifying MMD GANs", 2018."""

import numpy as np
from jaxtyping import Float

from xmcgan.evaluation.features import Arrays, require_images
from xmcgan.evaluation.metrics import FeatureMetric
from xmcgan.utils.statistics import Score, resample_pair, score

NUM_SUBSETS, SUBSET_SIZE = 100, 1000  # as in torch-fidelity


class KernelDistance(FeatureMetric):
    """Mean KID over subsets of images; it may be negative."""

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Score `kid`."""
        x, y = real["values"], fake["values"]
        require_images(x, y)
        weights = resample_pair(len(x), len(y), **self.resampling)
        distances = subset_distances(x, y, *weights, seed=self.resampling["seed"])
        size = min(SUBSET_SIZE, len(x), len(y))
        note = f"standard deviation {distances[:, 0].std():.3g} over subsets of {size}"
        if size < SUBSET_SIZE:
            note += f"; subsets lowered from {SUBSET_SIZE} images to the {size} there are"
        return {"kid": score(distances.mean(axis=0), "lower", note)}


def subset_distances(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    weights_a: Float[np.ndarray, "r n"],
    weights_b: Float[np.ndarray, "r m"],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> Float[np.ndarray, "s r"]:
    """Unbiased squared MMD with the kernel (x . y / d + 1)^3 of each subset, under r weightings.

    Weightings (bootstrap resamples) share the kernel matrices, nearly all the work. An image that
    counts twice is not paired with its own copy: resamples stay unbiased too.
    """
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    distances = np.empty((num_subsets, len(weights_a)))
    for subset in range(num_subsets):
        rows_a, rows_b = (rng.choice(len(side), size, replace=False) for side in (a, b))
        x, y = a[rows_a].astype(np.float64), b[rows_b].astype(np.float64)
        of_x, of_y = weights_a[:, rows_a].T, weights_b[:, rows_b].T
        across = np.einsum("ir,ir->r", of_x, _cubic_kernel(x, y) @ of_y)
        across /= of_x.sum(axis=0) * of_y.sum(axis=0)
        distances[subset] = _pairs(x, of_x) + _pairs(y, of_y) - 2 * across
    return distances


def _cubic_kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1
    return kernel * kernel * kernel  # several times faster than ** 3


def _pairs(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the kernel over pairs of two different rows."""
    kernel = _cubic_kernel(x, x)
    total = np.einsum("ir,ir->r", weights, kernel @ weights)
    total -= np.diagonal(kernel) @ weights**2
    return total / (weights.sum(axis=0) ** 2 - (weights**2).sum(axis=0))
