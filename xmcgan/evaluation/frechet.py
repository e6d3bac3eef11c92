"""The Frechet distance between two Gaussians, the last step of the FID."""

import numpy as np
from jaxtyping import Float

from xmcgan.errors import EvaluationError

# A covariance may have eigenvalues a little below zero by rounding; beyond this share of the
# largest one it is no covariance.
MAX_NEGATIVE = 1e-6


def frechet_distance(
    mu_a: Float[np.ndarray, "d"],
    sigma_a: Float[np.ndarray, "d d"],
    mu_b: Float[np.ndarray, "d"],
    sigma_b: Float[np.ndarray, "d d"],
    *,
    factor_a: Float[np.ndarray, "d r"] | None = None,
) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr sqrt(S_a S_b).

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, equation 6. With S_a =
    R R^T the product S_a S_b has the eigenvalues of R^T S_b R, which is symmetric; so two symmetric
    eigenproblems take the place of a matrix square root.

    Args:
        mu_a: mean of one side.
        sigma_a: its covariance.
        mu_b: mean of the other side.
        sigma_b: its covariance.
        factor_a: `covariance_factor(sigma_a)` where it is at hand already.

    Returns:
        The distance, at least 0.

    Raises:
        EvaluationError: shapes that differ, NaN or infinity, or a covariance with an eigenvalue
            below -1e-6 of its largest one.
    """
    mu_a, mu_b = np.asarray(mu_a, np.float64), np.asarray(mu_b, np.float64)
    sigma_a, sigma_b = np.asarray(sigma_a, np.float64), np.asarray(sigma_b, np.float64)
    if not mu_a.shape == mu_b.shape == sigma_a.shape[:1] == sigma_b.shape[:1]:
        raise EvaluationError(
            f"statistics have {len(sigma_a)} and {len(sigma_b)} dimensions; compare statistics of "
            "one protocol only"
        )
    if not np.isfinite(mu_a).all() or not np.isfinite(mu_b).all():
        raise EvaluationError("a mean holds NaN or infinity; compute the statistics again")
    _require_symmetric(sigma_b)
    factor = covariance_factor(sigma_a) if factor_a is None else factor_a
    eigenvalues = np.linalg.eigvalsh(factor.T @ sigma_b @ factor) if factor.size else np.zeros(1)
    _require_positive(eigenvalues)
    trace = np.trace(sigma_a) + np.trace(sigma_b)
    trace -= 2 * np.sqrt(np.maximum(eigenvalues, 0)).sum()
    shift = mu_a - mu_b
    return max(0.0, float(shift @ shift + trace))


def covariance_factor(sigma: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """Return R with R R^T = sigma and as many columns as sigma has rank.

    Without the columns of rounding noise, fewer images than dimensions cost no accuracy.

    Args:
        sigma: a covariance, symmetric.

    Raises:
        EvaluationError: see `frechet_distance`.
    """
    _require_symmetric(sigma)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(sigma, np.float64))
    _require_positive(eigenvalues)
    kept = eigenvalues > len(sigma) * np.finfo(np.float64).eps * max(eigenvalues[-1], 0.0)
    return vectors[:, kept] * np.sqrt(eigenvalues[kept])


def _require_symmetric(sigma: Float[np.ndarray, "d d"]) -> None:
    """Refuse what LAPACK would not: it reads one triangle, and hangs or lies on NaN."""
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
        raise EvaluationError(f"a covariance must be square, not of shape {sigma.shape}")
    if not np.isfinite(sigma).all():
        raise EvaluationError("a covariance holds NaN or infinity; compute the statistics again")
    if np.abs(sigma - sigma.T).max(initial=0) > MAX_NEGATIVE * np.abs(sigma).max(initial=0):
        raise EvaluationError("a covariance is not symmetric; compute the statistics again")


def _require_positive(eigenvalues: Float[np.ndarray, "d"]) -> None:
    if eigenvalues[0] < -MAX_NEGATIVE * np.abs(eigenvalues).max():
        raise EvaluationError(
            f"a covariance has the eigenvalue {eigenvalues[0]:.3g} beside one of "
            f"{eigenvalues[-1]:.3g}, so it is none; compute the statistics again, in float64"
        )
