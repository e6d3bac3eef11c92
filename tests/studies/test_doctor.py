"""The doctor finds real damage, says where and what to do, and changes nothing."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from xmcgan.pretrained import weights
from xmcgan.shapes.dataset import Shapes
from xmcgan.studies import doctor
from xmcgan.utils.download import PinnedFile
from xmcgan.utils.files import lock_holder, lock_workdir

DOCTOR = "scripts/doctor.py"


@pytest.fixture
def examined(run, tmp_path):
    """Return a function that runs the doctor with an empty folder of weights."""

    def examine_with(*flags: object) -> tuple[int, str]:
        status, output, errors = run(DOCTOR, "--weights-dir", tmp_path / "weights", *flags)
        assert not errors
        return status, output

    return examine_with


@pytest.fixture
def own_run(tiny_root, tiny_workdir, tmp_path) -> tuple[Path, Path]:
    """Return copies of a finished run and of its data, and let its config point there."""
    workdir = shutil.copytree(tiny_workdir, tmp_path / "workdir")
    data_dir = shutil.copytree(tiny_root / "data", tmp_path / "data")
    config = workdir / "config.json"
    config.write_text(config.read_text().replace(str(tiny_root / "data"), str(data_dir)))
    return workdir, data_dir


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_healthy_run_has_no_problems_and_stays_as_it_is(examined, own_run):
    workdir, data_dir = own_run
    before = contents(workdir) | contents(data_dir)
    status, output = examined("--workdir", workdir, "--data-dir", data_dir)
    assert status == 0, output
    assert "step 3: every array has its digest" in output
    assert "step 6: every array has its digest" in output
    assert "shapes/tiny 'validation': 10 examples, read 10 of them" in output
    assert output.endswith("no problems found\n")
    assert contents(workdir) | contents(data_dir) == before


def test_every_fault_of_a_run_is_named_in_one_examination(examined, own_run):
    workdir, data_dir = own_run
    stored = (path for path in (workdir / "checkpoints" / "3" / "state").rglob("*"))
    largest = max((p for p in stored if p.is_file()), key=lambda p: p.stat().st_size)
    flip(largest, largest.stat().st_size // 2)
    (workdir / "checkpoints" / "6" / "record" / "record.json").write_text("{}")
    (record_file,) = data_dir.glob("shapes/tiny/*/*train*")
    flip(record_file, record_file.read_bytes().index(b"\x89PNG") + 60)
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "results.jsonl").write_text("rubbish\n")
    status, output = examined("--workdir", workdir)
    assert status == 1
    assert "PROBLEM  checkpoints  the checkpoint of step 3" in output
    assert "PROBLEM  checkpoints  the checkpoint of step 6" in output
    assert "--config.restore_step=3" in output
    assert "PROBLEM  data         record 0 of split 'train'" in output
    assert "prepare it again" in output
    assert "PROBLEM  results" in output
    assert "line 1 is not a result" in output
    assert output.endswith("4 problems found\n")


def test_data_that_a_run_was_not_trained_on_are_noticed(examined, own_run):
    workdir, data_dir = own_run
    shutil.rmtree(data_dir / "shapes" / "tiny")
    Shapes.write(Shapes.read(num_train=41, num_validation=10), data_dir, "tiny")
    status, output = examined("--workdir", workdir)
    assert status == 1
    assert "PROBLEM  data         shapes/tiny in" in output
    assert "is not what this run was trained on" in output


def test_a_damaged_config_does_not_hide_the_rest(examined, own_run):
    workdir, _ = own_run
    (workdir / "config.json").write_text("{")
    status, output = examined("--workdir", workdir)
    assert status == 1
    assert "config.json is damaged" in output
    assert "step 6: every array has its digest" in output


def test_who_holds_a_workdir_is_said_and_is_no_problem(examined, own_run):
    with lock_workdir(own_run[0]):
        status, output = examined("--workdir", own_run[0])
    assert status == 0
    assert f"in use by a training run, process {os.getpid()}" in output
    assert lock_holder(own_run[0]) == ""


def test_a_preparation_that_was_killed_is_named(examined, tmp_path):
    (tmp_path / "data" / "folder" / "mine" / "incomplete.X_1.0.0").mkdir(parents=True)
    (tmp_path / "data" / "shapes" / ".config").mkdir(parents=True)  # TFDS's own
    status, output = examined("--data-dir", tmp_path / "data")
    assert status == 1
    assert "'folder/mine' is not prepared in" in output
    assert ".config" not in output


@pytest.fixture
def pinned(monkeypatch, tmp_path) -> Path:
    """Return the file of small pinned weights, which stand where the doctor looks."""
    file = PinnedFile("a/model.bin", 4, hashlib.sha256(b"good").hexdigest())
    source = weights.Source((file,), requirement="project==1.0")
    monkeypatch.setattr(weights, "SOURCES", {"minilm": source})
    (tmp_path / "weights" / "minilm").mkdir(parents=True)
    path = tmp_path / "weights" / "minilm" / "model.bin"
    path.write_bytes(b"good")
    return path


def test_damaged_and_absent_weights_name_the_command_that_fetches_them(examined, pinned):
    assert examined()[0] == 0
    pinned.write_bytes(b"evil")
    status, output = examined()
    assert status == 1
    assert "has sha256" in output
    assert "fetch_weights.py minilm" in output
    shutil.rmtree(pinned.parent)
    status, output = examined()
    assert status == 1
    assert "is missing" in output


def test_python_and_packages_out_of_their_ranges_are_named(examined, pinned, monkeypatch):
    wanted = (">=3.99", ["numpy>=99  # far away", "no-such-package>=1", "jax>=0.1"])
    monkeypatch.setattr(doctor, "requirements", lambda: (wanted[0], wanted[1][1:]))
    status, output = examined()
    assert status == 1
    assert "where >=3.99 is needed" in output
    assert "no-such-package is not installed" in output
    monkeypatch.setattr(doctor, "requirements", lambda: (">=3.11", ["numpy>=99"]))
    assert "tested with >=99" in examined()[1]


def test_requirements_are_those_of_the_checkout_without_comments():
    python, packages = doctor.requirements()
    assert python == ">=3.11,<3.14"
    assert any(line.startswith("jax>=") for line in packages)
    assert not any("#" in line or not line for line in packages)


def test_too_little_disk_is_a_problem(tmp_path, capsys):
    found = doctor.Examination()
    doctor.check_disk(found, tmp_path, 1)
    assert found.problems == 0
    doctor.check_disk(found, tmp_path, 1e18)
    assert found.problems == 1
    assert "make room" in capsys.readouterr().out


def test_a_missing_package_is_a_finding_and_no_traceback(capsys):
    found = doctor.Examination()
    with found.of("devices"):
        found.fine("one")
        raise ModuleNotFoundError("No module named 'jax'")
    one, two, install = capsys.readouterr().out.splitlines()
    assert one.split() == ["ok", "devices", "one"]
    assert two.startswith("PROBLEM  devices      No module named 'jax'")
    assert "pip install" in install
    assert found.problems == 1


@pytest.mark.parametrize("flags", [["--workdir", "none"], ["--data-dir", "none"], ["--unknown"]])
def test_a_mistake_in_the_command_is_not_taken_for_a_problem(run, flags):
    assert run(DOCTOR, *flags)[0] == 2
