"""Mean and covariance of a set's features, with the recipe that makes them comparable."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.moments import Moments
from xmcgan.evaluation.npz_files import read_npz, save_npz
from xmcgan.evaluation.recipes import differences

# What two sets must have in common; their images, and how many, may differ.
COMPARED = ("protocol", "network", "resize", "scaling", "weights_sha256")


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Hold all that the Frechet distance needs to know of a set of images.

    Attributes:
        mu: mean of the features (d,), float64.
        sigma: their covariance (d, d), float64, with n - 1 below the line.
        n: number of images; None where a foreign file does not say.
        recipe: how features and images were made; empty where a foreign file does not say.
    """

    mu: Float[np.ndarray, "d"]
    sigma: Float[np.ndarray, "d d"]
    n: int | None
    recipe: dict[str, Any]


def compute_statistics(features: Features, recipe: Mapping[str, Any]) -> Statistics:
    """Return the statistics of features.

    Args:
        features: of all images of a set.
        recipe: how they were made; JSON values.

    Raises:
        EvaluationError: fewer than two images.
    """
    moments = Moments.of(features.values)
    return Statistics(moments.mean, moments.covariance(), moments.n, dict(recipe))


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write mu, sigma, n and the recipe (JSON) to a .npz, whole or not at all.

    Raises:
        EvaluationError: the file cannot be written.
    """
    arrays = {
        "mu": statistics.mu,
        "sigma": statistics.sigma,
        "recipe": np.array(json.dumps(statistics.recipe, sort_keys=True)),
    }
    if statistics.n is not None:
        arrays["n"] = np.array(statistics.n)
    save_npz(path, arrays)


def load_statistics(path: Path) -> Statistics:
    """Read what `save_statistics` wrote, or mu and sigma alone, as pytorch-fid and TTUR write them.

    Raises:
        EvaluationError: the file is missing, damaged, holds other things, or is not finite.
    """
    arrays = read_npz(path)
    absent = [name for name in ("mu", "sigma") if name not in arrays]
    if absent:
        raise EvaluationError(
            f"{path} holds no statistics: {' and '.join(absent)} are missing (it has: "
            f"{', '.join(arrays) or 'nothing'}); make it with eval_fid.py stats"
        )
    mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != mu.shape * 2:
        raise EvaluationError(f"{path}: mu {mu.shape} and sigma {sigma.shape} do not fit together")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise EvaluationError(f"{path}: mu or sigma is not finite")
    try:
        recipe = json.loads(str(arrays["recipe"])) if "recipe" in arrays else {}
        n = int(arrays["n"]) if "n" in arrays else None
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"{path}: its n or recipe is damaged: {error}") from None
    if not isinstance(recipe, dict):
        raise EvaluationError(f"{path}: its recipe is not a JSON object")
    return Statistics(mu, sigma, n, recipe)


def check_comparable(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Refuse two recipes whose features do not live in the same space.

    Args:
        a: recipe of one set.
        b: recipe of the other.

    Raises:
        EvaluationError: naming the entries in which they differ.
    """
    differing = differences(a, b, COMPARED, "{}: {!r} and {!r}")
    if differing:
        raise EvaluationError(
            f"features that were made differently cannot be compared ({'; '.join(differing)})"
        )
