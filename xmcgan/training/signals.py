"""Ctrl-C and SIGTERM: finish the step, save, leave."""

import signal
import sys
from types import FrameType, TracebackType


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

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        again = "; once more stops at once, without saving"
        print(f"\n{self.received.name}: saving after this step{again}", file=sys.stderr, flush=True)
