"""Logs hold each step once, whatever became of the process; averages and what W&B gets."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from xmcgan.config import fingerprint
from xmcgan.errors import ConfigError, TrainingError
from xmcgan.train import train
from xmcgan.training.logging import (
    WANDB_ID_FILE,
    JsonLinesWriter,
    MetricAverages,
    TensorBoardWriter,
    WandbWriter,
    import_wandb,
    open_writers,
)


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def events_of(directory: Path) -> list[Event]:
    """Read event files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    events = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return events


def test_scalars_are_one_object_a_line(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(3, {"g_loss": jnp.float32(1.5), "d_loss": np.float64(-2), "n": 4})
        assert lines_of(path)[0]["g_loss"] == 1.5, "a line is there as soon as it is written"
    (line,) = lines_of(path)
    assert line.pop("time") > 1e9
    assert line == {"step": 3, "g_loss": 1.5, "d_loss": -2.0, "n": 4.0}


def test_what_is_no_number_stays_valid_json_and_can_be_told_apart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(1, {"a": float("nan"), "b": np.inf, "c": -np.inf})

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads(path.read_text(), parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    assert np.isnan(float(line["a"]))
    assert float(line["b"]) == np.inf


def test_a_resumed_log_holds_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        for step in range(1, 8):
            writer.write_scalars(step, {"course": 1})
    with JsonLinesWriter(path, 4) as writer:
        for step in range(5, 10):
            writer.write_scalars(step, {"course": 2})
    lines = lines_of(path)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert [line["course"] for line in lines] == [1.0] * 4 + [2.0] * 5


def test_a_new_run_drops_what_a_run_without_checkpoint_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for value in (1, 2):
        with JsonLinesWriter(path, 0) as writer:
            writer.write_scalars(1, {"a": value})
    assert [line["a"] for line in lines_of(path)] == [2.0]


@pytest.mark.parametrize("tail", [b'{"step": 2, "ti', b'{"step": 2}', b"\0\0\0\n", b"[1]\n", b"\n"])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    with JsonLinesWriter(path) as writer:
        writer.write_scalars(1, {"a": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with JsonLinesWriter(path) as writer:
        assert path.read_bytes() == whole
        writer.write_scalars(2, {"a": 2})
    assert [line["step"] for line in lines_of(path)] == [1, 2]


def test_tensorboard_files_hold_scalars_images_and_hyperparameters(tmp_path):
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    with TensorBoardWriter(tmp_path) as writer:
        writer.write_hparams({"seed": 1, "d_steps": 2})
        writer.write_scalars(7, {"loss/g": jnp.float32(0.25)})
        writer.write_images(7, {"samples": image, "one": image[:1]})
    values = {v.tag: (e.step, v) for e in events_of(tmp_path) for v in e.summary.value}
    step, scalar = values["loss/g"]
    assert step == 7
    assert scalar.simple_value == 0.25
    assert values["samples_01"][1].image.height == 4
    assert "one" in values
    texts = {tag: value.tensor.string_val[0] for tag, (_, value) in values.items() if "text" in tag}
    assert any(b"| seed | 1 |" in text for text in texts.values())


def test_a_resumed_run_tells_tensorboard_which_steps_to_forget(tmp_path):
    with TensorBoardWriter(tmp_path, purge_step=5):
        pass
    starts = [event for event in events_of(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [5]


@pytest.mark.parametrize("image", [np.zeros((1, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_images_of_another_kind_are_refused(tmp_path, image):
    with pytest.raises(ValueError, match="grid"):
        TensorBoardWriter(tmp_path).write_images(1, {"grid": image})


def test_all_writers_of_a_resumed_run_hold_each_step_once(tmp_path):
    for resume_step in (0, 2):
        with open_writers(tmp_path, resume_step) as writer:
            for step in range(resume_step + 1, resume_step + 5):
                writer.write_scalars(step, {"resumed_from": resume_step})
    lines = lines_of(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["resumed_from"] for line in lines] == [0] * 2 + [2] * 4
    events = events_of(tmp_path / "tensorboard")
    assert [e.step for e in events if e.HasField("session_log")] == [1, 3]


def test_training_starts_without_tensorflow_plots_and_uploads():
    check = (
        "import sys, xmcgan.train;"
        "print(sorted({'tensorflow', 'torch', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _metrics(skipped, **values):
    return {name: jax.numpy.array(x) for name, x in (values | {"skipped_updates": skipped}).items()}


def test_losses_that_are_not_finite_stop_the_run_and_are_named():
    averages = MetricAverages()
    averages.add(_metrics(0, g_loss=np.nan, d_loss=1.0))
    with pytest.raises(TrainingError, match="g_loss"):
        averages.compute_and_reset(7)


def test_skipped_steps_are_counted_and_left_out_of_the_averages():
    averages = MetricAverages()
    for metrics in (_metrics(0, loss=1.0), _metrics(1, loss=np.nan), _metrics(0, loss=3.0)):
        averages.add(metrics)
    assert averages.compute_and_reset(3) == {"loss": 2.0, "skipped_updates": 1.0}


def test_averages_survive_being_stored_as_json():
    whole, part = MetricAverages(), MetricAverages()
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    for value in values:
        whole.add(_metrics(0, x=value))
    for value in values[:2]:
        part.add(_metrics(0, x=value))
    rest = MetricAverages(json.loads(json.dumps(part.state(2))))
    for value in values[2:]:
        rest.add(_metrics(0, x=value))
    assert rest.compute_and_reset(0) == whole.compute_and_reset(0)


class UsageError(Exception):
    """As the package's: a mistake of its user."""


class AuthenticationError(Exception):
    """As the package's: nobody is logged in."""


class FakeRun:
    """Keep what is written; fail where asked to."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.logged, self.hparams = options, [], {}
        self.is_finished, self.failure = False, None
        self.config = SimpleNamespace(update=self._update)

    def _update(self, values: dict[str, Any], allow_val_change: bool) -> None:
        assert allow_val_change
        self.hparams |= values

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.failure:
            raise self.failure
        self.logged.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch) -> list[FakeRun]:
    """Put a stand-in in place of the package; return the runs that it begins."""
    begun: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        begun.append(FakeRun(options))
        return begun[-1]

    fake = ModuleType("wandb")
    vars(fake).update(
        init=init,
        Settings=lambda **settings: settings,
        Image=lambda array: ("image", array.shape),
        errors=SimpleNamespace(UsageError=UsageError, AuthenticationError=AuthenticationError),
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return begun


def open_writer(workdir, first_step: int = 0) -> WandbWriter:
    return WandbWriter(workdir, "p", "", first_step)


def test_numbers_images_and_choices_arrive_as_they_are(tmp_path, runs):
    with open_writer(tmp_path) as writer:
        writer.write_hparams({"seed": 1})
        writer.write_scalars(3, {"g_loss": np.float32(1.5)})
        writer.write_images(4, {"samples": np.zeros((2, 4, 5, 3), np.uint8)})
    (run,) = runs
    assert run.hparams == {"seed": 1}
    assert run.logged == [
        (3, {"g_loss": 1.5}),
        (4, {"samples": [("image", (4, 5, 3))] * 2}),
    ]
    assert run.is_finished
    assert run.options["project"] == "p"
    assert run.options["entity"] is None
    assert run.options["dir"] == str(tmp_path)


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_takes_another(tmp_path, runs):
    for first_step in (0, 100, 0):
        open_writer(tmp_path, first_step).close()
    first, resumed, fresh = (run.options["id"] for run in runs)
    assert first == resumed != fresh == (tmp_path / WANDB_ID_FILE).read_text().strip()
    assert {run.options["resume"] for run in runs} == {"allow"}


def test_a_failing_upload_is_one_warning_and_no_error(tmp_path, runs, capsys):
    with open_writer(tmp_path) as writer:
        runs[0].failure = RuntimeError("no network")
        for step in range(3):
            writer.write_scalars(step, {"a": 1})
    assert capsys.readouterr().err.count("no network") == 1
    assert runs[0].logged == []


def test_a_service_that_does_not_answer_at_the_start_is_a_warning(
    tmp_path, runs, capsys, monkeypatch
):
    def fail(**_: Any) -> None:
        raise TimeoutError("90 seconds")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with open_writer(tmp_path) as writer:
        writer.write_scalars(1, {"a": 1})
    assert "90 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("error", [UsageError, AuthenticationError])
def test_who_is_not_logged_in_is_told_how_to(tmp_path, runs, monkeypatch, error):
    def fail(**_: Any) -> None:
        raise error("no API key")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(ConfigError, match="WANDB_MODE=offline"):
        open_writer(tmp_path)


@pytest.mark.parametrize("what", [None, ModuleType("wandb")])
def test_a_missing_package_is_named_and_a_folder_of_its_name_is_none(monkeypatch, what):
    monkeypatch.setitem(sys.modules, "wandb", what)
    with pytest.raises(ConfigError, match="pip install wandb"):
        import_wandb()


def test_training_stops_at_once_without_the_package(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    tiny_config.wandb.project = "p"
    with pytest.raises(ConfigError, match="pip install wandb"):
        train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_project_the_package_is_not_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with open_writers(tmp_path, 0) as writer:
        writer.write_scalars(1, {"a": 1})


def test_with_a_project_every_writer_gets_the_same(tmp_path, runs):
    with open_writers(tmp_path, 0, project="p") as writer:
        writer.write_scalars(1, {"a": 1})
    assert runs[0].logged == [(1, {"a": 1.0})]
    assert runs[0].options["name"] == tmp_path.name
    assert '"a": 1.0' in (tmp_path / "metrics.jsonl").read_text()


def test_it_can_be_switched_on_when_a_run_is_resumed(tiny_config):
    before = fingerprint(tiny_config)
    tiny_config.wandb.project, tiny_config.wandb.entity = "p", "team"
    assert fingerprint(tiny_config) == before
