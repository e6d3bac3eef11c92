"""A run that is killed again and again ends as one that never was, bit for bit.

XMCGAN_SOAK_KILLS says how often; five times unless set.
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from xmcgan.training import checkpoint
from xmcgan.training.checkpoint import committed_steps

KILLS = int(os.environ.get("XMCGAN_SOAK_KILLS", "5"))
NUM_STEPS = 20 * KILLS  # more than the lives before the kills will take
COMMON = (f"num_train_steps={NUM_STEPS}", "log_every_steps=7", "sample_every_steps=1000000")


def _wait_for_a_step(process: subprocess.Popen[str], checkpoints: Path, before: int) -> bool:
    """Wait until this process has saved a step; return False where it ended."""
    deadline = time.monotonic() + 400
    while max(committed_steps(checkpoints), default=0) <= before:
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.01)
    return True


def _kill_at_random(root: Path, workdir: Path, delays: random.Random) -> bool:
    """Start the run and kill it, mostly amid its steps and saves; return False where it ended."""
    checkpoints = workdir / "checkpoints"
    before = max(committed_steps(checkpoints), default=0)
    # A save at every step: nearly always one is under way.
    process = processes.start(root, workdir, *COMMON, "checkpoint_every_steps=1", devices=1)
    try:
        if delays.random() < 0.2:
            time.sleep(delays.uniform(0, 8))  # while it starts, restores and compiles
        elif _wait_for_a_step(process, checkpoints, before):
            time.sleep(delays.uniform(0, 1))
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
    finally:
        output = processes.finish([process], 60)[0][1]
    assert running or f"finished: {NUM_STEPS:,} steps" in output, output
    return running


def _log(workdir: Path) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    clock = ("time", "images_per_second", "data_wait_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_one_that_never_was(
    tiny_root, tmp_path, capsys
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run = processes.start(tiny_root, whole, *COMMON, "checkpoint_every_steps=1000000", devices=1)
    ((status, output),) = processes.finish([run], 3000)
    assert status == 0, output
    delays, kills, moments = random.Random(0), 0, []
    while kills < KILLS and _kill_at_random(tiny_root, killed, delays):
        kills += 1
        moments.append(max(committed_steps(killed / "checkpoints"), default=0))
    run = processes.start(tiny_root, killed, *COMMON, "checkpoint_every_steps=1000000", devices=1)
    ((status, output),) = processes.finish([run], 3000)
    assert status == 0, output
    records = [checkpoint.read_record(w / "checkpoints", NUM_STEPS) for w in (whole, killed)]
    assert records[0].extra == records[1].extra
    parts = sorted({name.split("/")[0] for name in records[0].leaves})
    states = [
        checkpoint.restore_subtree(w / "checkpoints", NUM_STEPS, parts) for w in (whole, killed)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert _log(killed) == _log(whole)
    with capsys.disabled():
        print(f"\n{kills} kills after steps {moments}; {len(parts)} parts equal bit for bit")
    assert kills == KILLS
