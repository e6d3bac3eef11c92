"""Weights & Biases, by a stand-in for its package: what it gets, and what its failures do."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xmcgan.config import fingerprint
from xmcgan.errors import ConfigError
from xmcgan.training import loop
from xmcgan.training.wandb_writer import ID_FILE, WandbWriter, import_wandb


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
    return WandbWriter(workdir, project="p", entity="", name="n", first_step=first_step)


def test_numbers_images_texts_and_choices_arrive_as_they_are(tmp_path, runs):
    with open_writer(tmp_path) as writer:
        writer.write_hparams({"seed": 1})
        writer.write_scalars(3, {"g_loss": np.float32(1.5)})
        writer.write_images(4, {"samples": np.zeros((2, 4, 5, 3), np.uint8)})
        writer.write_texts(5, {"note": "x"})
    (run,) = runs
    assert run.hparams == {"seed": 1}
    assert run.logged == [
        (3, {"g_loss": 1.5}),
        (4, {"samples": [("image", (4, 5, 3))] * 2}),
        (5, {"note": "x"}),
    ]
    assert run.is_finished
    assert run.options["project"] == "p"
    assert run.options["entity"] is None
    assert run.options["dir"] == str(tmp_path)


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_takes_another(tmp_path, runs):
    for first_step in (0, 100, 0):
        open_writer(tmp_path, first_step).close()
    first, resumed, fresh = (run.options["id"] for run in runs)
    assert first == resumed != fresh == (tmp_path / ID_FILE).read_text().strip()
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
    with pytest.raises(ConfigError, match=r"no API key.*WANDB_MODE=offline"):
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
        loop.train(tiny_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_a_project_the_package_is_not_imported(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with loop.open_writers(tiny_config, tmp_path, 0) as writer:
        writer.write_scalars(1, {"a": 1})


def test_with_a_project_every_writer_gets_the_same(tiny_config, tmp_path, runs):
    tiny_config.wandb.project = "p"
    with loop.open_writers(tiny_config, tmp_path, 0) as writer:
        writer.write_scalars(1, {"a": 1})
    assert runs[0].logged == [(1, {"a": 1.0})]
    assert runs[0].options["name"] == tmp_path.name
    assert '"a": 1.0' in (tmp_path / "metrics.jsonl").read_text()


def test_it_can_be_switched_on_when_a_run_is_resumed(tiny_config):
    before = fingerprint(tiny_config)
    tiny_config.wandb.project, tiny_config.wandb.entity = "p", "team"
    assert fingerprint(tiny_config) == before
