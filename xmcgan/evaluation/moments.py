"""Mean and covariance in one pass, in float64, whatever the order and the batches."""

from typing import Self

import numpy as np
from jaxtyping import Float, Int

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.finite_rows import require_finite

# Rows that are centred in one go: 64 MB of float64 at 2048 dimensions.
BLOCK = 4096


class Moments:
    """Gather the mean and the covariance of vectors that come in batches.

    Blocks are centred on their own mean before they are squared, and merged by the formula of
    Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
    variances", 1979), so that nothing cancels. Memory is O(d^2 + BLOCK * d) for any number of rows.

    Attributes:
        n: rows seen so far, each counted as often as it was drawn.
        mean: float64, (d,).
        scatter: sum of the outer products of the deviations from the mean, float64, (d, d).
    """

    def __init__(self, dimensions: int) -> None:
        self.n = 0
        self.mean = np.zeros(dimensions)
        self.scatter = np.zeros((dimensions, dimensions))

    @classmethod
    def of(
        cls, values: Float[np.ndarray, "n d"], counts: Int[np.ndarray, "n"] | None = None
    ) -> Self:
        """Return the moments of an array; see `update`."""
        require_finite(values[:1])
        moments = cls(values.shape[1])
        moments.update(values, counts)
        return moments

    def update(
        self, values: Float[np.ndarray, "n d"], counts: Int[np.ndarray, "n"] | None = None
    ) -> None:
        """Add rows.

        Args:
            values: float32 or float64.
            counts: how often each row counts (a bootstrap resample); once each when None.

        Raises:
            EvaluationError: NaN, infinity, or another number of dimensions than before.
        """
        for start in range(0, len(values), BLOCK):
            rows = values[start : start + BLOCK]
            require_finite(rows, first_row=self.n if counts is None else start)
            if rows.shape[1] != len(self.mean):
                raise EvaluationError(
                    f"features have {rows.shape[1]} dimensions, those before {len(self.mean)}"
                )
            if counts is None:
                weights = np.ones(len(rows))
            else:
                weights = counts[start : start + BLOCK].astype(np.float64)
                rows, weights = rows[weights > 0], weights[weights > 0]
            if len(rows):
                self._add_block(rows.astype(np.float64), weights)

    def merge(self, other: Self) -> None:
        """Add the rows that another host has seen (Chan et al. 1979, equation 2.1)."""
        if other.n:
            self._combine(other.n, other.mean, other.scatter)

    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Return the unbiased covariance (divided by n - 1, as in TTUR and numpy.cov).

        Raises:
            EvaluationError: there are fewer than two rows.
        """
        if self.n < 2:
            raise EvaluationError(f"a covariance needs at least 2 images, there are {self.n}")
        return self.scatter / (self.n - 1)

    def _add_block(self, rows: Float[np.ndarray, "n d"], weights: Float[np.ndarray, "n"]) -> None:
        mean = weights @ rows / weights.sum()
        rows -= mean
        rows *= np.sqrt(weights)[:, None]
        self._combine(int(weights.sum()), mean, rows.T @ rows)

    def _combine(
        self, n: int, mean: Float[np.ndarray, "d"], scatter: Float[np.ndarray, "d d"]
    ) -> None:
        total = self.n + n
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift * (self.n * n / total), shift)
        self.mean += shift * (n / total)
        self.n = total
