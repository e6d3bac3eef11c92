"""The Frechet distance: two symmetric eigenproblems, beside the matrix root of its formula."""

from functools import partial
from typing import Any

import numpy as np
import scipy.linalg

from xmcgan.benchmarks.timing import median_ratio, medians, seconds, take_turns
from xmcgan.evaluation.metrics.fid import frechet_distance


def literal_distance(mu_a: Any, sigma_a: Any, mu_b: Any, sigma_b: Any) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 sqrt(S_a S_b)), as Heusel et al. published it."""
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b)
    return float(np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * np.real(root)))


def measure_frechet(*, dimensions: int, rounds: int) -> dict[str, Any]:
    """Time both on two random Gaussians.

    Args:
        dimensions: of the features; Inception's are 2,048.
        rounds: turns of each.

    Returns:
        Each turn's seconds, and of each formulation its median, how many times as fast as the
        literal one it is, and its distance.
    """
    gaussians = [*_draw(dimensions, seed=0), *_draw(dimensions, seed=1)]
    distances = {"literal": literal_distance, "ours": frechet_distance}
    times = take_turns(
        {name: partial(seconds, partial(each, *gaussians)) for name, each in distances.items()},
        rounds,
    )
    median = medians(times)
    rows = [
        {
            "formulation": name,
            "seconds": median[name],
            "faster": median_ratio(times, "literal", name),
            "distance": distance(*gaussians),
        }
        for name, distance in distances.items()
    ]
    return {"dimensions": dimensions, "rows": rows, "seconds": times}


def _draw(dimensions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a mean, and a covariance of correlated features."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((2 * dimensions, dimensions)) @ rng.standard_normal(
        (dimensions, dimensions)
    )
    features /= np.sqrt(dimensions)
    return features.mean(axis=0), np.cov(features, rowvar=False)
