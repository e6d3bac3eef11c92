"""A checkpoint that was saved and is gone is missed; a run neither starts anew nor goes back."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from xmcgan.errors import CheckpointError
from xmcgan.training.checkpoint import Checkpointer


def open_run(path: Path) -> Checkpointer:
    return Checkpointer(path, keep=3, fingerprint={})


def save_steps(path: Path, *steps: int) -> None:
    with open_run(path) as checkpointer:
        for step in steps:
            checkpointer.save(step, {"w": np.float32(step)}, {})


def test_a_newest_step_that_is_gone_is_missed_and_never_taken_for_a_fresh_start(tmp_path):
    save_steps(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2")
    with (
        open_run(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match=r"step 2 was saved .* is gone(.|\n)*restore_step=1"),
    ):
        checkpointer.latest_step()
    shutil.rmtree(tmp_path / "1")
    with (
        open_run(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match="to start anew, give another --workdir"),
    ):
        checkpointer.latest_step()


def test_a_run_that_went_back_and_was_killed_is_not_missed_a_step(tmp_path):
    save_steps(tmp_path, 1, 2)
    with open_run(tmp_path) as checkpointer:
        checkpointer._set_aside_from(2)  # what a save of step 2 does first
    with open_run(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1
        checkpointer._set_aside_from(1)
        assert checkpointer.latest_step() is None
