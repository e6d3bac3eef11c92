"""Training removes old checkpoints, and never one that somebody pinned."""

import threading
from pathlib import Path

from xmcgan.training import retention


def make_steps(directory: Path, *steps: int) -> Path:
    for step in steps:
        (directory / str(step) / "state").mkdir(parents=True)
        (directory / str(step) / "state" / "array").write_bytes(b"0" * 100)
    return directory


def test_the_newest_stay_and_older_ones_go(tmp_path):
    make_steps(tmp_path, 1, 20, 3, 100)
    assert retention.remove_old(tmp_path, keep=2) == [1, 3]
    assert retention.committed_steps(tmp_path) == [20, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["100", "20", "pins"]


def test_a_pinned_step_stays_until_its_last_pin_is_gone(tmp_path):
    make_steps(tmp_path, 1, 2, 3)
    assert retention.pin(tmp_path, 1, "evaluation")
    assert retention.pin(tmp_path, 1, "best")
    assert retention.remove_old(tmp_path, keep=1) == [2]
    retention.unpin(tmp_path, 1, "evaluation")
    assert retention.remove_old(tmp_path, keep=1) == []
    assert retention.pinned_steps(tmp_path) == retention.pinned_steps(tmp_path, "best") == {1}
    assert retention.pinned_steps(tmp_path, "evaluation") == set()
    retention.unpin(tmp_path, 1, "best")
    assert retention.remove_old(tmp_path, keep=1) == [1]


def test_a_step_that_is_gone_cannot_be_pinned(tmp_path):
    make_steps(tmp_path, 1)
    assert not retention.pin(tmp_path, 2, "evaluation")
    assert retention.pinned_steps(tmp_path) == set()


def test_pinning_while_another_removes_never_loses_a_pinned_step(tmp_path):
    # Locks are of open files: two threads exclude each other as two processes do.
    steps = list(range(1, 200))
    make_steps(tmp_path, *steps)
    pinned: list[int] = []

    def pin_all() -> None:
        pinned.extend(s for s in steps[::-1] if retention.pin(tmp_path, s, "evaluation"))

    other = threading.Thread(target=pin_all)
    other.start()
    for keep in range(150, 0, -10):
        retention.remove_old(tmp_path, keep)
    other.join()
    assert set(pinned) <= set(retention.committed_steps(tmp_path))
