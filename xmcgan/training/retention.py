"""Which checkpoints stay: the newest, and those that are pinned, by an evaluation for instance.

A pin is an empty file `DIRECTORY/pins/STEP.REASON`. It outlives the process that set it, so that an
evaluation which was killed finds its checkpoint when it comes back. Pinning and removing hold the
same lock: a step that was pinned is never removed, and a step that is going cannot be pinned.
"""

import shutil
from pathlib import Path

from xmcgan.errors import CheckpointError
from xmcgan.utils.files import lock_folder, write_text

_PINS = "pins"
_NEWEST = "newest"  # a file with the number of the last step that was saved
# Orbax's mark of what is not whole, which `Checkpointer` clears away when it opens a folder.
_REMOVED = ".orbax-checkpoint-tmp-removed"


def committed_steps(directory: Path) -> list[int]:
    """Return the steps that are complete in a folder of checkpoints, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def note_newest(directory: Path, step: int | None) -> None:
    """Write down which step is the newest, so that its loss is noticed; None: there is none."""
    write_text(directory / _NEWEST, "" if step is None else str(step))


def noted_newest(directory: Path) -> int | None:
    """Return the step that was written down, None where there is none or it cannot be read."""
    try:
        return int((directory / _NEWEST).read_bytes())
    except (OSError, ValueError):
        return None


def pin(directory: Path, step: int, reason: str) -> bool:
    """Keep a step until it is unpinned; pinning twice is pinning once.

    Args:
        directory: the folder of the step folders.
        step: which step.
        reason: a word, such as "evaluation"; a step may be pinned for several.

    Returns:
        False where the step is not there (any more).
    """
    with lock_folder(directory / _PINS, CheckpointError):
        if step not in committed_steps(directory):
            return False
        (directory / _PINS / f"{step}.{reason}").touch()
        return True


def unpin(directory: Path, step: int, reason: str) -> None:
    """Let go of a step as far as this reason is concerned."""
    (directory / _PINS / f"{step}.{reason}").unlink(missing_ok=True)


def pinned_steps(directory: Path, reason: str = "*") -> set[int]:
    """Return the steps that are pinned, for a reason or for any."""
    names = [path.name for path in (directory / _PINS).glob(f"[0-9]*.{reason}")]
    return {int(name.partition(".")[0]) for name in names}


def remove_old(directory: Path, keep: int) -> list[int]:
    """Remove all steps but the newest `keep` and those that are pinned.

    Returns:
        The steps that were removed.
    """
    with lock_folder(directory / _PINS, CheckpointError):
        pinned = pinned_steps(directory)
        old = [step for step in committed_steps(directory)[:-keep] if step not in pinned]
        # A step vanishes at once: nobody sees half of one.
        doomed = [(directory / str(step)).rename(directory / f"{step}{_REMOVED}") for step in old]
    for path in doomed:
        shutil.rmtree(path, ignore_errors=True)
    return old
