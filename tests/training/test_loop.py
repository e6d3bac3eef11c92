"""Whole runs: what they leave, that they resume bit for bit, and how they stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest

from xmcgan.errors import CheckpointError, DataError, TrainingError, WeightsError
from xmcgan.train import train
from xmcgan.training.checkpoint import committed_steps, restore_subtree

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "step", "g_params", "g_batch_stats", "g_opt_state", "ema_params", "ema_batch_stats",
    "d_params", "d_vectors", "d_opt_state", "rng",
)  # fmt: skip


def _logged(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _values(workdir: Path) -> list[dict]:
    """Return the log without what depends on the clock."""
    clock = ("time", "images_per_second", "data_wait_share")
    return [{k: v for k, v in line.items() if k not in clock} for line in _logged(workdir)]


def test_a_run_leaves_logs_grids_and_checkpoints(tiny_workdir):
    lines = _logged(tiny_workdir)
    assert [line["step"] for line in lines] == [2, 4, 6]
    expected = {
        "d_loss", "g_loss", "d_hinge_loss", "g_hinge_loss", "d_sentence_loss", "g_sentence_loss",
        "d_word_loss", "g_word_loss", "g_image_discriminator_loss", "real_sentence_accuracy",
        "real_word_accuracy", "fake_sentence_accuracy", "fake_word_accuracy", "d_margin",
        "d_grad_norm", "g_grad_norm", "images_per_second",
    }  # fmt: skip
    assert expected <= set(lines[0])
    names = {path.name for path in (tiny_workdir / "samples").iterdir()}
    assert names == {"step_00000003.png", "step_00000006.png"}
    assert committed_steps(tiny_workdir / "checkpoints") == [3, 6]
    assert list((tiny_workdir / "tensorboard").glob("events.*"))


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tiny_config, tiny_workdir, tmp_path):
    tiny_config.num_train_steps = 3  # in the middle of the log's second window
    assert train(tiny_config, tmp_path) == 0
    tiny_config.num_train_steps = 6
    assert train(tiny_config, tmp_path) == 0
    whole, resumed = (
        restore_subtree(workdir / "checkpoints", 6, PARTS) for workdir in (tiny_workdir, tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert _values(tmp_path) == _values(tiny_workdir)


def test_a_finished_run_says_so_and_changes_nothing(tiny_config, tiny_workdir, capsys):
    before = (tiny_workdir / "metrics.jsonl").read_bytes()
    assert train(tiny_config, tiny_workdir) == 0
    assert "finished: 6 of 6 steps" in capsys.readouterr().out
    assert (tiny_workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("field", "value"), [("seed", 1), ("batch_size", 16), ("region_size", 16)])
def test_a_workdir_of_another_configuration_is_refused(tiny_config, tiny_workdir, field, value):
    tiny_config[field] = value
    with pytest.raises(CheckpointError, match=field):
        train(tiny_config, tiny_workdir)


def test_a_damaged_newest_checkpoint_stops_the_run_until_an_older_one_is_asked_for(
    tiny_config, tiny_workdir, tmp_path
):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "workdir")
    for path in (workdir / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"step 6 .* is damaged(.|\n)*restore_step=3"):
        train(tiny_config, workdir)
    tiny_config.restore_step = 3
    assert train(tiny_config, workdir) == 0
    whole, again = (
        restore_subtree(folder / "checkpoints", 6, PARTS) for folder in (tiny_workdir, workdir)
    )
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_lost_checkpoints_are_no_fresh_start(tiny_config, tiny_workdir, tmp_path):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "workdir")
    for step in committed_steps(workdir / "checkpoints"):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=r"step 6 was saved .* is gone"):
        train(tiny_config, workdir)
    assert _logged(workdir)[-1]["step"] == 6


def test_unprepared_data_and_missing_weights_name_the_command_to_run(tiny_config, tmp_path):
    tiny_config.text.weights = str(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="nothing"):
        train(tiny_config, tmp_path / "a")
    tiny_config.data.name = "folder/mine"
    with pytest.raises(DataError, match=r"prepare_data\.py folder"):
        train(tiny_config, tmp_path / "b")
    tiny_config.data.name = "shapes/tiny"
    tiny_config.data.sample_split = "dev"
    with pytest.raises(DataError, match="dev"):
        train(tiny_config, tmp_path / "c")


def test_an_image_network_without_its_weights_says_what_to_do(tiny_config, tmp_path):
    tiny_config.losses.image_pretrained.enabled = True
    tiny_config.losses.image_pretrained.network = "vgg16"  # only ResNet-50 has a stand-in
    with pytest.raises(WeightsError, match=r"fetch_weights\.py vgg16"):
        train(tiny_config, tmp_path)


def test_steps_that_are_never_finite_stop_the_run_and_keep_state_and_batch(tiny_config, tmp_path):
    tiny_config.generator.learning_rate = 1e38  # the first step makes parameters as large
    tiny_config.stop_after_skipped_steps = 2
    with pytest.raises(TrainingError, match="layer Generator") as error:
        train(tiny_config, tmp_path)
    assert "checkpoint 4" in str(error.value)
    with np.load(tmp_path / "nonfinite" / "step_4.npz") as batch:
        assert batch["image"].shape[:2] == (2, 8)
    state = restore_subtree(tmp_path / "checkpoints", 4, ("g_params", "ema_params"))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_saves_the_current_step_and_exits(tiny_root, tmp_path, number, status):
    program = (
        "import sys, tiny; from pathlib import Path\n"
        "from xmcgan.train import train; from xmcgan.errors import run_cli\n"
        "config = tiny.tiny_config(Path(sys.argv[1])); config.num_train_steps = 10**6\n"
        "config.log_every_steps = 1; config.checkpoint_every_steps = 10**6\n"
        "config.data.num_workers = 1\n"
        "run_cli(lambda: train(config, Path(sys.argv[2])))\n"
    )
    command = [sys.executable, "-c", program, str(tiny_root), str(tmp_path)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ["PYTHONPATH"]])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
    log = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert "leaked" not in errors  # memory shared with the worker
    steps = committed_steps(tmp_path / "checkpoints")
    assert f"saved at step {steps[-1]}" in output
    assert _logged(tmp_path)[-1]["step"] == steps[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_first_compile_ends_the_run_before_its_first_step(
    tiny_root, tmp_path, monkeypatch, number
):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    process = processes.start(tiny_root, tmp_path, devices=1)
    assert process.stdout is not None
    while "compiling" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    ((status, output),) = processes.finish([process], 300)
    assert status == 128 + number, output
    assert f"stopped by {number.name} before the first step" in output
    assert committed_steps(tmp_path / "checkpoints") == []
