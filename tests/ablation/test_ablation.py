"""A table from its first run to its last: trained, scored, resumed, and with runs that fail."""

import importlib
import json
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path

import pytest

from xmcgan.studies.ablation import runner as runners
from xmcgan.studies.ablation import scoring
from xmcgan.studies.ablation.plan import Cell, plan_cells
from xmcgan.studies.ablation.runner import Runner
from xmcgan.studies.ablation.scoring import Scoring
from xmcgan.training.monitoring import StopSignal

ROOT = Path(__file__).resolve().parents[2]
SCORING = Scoring(20, "fd-effnet-lite2")


def tiny_overrides(root: Path) -> list[str]:
    """Return what makes `shapes:quickstart` the config of `tiny.tiny_config`, two steps long."""
    values = {
        "data.name": "shapes/tiny",
        "data.data_dir": root / "data",
        "text.weights": root / "bert",
        "text.max_tokens": 8,
        "batch_size": 8,
        "generator.width": 2,
        "generator.z_dim": 4,
        "generator.whiten_sentence": "false",
        "discriminator.width": 2,
        "num_train_steps": 2,
        "num_samples": 4,
    }
    return [f"{field}={value}" for field, value in values.items()]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that are started find the package, on one device, and score with tiny parts."""
    offline = os.environ["PYTHONPATH"]
    path = [ROOT, offline]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, path)))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    monkeypatch.setattr(scoring, "load_network", lambda *_: None)


@pytest.fixture
def ablate(run, tiny_root, programs, monkeypatch, tmp_path):
    """Return a function that runs the script and gives its status, output and errors."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "evaluation")
    evaluate = importlib.import_module("eval_program").PROGRAM
    start = runners.subprocess.Popen

    def with_tiny_networks(command, **options):
        if command[1].endswith("eval_fid.py"):
            command = [command[0], "-c", evaluate, *command[2:]]
        return start(command, **options)

    monkeypatch.setattr(runners.subprocess, "Popen", with_tiny_networks)
    overrides = [f"--config.{each}" for each in tiny_overrides(tiny_root)]
    flags = ["--config", "shapes:quickstart", "--grid", "sentence", "--num-samples", 20]

    def call(*more: object):
        return run("scripts/ablate.py", *flags, "--out", tmp_path / "out", *overrides, *more)

    return call


def test_a_table_is_trained_scored_and_gone_on_with_after_a_failure(ablate, tmp_path):
    out = tmp_path / "out"
    (out / "runs" / "sentence").mkdir(parents=True)
    (out / "runs" / "sentence" / "seed_0").write_text("in the way")
    status, output, errors = ablate()
    assert status == 2
    assert "1 of 2 runs failed" in errors
    assert "sentence, seed 0: training ended with status 2" in errors
    assert re.search(r"^none +1 +\d", output, re.MULTILINE)  # the other has its row
    assert re.search(r"^sentence +0 +- ", output, re.MULTILINE)
    assert "Failed: sentence, seed 0" in (out / "ablation.md").read_text()

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
    assert (made["steps"], made["batch_size"], made["samples"]) == (2, 8, 20)
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
        "shapes:quickstart", ["word"], seeds=1, overrides=tiny_overrides(tiny_root), out=tmp_path
    )[0]


def program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def stopped_by(number: signal.Signals, cell: Cell, monkeypatch, started: Path) -> Runner:
    """Run cells whose training waits for a signal, which this process gets once it has begun."""
    waiting = (
        "import os, pathlib, signal, sys, time\n"
        "own = 'in a group of its own' if os.getpgrp() == os.getpid() else ''\n"
        "def save(number, frame):\n"
        f"    pathlib.Path({str(started)!r}).write_text(f'saved {{number}} ' + own)\n"
        "    sys.exit(128 + number)\n"
        "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, save)\n"
        f"pathlib.Path({str(started)!r}).write_text('started')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(runners, "train_command", lambda cell: program(waiting))

    def send() -> None:
        while not (started.exists() and started.read_text() == "started"):
            pass
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    with StopSignal() as stop:
        runner = Runner([cell, cell], SCORING, program("raise SystemExit(1)"), stop)
        sender.start()
        runner.run()
        sender.join()
        assert stop.exit_status == 128 + number
    return runner


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_run_save_and_starts_no_other(one_cell, monkeypatch, tmp_path, number):
    runner = stopped_by(number, one_cell, monkeypatch, tmp_path / "state")
    assert (tmp_path / "state").read_text() == f"saved {number:d} in a group of its own"
    assert runner.failures == []


def test_runs_that_die_are_named_and_lose_no_other(one_cell, monkeypatch, capfd):
    commands = iter([program("import os; os.abort()"), program("raise SystemExit(3)")])
    monkeypatch.setattr(runners, "train_command", lambda cell: next(commands))
    with StopSignal() as stop:
        runner = Runner([one_cell, one_cell], SCORING, [], stop)
        runner.run()
    assert len(runner.failures) == 2
    assert "training was killed by signal 6" in runner.failures[0]
    assert "training ended with status 3" in runner.failures[1]
    assert shlex.quote("raise SystemExit(3)") in runner.failures[1]


def test_a_run_that_ends_elsewhere_than_planned_is_no_part_of_the_table(one_cell, monkeypatch):
    monkeypatch.setattr(runners, "train_command", lambda cell: program("pass"))
    with StopSignal() as stop:
        runner = Runner([one_cell], SCORING, program("raise SystemExit('evaluated')"), stop)
        runner.run()
    (failure,) = runner.failures
    assert "does not stand where this table's runs end" in failure


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config", "shapes", "--grid", "wrd"], "did you mean 'word'"),
        (["--config", "shapes", "--gird", "word"], "unknown argument '--gird'"),
        (["--config", "shapes", "--num-samples", "1"], "--num-samples is 1: at least 2"),
        (["--config", "shapes", "--protocol", "fid-2014"], "did you mean 'fid-2015'"),
        (["--config", "shapes", "--protocol", "fid-2015"], "no weights of its own"),
        (["--config", "shapes", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_mistakes_are_named_before_anything_is_trained(run, monkeypatch, flags, message):
    monkeypatch.setattr(Runner, "run", lambda self: pytest.fail("trained"))
    if "fid-2015" not in flags:
        monkeypatch.setattr(scoring, "load_network", lambda *_: None)
    status, _, errors = run("scripts/ablate.py", *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
