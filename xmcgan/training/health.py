"""Signs of trouble in training: what a step measures of itself, and when to say so in words."""

import numpy as np
from jaxtyping import UInt8

_WINDOWS_BEFORE_WARNING = 3
_ALIKE = 0.05  # of the distance between real images, in pixels


def sample_diversity(
    samples: UInt8[np.ndarray, "b h w 3"],
    others: UInt8[np.ndarray, "b h w 3"],
    real: UInt8[np.ndarray, "b h w 3"],
) -> float:
    """Return how far samples of one caption lie apart, as a share of what real images do.

    Args:
        samples: one of each caption.
        others: the same with other noise.
        real: images of the same captions; at least two that differ.
    """

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(np.float32) - b).mean())

    return distance(samples, others) / distance(real, np.roll(real, 1, axis=0))


def diversity_warning(ratio: float) -> str:
    """Return what a `sample_diversity` says in words, empty where it is healthy."""
    if ratio >= _ALIKE:
        return ""
    return (
        f"samples of one caption are nearly alike ({ratio:.1%} of the distance between real "
        "images): the noise changes little"
    )


class SkipCount:
    """Count skipped steps in a row, one step behind the devices.

    Args:
        most: so many in a row are too many.
        in_row: how many there were when the run was interrupted.
    """

    def __init__(self, most: int, in_row: int = 0) -> None:
        self._most, self._in_row = most, in_row
        self._waiting: jax.Array | None = None

    def add(self, skipped: jax.Array) -> None:
        """Take the number of skipped updates of one step; wait for the step before."""
        self._settle()
        skipped.copy_to_host_async()
        self._waiting = skipped

    def are_too_many(self) -> bool:
        """Return whether to stop, one step late; only then wait for the last step, too."""
        return self._in_row >= self._most and self.in_row() >= self._most

    def in_row(self) -> int:
        """Return how many of the last steps were skipped, after waiting for all of them."""
        self._settle()
        return self._in_row

    def _settle(self) -> None:
        if self._waiting is not None:
            self._in_row = self._in_row + 1 if float(self._waiting) else 0
        self._waiting = None


class HealthWatch:
    """Warn, once an episode, of what lasts for several lines of the log."""

    def __init__(self) -> None:
        self._lasting: dict[str, int] = {}

    def warnings(self, averages: dict[str, float]) -> list[str]:
        """Return what is wrong in plain words.

        Args:
            averages: of a step's metrics since the last line of the log.
        """
        found = []
        for name, message in _signs(averages).items():
            self._lasting[name] = self._lasting.get(name, 0) + 1 if message else 0
            if message and self._lasting[name] == _WINDOWS_BEFORE_WARNING:
                found.append(message)
        return found


def _signs(averages: dict[str, float]) -> dict[str, str]:
    """Return what each sign of trouble says, empty where it does not hold."""
    hinge = averages.get("d_hinge_loss", 1.0)
    fake, real = averages.get("fake_similarity", 0.0), averages.get("real_similarity", 0.0)
    signs = {"discriminator": "", "collapse": ""}
    if hinge < 0.05:
        signs["discriminator"] = (
            f"the discriminator tells real from generated outright (its hinge loss is {hinge:.3f})"
            ": the generator learns little from it. Lower discriminator.learning_rate or width, "
            "or raise the generator's."
        )
    if 1 - fake < 0.1 * (1 - real):
        signs["collapse"] = (
            f"generated images look alike (similarity {fake:.3f}, of real ones {real:.3f}): the "
            "samples may have collapsed. Look at the sample grids; an earlier checkpoint may be "
            "better."
        )
    return signs
