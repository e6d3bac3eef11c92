"""Averages of a step's metrics over the steps between two lines of the log."""

import math
from typing import Any

import jax

from xmcgan.errors import TrainingError

SKIPPED = "skipped_updates"  # the one that is added up, not averaged


class MetricAverages:
    """Add up metrics, fetching them from the devices only when they are asked for.

    Steps with a skipped update count in the sum of these alone: their losses are not finite.

    Args:
        stored: what `state` returned when the run was interrupted.
    """

    def __init__(self, stored: dict[str, Any] | None = None) -> None:
        self._sums: dict[str, float] = dict(stored["sums"]) if stored else {}
        self._count: int = stored["count"] if stored else 0
        self._skipped: float = stored["skipped"] if stored else 0.0
        self._waiting: list[dict[str, jax.Array]] = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of one step, without waiting for them."""
        self._waiting.append(metrics)

    def state(self, step: int) -> dict[str, Any]:
        """Return sums and counts as JSON values, exact to the bit.

        Args:
            step: of the last metrics; named in the error.

        Raises:
            TrainingError: a sum is NaN or infinite although no update was skipped.
        """
        for metrics in jax.device_get(self._waiting):
            skipped = float(metrics.pop(SKIPPED))
            self._skipped += skipped
            if skipped:
                continue
            self._count += 1
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._waiting = []
        bad = [name for name, total in self._sums.items() if not math.isfinite(total)]
        if bad:
            raise TrainingError(
                f"not finite in the steps up to {step}: {', '.join(sorted(bad))}. The last "
                "checkpoint is intact. Lower the learning rates, or try --config.dtype=float32."
            )
        return {"sums": dict(self._sums), "count": self._count, "skipped": self._skipped}

    def take(self, step: int) -> dict[str, float]:
        """Return the averages, and start anew; see `state` for what it raises."""
        stored = self.state(step)
        self._sums, self._count, self._skipped = {}, 0, 0.0
        averages = {name: total / stored["count"] for name, total in stored["sums"].items()}
        return averages | {SKIPPED: stored["skipped"]}
