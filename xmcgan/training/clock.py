"""How fast the training steps are, without what happens between them."""

import contextlib
import time
from collections.abc import Iterator


class StepClock:
    """Measure images per second over the steps since the last lap.

    Args:
        step: steps done when the clock starts.
        batch_size: images of one generator update; a step counts as so many images.
    """

    def __init__(self, step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._start, self._start_step = time.monotonic(), step

    def lap(self, step: int) -> dict[str, float]:
        """Return `images_per_second` since the last lap, and start a new one."""
        now = time.monotonic()
        rate = (step - self._start_step) * self._batch_size / (now - self._start)
        self._start, self._start_step = now, step
        return {"images_per_second": rate}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the block out of the lap."""
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start
