"""Ctrl-C and SIGTERM: finish the step, save, leave."""

import signal
import sys
from types import FrameType, TracebackType

import jax
import numpy as np

from xmcgan.utils.mesh import put_shares, replicated, sample_sharding


class StopSignal:
    """Remember the first SIGINT or SIGTERM inside a `with` block; a second one acts at once.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_status(self) -> int:
        """Return the shell's status for a process that the signal ended, 0 without one."""
        return 0 if self.received is None else 128 + self.received

    @property
    def outcome(self) -> str:
        """Return how a run ended, in a word: the signal's name, or `finished`."""
        return "finished" if self.received is None else self.received.name

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        again = "; once more stops at once, without saving"
        print(f"\n{self.received.name}: saving after this step{again}", file=sys.stderr, flush=True)


class StopVote:
    """Let all processes stop after the same step, whichever of them got the signal.

    Every process casts its vote with every step, and reads the result of the step before, which
    is ready then: no step waits for it.

    Args:
        stop: this process's.
        mesh: devices of all processes.
    """

    def __init__(self, stop: StopSignal, mesh: jax.sharding.Mesh) -> None:
        self._stop, self._sharding = stop, sample_sharding(mesh)
        self._highest = jax.jit(lambda votes: votes.max(), out_shardings=replicated(mesh))
        self._last: jax.Array | None = None

    def is_over(self) -> bool:
        """Return whether to stop now; every process asks before every step."""
        if jax.process_count() == 1:
            return self._stop.received is not None
        votes = np.full(jax.local_device_count(), self._stop.received or 0, np.int32)
        last, self._last = self._last, self._highest(put_shares(votes, self._sharding))
        number = 0 if last is None else int(last)
        if number:
            self._stop.received = signal.Signals(number)
        return number > 0
