"""Averages of a step's metrics over the steps between two lines of the log."""

import math
from typing import Any

import jax

from xmcgan.errors import TrainingError


class MetricAverages:
    """Add up metrics, fetching them from the devices only when they are asked for.

    Args:
        stored: what `state` returned when the run was interrupted.
    """

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        self._sums: dict[str, float] = dict(stored["sums"]) if stored else {}
        self._count: int = stored["count"] if stored else 0
        self._waiting: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of one step, without waiting for them."""
        self._waiting.append(metrics)

    def state(self, step: int) -> dict[str, Any]:
        """Return sums and count as JSON values, exact to the bit.

        Args:
            step: of the last metrics; named in the error.

        Raises:
            TrainingError: a sum is NaN or infinite.
        """
        for metrics in jax.device_get(self._waiting):
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._count += len(self._waiting)
        self._waiting = []
        bad = [name for name, total in self._sums.items() if not math.isfinite(total)]
        if bad:
            raise TrainingError(
                f"not finite in the steps up to {step}: {', '.join(sorted(bad))}. The last "
                "checkpoint is intact. Lower the learning rates, or try --config.dtype=float32."
            )
        return {"sums": dict(self._sums), "count": self._count}

    def take(self, step: int) -> dict[str, float]:
        """Return the averages, and start anew; see `state` for what it raises."""
        stored = self.state(step)
        self._sums, self._count = {}, 0
        return {name: total / stored["count"] for name, total in stored["sums"].items()}
