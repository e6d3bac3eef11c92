"""Kernel distances between two sets of features: KID and CMMD."""

import numpy as np
from jaxtyping import Float, UInt64

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.content_keys import content_keys, draw
from xmcgan.evaluation.finite_rows import require_pair

NUM_SUBSETS = 100
SUBSET_SIZE = 1000
# Rows of a block of the CMMD kernel matrix: 32 MB of float64.
BLOCK = 2048


def kernel_distance(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the KID: the unbiased squared MMD with the kernel (x . y / d + 1)^3.

    Binkowski et al., "Demystifying MMD GANs", 2018, section 4. As in torch-fidelity, the mean over
    100 subsets of 1000 images drawn without replacement; subsets are as large as the smaller side
    where that has fewer images. Which images a subset has follows from the seed and from the images
    themselves, not from their order.

    Args:
        a: features of one side.
        b: features of the other side.
        num_subsets: subsets to average over.
        subset_size: images of each side in a subset.
        seed: of the subsets.

    Returns:
        The mean and the standard deviation (ddof 0) over the subsets. The mean may be negative.

    Raises:
        EvaluationError: NaN, two widths, or fewer than two images on a side.
    """
    require_pair(a, b, at_least=2)
    distances = subset_distances(
        a,
        b,
        content_keys(a),
        content_keys(b),
        np.ones((1, len(a))),
        np.ones((1, len(b))),
        num_subsets=num_subsets,
        subset_size=subset_size,
        seed=seed,
    )[:, 0]
    return float(distances.mean()), float(distances.std())


def subset_distances(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    keys_a: UInt64[np.ndarray, "n"],
    keys_b: UInt64[np.ndarray, "m"],
    weights_a: Float[np.ndarray, "r n"],
    weights_b: Float[np.ndarray, "r m"],
    *,
    num_subsets: int = NUM_SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> Float[np.ndarray, "s r"]:
    """Return the KID of every subset under several weightings of the images.

    All weightings (bootstrap resamples) share the kernel matrices, which are nearly all the work.
    An image that was drawn twice is not paired with its own copy: the resamples stay unbiased too.

    Args:
        a: features of one side.
        b: features of the other side.
        keys_a: content keys of a.
        keys_b: content keys of b.
        weights_a: how often each image of a counts, in r weightings.
        weights_b: the same of b.
        num_subsets: s.
        subset_size: images of each side in a subset, lowered to what there is.
        seed: of the subsets.
    """
    size = min(subset_size, len(a), len(b))
    distances = np.empty((num_subsets, len(weights_a)))
    for subset in range(num_subsets):
        salt = 2 * (seed * num_subsets + subset)
        rows_a, rows_b = draw(keys_a, size, salt), draw(keys_b, size, salt + 1)
        x, y = a[rows_a].astype(np.float64), b[rows_b].astype(np.float64)
        of_x, of_y = weights_a[:, rows_a].T, weights_b[:, rows_b].T
        across = np.einsum("ir,ir->r", of_x, _cubic_kernel(x, y) @ of_y)
        across /= of_x.sum(axis=0) * of_y.sum(axis=0)
        distances[subset] = _pairs(x, of_x) + _pairs(y, of_y) - 2 * across
    return distances


def rbf_distance(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
) -> float:
    """Return the squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)), scaled.

    With CLIP embeddings of length 1 this is the CMMD (Jayasumana et al., "Rethinking FID", 2024).
    As in the code they published it is the biased estimate (Gretton et al. 2012, equation 5), where
    an image is paired with itself too; so it is never negative, and zero for equal sets.

    Args:
        a: embeddings of one side.
        b: embeddings of the other side.
        sigma: width of the kernel.
        scale: factor of the result.

    Raises:
        EvaluationError: NaN, two widths, or no images on a side.
    """
    require_pair(a, b, at_least=1)
    ones = np.ones((1, len(a))), np.ones((1, len(b)))
    return float(rbf_distances(a, b, *ones, sigma=sigma, scale=scale)[0])


def rbf_distances(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    weights_a: Float[np.ndarray, "r n"],
    weights_b: Float[np.ndarray, "r m"],
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
) -> Float[np.ndarray, "r"]:
    """Return `rbf_distance` under several weightings of the images; see `subset_distances`."""
    if sigma <= 0:
        raise EvaluationError(f"sigma of the kernel must be positive, not {sigma}")
    # The kernel of near vectors is all but 1, and float32 would keep few digits of the difference.
    a, b = a.astype(np.float64), b.astype(np.float64)
    weights_a = weights_a / weights_a.sum(axis=1, keepdims=True)
    weights_b = weights_b / weights_b.sum(axis=1, keepdims=True)
    gamma = 1 / (2 * sigma**2)
    within = _rbf_form(a, a, weights_a, weights_a, gamma)
    within += _rbf_form(b, b, weights_b, weights_b, gamma)
    return scale * (within - 2 * _rbf_form(a, b, weights_a, weights_b, gamma))


def _cubic_kernel(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n m"]:
    kernel = x @ y.T
    kernel /= x.shape[1]
    kernel += 1
    return kernel * kernel * kernel  # several times faster than ** 3


def _pairs(x: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n r"]) -> np.ndarray:
    """Return the weighted mean of the kernel over pairs of two different rows."""
    kernel = _cubic_kernel(x, x)
    total = np.einsum("ir,ir->r", weights, kernel @ weights)
    total -= np.diagonal(kernel) @ weights**2
    return total / (weights.sum(axis=0) ** 2 - (weights**2).sum(axis=0))


def _rbf_form(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m d"],
    weights_x: Float[np.ndarray, "r n"],
    weights_y: Float[np.ndarray, "r m"],
    gamma: float,
) -> Float[np.ndarray, "r"]:
    """Return weights_x K weights_y of the kernel minus 1, block by block.

    The minus 1 cancels in the distance, because weights sum to 1; it saves digits.
    """
    total = np.zeros(len(weights_x))
    squares_x, squares_y = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            block = x[i : i + BLOCK] @ y[j : j + BLOCK].T
            block *= -2
            block += squares_x[i : i + BLOCK, None]
            block += squares_y[None, j : j + BLOCK]
            np.expm1(-gamma * np.maximum(block, 0), out=block)
            half = block @ weights_y[:, j : j + BLOCK].T
            total += np.einsum("ri,ir->r", weights_x[:, i : i + BLOCK], half)
    return total
