"""Several processes train as one: the same losses, one end, and errors that all of them raise.

And how a CPU is divided into devices.
"""

import argparse
import json
import os
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from xmcgan.errors import DataError, DistributedError
from xmcgan.training.checkpoint import committed_steps
from xmcgan.utils import distributed
from xmcgan.utils.distributed import all_gather_json, broadcast_from_host0, is_host0, raise_on_all

JOIN = """
import argparse, sys
from xmcgan.utils import distributed
from xmcgan.errors import run_cli
parser = argparse.ArgumentParser()
distributed.add_flags(parser)
def main():
    with distributed.session(parser.parse_args()):
        pass
run_cli(main)
"""
FOREVER = ("num_train_steps=1000000", "log_every_steps=1", "sample_every_steps=1000000")


@pytest.fixture(autouse=True)
def leave_no_process_behind():
    """Also where a test fails: a process that waits for another waits for an hour."""
    yield
    processes.kill_started()


def _session(*flags: str) -> None:
    parser = argparse.ArgumentParser()
    distributed.add_flags(parser)
    with distributed.session(parser.parse_args(flags)):
        pass


def _losses(workdir: Path) -> np.ndarray:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.array([[line["d_loss"], line["g_loss"]] for line in lines])


def _wait_for(condition, running) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert time.monotonic() < deadline, "too slow"
        for process in running:
            assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


def test_without_flags_nothing_is_started():
    _session()
    assert is_host0()
    assert all_gather_json({"a": 1}) == [{"a": 1}]
    with pytest.raises(DataError, match="broken"), raise_on_all():
        raise DataError("broken")
    assert broadcast_from_host0(lambda: 3) == 3


def test_process_0_alone_is_asked_what_it_decides(monkeypatch):
    told = iter([[None, None], ["by process 0", None]])  # no mistakes, then the decision
    monkeypatch.setattr(distributed, "all_gather_json", lambda own: next(told))
    monkeypatch.setattr(distributed, "is_host0", lambda: False)
    assert broadcast_from_host0(lambda: pytest.fail("asked")) == "by process 0"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--coordinator", "a:1"], "--num-processes, --process-id"),
        (["--coordinator", "a", "--num-processes", "2", "--process-id", "1"], "HOST:PORT"),
        (["--coordinator", "a:1", "--num-processes", "2", "--process-id", "2"], "--process-id 2"),
    ],
)
def test_flags_that_do_not_fit_together_are_named(flags, named):
    with pytest.raises(DistributedError, match=named):
        _session(*flags)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        flags = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id", "0"]
        with pytest.raises(DistributedError, match=str(port)):
            _session(*flags)


def test_a_coordinator_that_is_not_there_and_no_cluster_are_errors_that_say_so():
    address = f"localhost:{processes.free_port()}"
    flags = ["--coordinator", address, "--num-processes", "2", "--process-id", "1"]
    running = [
        processes.start(*flags, "--join-timeout", "3", devices=1, program=JOIN),
        processes.start("--distributed", devices=1, program=JOIN),
    ]
    (absent, said), (alone, why) = processes.finish(running, 60)
    assert (absent, alone) == (2, 2)
    assert (
        f"process 1 did not meet the others in 3 seconds. Process 0 is expected at {address}"
        in said
    )
    assert "found no cluster" in why


