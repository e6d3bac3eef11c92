"""A table from its first run to its last: trained, scored, resumed, and with runs that fail."""

import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from xmcgan.config import apply_override, load_config, save_config
from xmcgan.studies.ablation import runs
from xmcgan.studies.ablation.plan import Cell, plan_cells
from xmcgan.studies.ablation.runs import Scoring, run_cells
from xmcgan.training.command_line import parse_args
from xmcgan.training.monitoring import StopSignal

ROOT = Path(__file__).resolve().parents[2]
SCORING = Scoring(20, "fd-effnet-lite2")


def tiny_overrides(root: Path) -> list[str]:
    """Return what makes `shapes:quickstart` the config of `tiny.tiny_config`."""
    values = {
        "data.name": "shapes/tiny",
        "data.data_dir": root / "data",
        "text.weights": root / "bert",
        "text.max_tokens": 8,
        "batch_size": 8,
        "generator.width": 2,
        "generator.z_dim": 4,
        "discriminator.width": 2,
        "num_train_steps": 6,
        "num_samples": 4,
    }
    return [f"{field}={value}" for field, value in values.items()]


def train_in_no_time(arguments: list[str], trained: Path) -> int:
    """Do what `xmcgan.train` does, with the checkpoints of a finished run; return its status."""
    args, overrides = parse_args(arguments)
    if args.workdir.is_file():
        return 2
    config = load_config(args.config)
    for override in overrides:
        apply_override(config, override)
    shutil.copytree(trained, args.workdir)
    save_config(config, args.workdir / "config.json")
    return 0


@pytest.fixture
def ablate(run, tiny_root, tiny_workdir, monkeypatch, tmp_path):
    """Return a function that runs the script, and its programs in this process: that is faster."""
    tiny_network = importlib.import_module("tiny_network")
    tiny_network.install(monkeypatch)
    tiny_network.install_detector(monkeypatch)
    monkeypatch.setattr(runs, "load_network", lambda *_: None)

    class InThisProcess:
        def __init__(self, command, **_):
            if command[1:3] == ["-m", "xmcgan.train"]:
                self._status = train_in_no_time(command[3:], tiny_workdir)
                return
            with monkeypatch.context() as patch:
                patch.setattr(sys, "argv", command[1:])
                with pytest.raises(SystemExit) as stopped:
                    runpy.run_path(command[1], run_name="__main__")
            self._status = stopped.value.code or 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, _):
            return self._status

    overrides = [f"--config.{each}" for each in tiny_overrides(tiny_root)]
    flags = ["--config", "shapes:quickstart", "--grid", "sentence", "--num-samples", 20]

    def call(*more: object):
        with monkeypatch.context() as patch:
            patch.setattr(runs.subprocess, "Popen", InThisProcess)
            return run("scripts/ablate.py", *flags, "--out", tmp_path / "out", *overrides, *more)

    return call


def test_a_table_is_trained_scored_and_gone_on_with_after_a_failure(ablate, tmp_path):
    out = tmp_path / "out"
    (out / "runs" / "sentence").mkdir(parents=True)
    (out / "runs" / "sentence" / "seed_0").write_text("in the way")
    status, output, errors = ablate()
    assert status == 2
    assert "1 of 2 runs failed" in errors
    assert "sentence, seed 0: training exited with status 2" in errors
    text = (out / "ablation.md").read_text()
    assert re.search(r"^\| none \| 1 \| \d", text, re.MULTILINE)  # the other has its row
    assert "| sentence | 0 | - |" in text
    assert "Failed: sentence, seed 0" in text

    (out / "runs" / "sentence" / "seed_0").unlink()
    status, output, errors = ablate()
    assert status == 0, errors
    started = [line for line in output.splitlines() if line.startswith("$ ")]
    assert len(started) == 2  # a training and an evaluation: the other row was not touched
    assert all("seed_0" in line and "runs/none" not in line for line in started)
    table = json.loads((out / "ablation.json").read_text())
    assert [(row["losses"], row["seeds"]) for row in table["rows"]] == [
        ("none", [0]),
        ("sentence", [0]),
    ]
    none, sentence = (row["scores"]["fd-effnet-lite2/fd"] for row in table["rows"])
    assert sentence["difference"]["value"] == sentence["values"][0] - none["values"][0]
    assert sentence["mean"]["value"] == sentence["values"][0]
    for row in table["rows"]:
        config = json.loads((out / "runs" / row["losses"] / "seed_0" / "config.json").read_text())
        assert config["losses"]["sentence"]["enabled"] == (row["losses"] == "sentence")
    made = table["protocol"]
    assert (made["steps"], made["batch_size"], made["samples"]) == (6, 8, 20)
    assert made["network_weights_sha256"] == ["ab" * 32]
    text = (out / "ablation.md").read_text()
    assert "| none | 1 |" in text
    assert "shuffled captions" in text
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")

    status, output, _ = ablate()  # nothing is left to do
    assert status == 0
    assert "$ " not in output
    status, output, _ = ablate("--dry-run")
    assert "none, seed 0: done\n  sentence, seed 0: done\nleft: 0 images" in output


