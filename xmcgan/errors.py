"""Errors that a user can mend, and how a command line shows them."""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence

_MOST_LISTED = 5


class UserError(Exception):
    """Report a mistake that the user can mend; the message says what and how."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: IPython asks for them by this name."""
        return [f"error: {self}"]


class ConfigError(UserError):
    """Report a configuration that is unknown, mistyped or cannot work."""


class DataError(UserError):
    """Report a data set, image or caption that cannot be used."""


class WeightsError(UserError):
    """Report pretrained weights that are missing, damaged or of the wrong shape."""


class CheckpointError(UserError):
    """Report a checkpoint or workdir that is damaged or belongs to another run."""


class TrainingError(UserError):
    """Report a run that cannot go on, such as one whose losses are no longer finite."""


class EvaluationError(UserError):
    """Report a score that would be wrong, such as one of too few images or of two protocols."""


class DistributedError(UserError):
    """Report processes that do not find each other."""


class AgreedError(UserError):
    """Report a mistake of one of several processes in all of them; process 0 prints it for all."""


def did_you_mean(
    name: str, known: Iterable[str], compared: Callable[[str], str] = lambda name: name
) -> str:
    """Return the end of a message that names a near miss.

    Args:
        name: what was given.
        known: what it may have been meant to be.
        compared: gives the part of a name that is compared; the whole by default.

    Returns:
        Such as `; did you mean 'shapes'?`, empty where nothing is near.
    """
    by_part = {compared(each): each for each in known}
    near = difflib.get_close_matches(compared(name), by_part, n=1)
    return f"; did you mean {by_part[near[0]]!r}?" if near else ""


def listed(lines: Sequence[str]) -> str:
    """Return lines for a message, indented below each other; the many are cut to a few."""
    shown = [*lines[:_MOST_LISTED]]
    if len(lines) > _MOST_LISTED:
        shown.append(f"and {len(lines) - _MOST_LISTED:,} more")
    return "".join(f"\n  {line}" for line in shown)


EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line's `main` and exit; no traceback for a user's mistake or a full disk.

    Args:
        main: parses flags and does the work; its return value is the exit status (None is 0).
    """
    try:
        status = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: {error.strerror}: {error.filename or 'the disk is full'}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    sys.exit(status)