@pytest.mark.slow
def test_five_steps_have_the_same_losses_on_any_devices_and_processes(tiny_root, tmp_path):
    layouts = {"one": (1, 1, 1), "eight": (1, 8, 1), "sharded": (1, 8, 4), "two_by_four": (2, 4, 2)}
    for name, (count, devices, fsdp) in layouts.items():
        options = ("num_train_steps=5", "log_every_steps=1", f"mesh.fsdp={fsdp}")
        running = processes.start_run(
            tiny_root, tmp_path / name, *options, processes=count, devices=devices
        )
        for status, output in processes.finish(running, 500):
            assert status == 0, output
    expected = _losses(tmp_path / "one")
    assert len(expected) == 5
    for name in layouts:
        np.testing.assert_allclose(_losses(tmp_path / name), expected, rtol=1e-5, err_msg=name)
    samples = {name: (tmp_path / name / "samples").iterdir() for name in layouts}
    assert {len(list(files)) for files in samples.values()} == {2}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tiny_root, tmp_path):
    running = processes.start_run(tiny_root, tmp_path, *FOREVER, processes=2, devices=2)
    log = tmp_path / "metrics.jsonl"
    _wait_for(lambda: log.exists() and log.stat().st_size, running)
    running[1].send_signal(signal.SIGTERM)
    outcomes = processes.finish(running, 120)
    assert [status for status, _ in outcomes] == [143, 143], outcomes
    (step,) = committed_steps(tmp_path / "checkpoints")[-1:]
    assert f"saved at step {step}" in outcomes[0][1]
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_process_is_killed_the_other_stops_and_fewer_go_on(tiny_root, tmp_path, lost):
    options = (*FOREVER, "checkpoint_every_steps=2", "mesh.fsdp=2")
    running = processes.start_run(tiny_root, tmp_path, *options, processes=2, devices=2)
    checkpoints = tmp_path / "checkpoints"
    _wait_for(lambda: committed_steps(checkpoints), running)
    os.kill(running[lost].pid, signal.SIGKILL)
    start = time.monotonic()
    outcomes = processes.finish(running, 90)
    assert time.monotonic() - start < 60
    status, output = outcomes[1 - lost]
    # JAX's own watch may be quicker than the failure of a collective.
    assert status in (distributed.EXIT_LOST, -signal.SIGABRT), output
    assert "was lost" in output or "another task died" in output
    target = committed_steps(checkpoints)[-1] + 2
    resumed = processes.start_run(
        tiny_root, tmp_path, f"num_train_steps={target}", "mesh.fsdp=1", processes=1, devices=2
    )
    ((status, output),) = processes.finish(resumed, 400)
    assert status == 0, output
    assert f"resumed at {target - 2:,}" in output
    assert committed_steps(checkpoints)[-1] == target


@pytest.mark.slow
@pytest.mark.parametrize("field", ["seed", "sample_every_steps", "batch_size"])
def test_processes_that_differ_are_refused_with_the_field(tiny_root, tmp_path, field):
    flags = processes.cluster_flags(2)
    value = {"seed": (0, 1), "sample_every_steps": (3, 4), "batch_size": (8, 12)}[field]
    running = [
        processes.start(tiny_root, tmp_path, f"{field}={value[i]}", *flags[i], devices=2)
        for i in range(2)
    ]
    outcomes = processes.finish(running, 120)
    assert [status for status, _ in outcomes] == [2, 2], outcomes
    assert f"{field}: {value[0]} -> {value[1]}" in outcomes[0][1]


@pytest.mark.slow
def test_a_mistake_that_one_process_meets_is_told_once_and_ends_all(tiny_root, tmp_path):
    flags = processes.cluster_flags(2)
    folders = (tiny_root / "data", tmp_path / "nothing")
    running = [
        processes.start(
            tiny_root, tmp_path / "run", f"data.data_dir={folders[i]}", *flags[i], devices=2
        )
        for i in range(2)
    ]
    (first, told), (second, silent) = processes.finish(running, 120)
    assert (first, second) == (2, 2)
    assert "error: process 1: " in told
    assert "nothing" in told
    assert "error" not in silent


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(0, 4), (32, 4), (6, 3), (2, 2), (7, 1), (-1, 1)]
)
def test_the_cores_that_share_a_batch_evenly_are_devices(monkeypatch, batch_size, devices):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    distributed.use_cpu_cores_as_devices(batch_size)
    assert set_to == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("XLA_FLAGS", "--xla_force_host_platform_device_count=8"), ("JAX_NUM_CPU_DEVICES", "1")],
)
def test_what_the_user_said_stays(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("changed"))
    distributed.use_cpu_cores_as_devices(32)