@pytest.fixture
def one_cell(tiny_root, tmp_path) -> Cell:
    return plan_cells(
        "shapes:quickstart", ["none"], seeds=1, overrides=tiny_overrides(tiny_root), out=tmp_path
    )[0]


def train_with(monkeypatch: pytest.MonkeyPatch, *programs: str) -> None:
    """Let cells be trained by these programs, one after the other."""
    commands = iter([[sys.executable, "-c", text] for text in programs])
    monkeypatch.setattr(Cell, "train_command", property(lambda cell: next(commands)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_starts_no_other(one_cell, monkeypatch, tmp_path, number):
    state = tmp_path / "state"
    waiting = f"""
import os, pathlib, signal, sys, time
own = "in a group of its own" if os.getpgrp() == os.getpid() else ""
def save(number, frame):
    pathlib.Path({str(state)!r}).write_text(f"saved {{number}} " + own)
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, save)
pathlib.Path({str(state)!r}).write_text("started")
time.sleep(60)
"""
    train_with(monkeypatch, waiting)

    def send() -> None:
        while not (state.exists() and state.read_text() == "started"):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    with StopSignal() as stop:
        sender.start()
        assert run_cells([one_cell, one_cell], SCORING, ["false"], stop) == []
        sender.join()
        assert stop.exit_status == 128 + number
    assert state.read_text() == f"saved {number:d} in a group of its own"


def test_runs_that_die_are_named_and_lose_no_other(one_cell, monkeypatch):
    train_with(monkeypatch, "import os; os.abort()", "raise SystemExit(3)")
    with StopSignal() as stop:
        first, second = run_cells([one_cell, one_cell], SCORING, [], stop)
    assert "killed by signal 6" in first
    assert "status 3" in second
    assert shlex.quote("raise SystemExit(3)") in second


def test_a_run_that_ends_elsewhere_than_planned_is_no_part_of_the_table(one_cell, monkeypatch):
    train_with(monkeypatch, "pass")
    with StopSignal() as stop:
        (failure,) = run_cells([one_cell], SCORING, ["evaluated"], stop)
    assert str(one_cell.workdir) in failure


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "shapes", "--grid", "wrd"], "did you mean 'word'"),
        (["--config", "shapes", "--gird", "word"], "unknown argument '--gird'"),
        (["--config", "shapes", "--num-samples", "1"], "--num-samples is 1: at least 2"),
        (["--config", "shapes", "--protocol", "fid-2014"], "did you mean 'fid-2015'"),
        (["--config", "shapes", "--protocol", "fid-2015"], "fetch_weights.py inception-2015"),
        (["--config", "shapes", "--protocol", "pr-vgg16"], "none of the table's scores"),
        (["--config", "shapes", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(run, monkeypatch, flags, message):
    monkeypatch.setattr(runs, "run_cells", lambda *_: pytest.fail("trained"))
    if "fid-2015" not in flags:
        monkeypatch.setattr(runs, "load_network", lambda *_: None)
    status, _, errors = run("scripts/ablate.py", *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
