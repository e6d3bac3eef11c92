"""CMMD: kernel distance of CLIP embeddings, Jayasumana et al., "Rethinking FID", CVPR 2024."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from xmcgan.evaluation.features import Arrays, Images, require_images, unit_rows
from xmcgan.evaluation.metrics import Context
from xmcgan.evaluation.metrics.clip_alignment import ClipExtractor
from xmcgan.utils.statistics import Score, resample_pair, score

SIGMA, SCALE = 10.0, 1000.0  # width of the kernel and factor of the result, as published
BLOCK = 2048  # rows of a block of the kernel matrix: 32 MB of float64


class CMMD:
    """CMMD of images; `weights` is a folder with CLIP, in the paper ViT-L/14 at 336 pixels."""

    paired = False

    def __init__(self, context: Context, weights: str) -> None:
        self._clip = ClipExtractor(weights, context.networks)
        self.recipe = self._clip.recipe
        self._resampling: Any = {"resamples": context.resamples, "seed": context.seed}

    def extract(self, images: Images, captions: Sequence[str]) -> Arrays:
        """Embeddings (n, e)."""
        return {"embeddings": self._clip.images(images)}

    def compute(self, real: Arrays, fake: Arrays) -> dict[str, Score]:
        """Score `cmmd`, of embeddings of any length."""
        x, y = real["embeddings"], fake["embeddings"]
        require_images(x, y, at_least=1)
        weights = resample_pair(len(x), len(y), **self._resampling)
        x, y = unit_rows(x, "embeddings"), unit_rows(y, "embeddings")
        distances = rbf_distances(x, y, *weights)
        return {"cmmd": score(distances, "lower", least=0.0)}


def rbf_distances(
    a: Float[np.ndarray, "n d"],
    b: Float[np.ndarray, "m d"],
    weights_a: Float[np.ndarray, "r n"],
    weights_b: Float[np.ndarray, "r m"],
    *,
    sigma: float = SIGMA,
) -> Float[np.ndarray, "r"]:
    """SCALE times the squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)), r weightings.

    The biased estimate, as in the published code (Gretton et al. 2012, equation 5): an image is
    paired with itself too, so it is never negative, and zero for equal sets.
    """
    # The kernel of near vectors is almost 1: float32 would keep few digits of the difference.
    a, b = a.astype(np.float64), b.astype(np.float64)
    weights_a = weights_a / weights_a.sum(axis=1, keepdims=True)
    weights_b = weights_b / weights_b.sum(axis=1, keepdims=True)
    gamma = 1 / (2 * sigma**2)
    within = _rbf_form(a, a, weights_a, weights_a, gamma)
    within += _rbf_form(b, b, weights_b, weights_b, gamma)
    return SCALE * (within - 2 * _rbf_form(a, b, weights_a, weights_b, gamma))


def _rbf_form(
    x: np.ndarray, y: np.ndarray, weights_x: np.ndarray, weights_y: np.ndarray, gamma: float
) -> np.ndarray:
    """weights_x (K - 1) weights_y; the 1 cancels in the distance, without it digits are saved."""
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
