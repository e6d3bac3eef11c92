"""Errors that a user can mend, and how a command line shows them."""

import difflib
import errno
import re
import sys
from collections.abc import Callable, Iterable, Sequence

_MOST_LISTED = 5


class UserError(Exception):
    """Mistake that the user can mend; the message says what and how."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows in a notebook
        return [f"error: {self}"]


class ConfigError(UserError):
    """A configuration that is unknown, mistyped or cannot work."""


class DataError(UserError):
    """A data set, image or caption that cannot be used."""


class WeightsError(UserError):
    """Pretrained weights that are missing, damaged or of the wrong shape."""


class CheckpointError(UserError):
    """A checkpoint or workdir that is damaged or belongs to another run."""


class TrainingError(UserError):
    """A run that cannot go on, such as one whose losses are no longer finite."""


class EvaluationError(UserError):
    """A score that would be wrong, such as one of too few images or of two protocols."""


class DistributedError(UserError):
    """Processes that do not find each other."""


class AgreedError(UserError):
    """A mistake of one of several processes in all of them; process 0 prints it for all."""


def did_you_mean(
    name: str, known: Iterable[str], compared: Callable[[str], str] = lambda name: name
) -> str:
    """Return the end of a message such as `; did you mean 'shapes'?`, empty if nothing is near.

    `compared` gives the part of a name that is compared, by default the whole.
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


BUCKET = "gs://"  # how a path in a bucket begins
_FLAGS_OF_BUCKETS = ("--workdir", "--config.data.data_dir", "--config.init_from")


def refuse_url(text: str, error: type[UserError] = UserError) -> None:
    """Raise `error` if a path is a URL such as s3://bucket/run.

    Also in the form s3:/bucket/run that `pathlib` makes of it, which would become a local folder.
    """
    if found := re.match(r"([a-z][a-z0-9+.-]+):/", text):
        raise error(
            f"{text}: {found[1]}:// is not supported here; give a folder of this machine, such as "
            f"one where the bucket is mounted. Workdirs and prepared data may be at {BUCKET}."
        )


def _refuse_urls(arguments: Iterable[str]) -> None:
    """Refuse the URLs of a command line, except buckets where a flag can take one."""
    flag = ""
    for argument in arguments:
        name, _, value = argument.partition("=") if argument[:2] == "--" else (flag, "", argument)
        if "://" in value and not (name in _FLAGS_OF_BUCKETS and value.startswith(BUCKET)):
            refuse_url(value)
        flag = name if not value else ""  # of the next argument


EXIT_USER_ERROR = 2


def run_cli(main: Callable[[], int | None]) -> None:
    """Exit with the status that `main` returns; no traceback for a mistake or a full disk."""
    message, status = "", EXIT_USER_ERROR
    try:
        _refuse_urls(sys.argv[1:])
        status = main() or 0
    except UserError as error:
        message = f"error: {error}"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        message = f"error: {error.strerror}: {error.filename or 'the disk is full'}"
    except KeyboardInterrupt:
        message, status = "interrupted", 130  # 128 + SIGINT, the shell's convention
    if message:
        print(message, file=sys.stderr)
    sys.exit(status)
