"""Runs whose workdir and data are in a bucket: what a disk gives, and what goes wrong there."""

import os
import pickle
import time

import jax
import numpy as np
import processes
import pytest
import tiny
import tiny_network
from test_checkpoint import assert_identical, make_state, open_run, restore, save_steps
from test_loop import PARTS, _values

from xmcgan.data import DataSet
from xmcgan.errors import CheckpointError, DataError
from xmcgan.evaluation.results import ResultFile
from xmcgan.sampling import init_from
from xmcgan.train import train
from xmcgan.training.checkpoint import committed_steps, pin, pinned_steps, restore_subtree, unpin
from xmcgan.utils import files
from xmcgan.utils.files import lock_workdir, path_of


@pytest.fixture
def directory(cloud, request):
    """Return an empty folder of the bucket."""
    return path_of(f"gs://bucket/{request.node.name}")


@pytest.fixture(scope="module")
def workdir(cloud, tiny_root):
    """Return the workdir of a finished run."""
    folder = path_of("gs://bucket/run")
    assert train(tiny.tiny_config(tiny_root), folder) == 0
    return folder


@pytest.fixture(scope="module")
def data_dir(cloud, tiny_root):
    """Return where the bucket has a copy of the tiny data."""
    for path in filter(os.path.isfile, (tiny_root / "data").rglob("*")):
        cloud.put("bucket", path.relative_to(tiny_root).as_posix(), path.read_bytes())
    return "gs://bucket/data"


def assert_same_run(workdir, other):
    states = [restore_subtree(folder / "checkpoints", 6, PARTS) for folder in (workdir, other)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert _values(workdir) == _values(other)


def test_a_run_leaves_there_what_it_leaves_on_a_disk(cloud, workdir, tiny_workdir):
    assert_same_run(workdir, tiny_workdir)
    found = {name.split("/")[1] for name in cloud.names("bucket", "run/")}
    assert found == {path.name for path in tiny_workdir.iterdir()} - {".lock"}
    grids = [{path.name for path in (w / "samples").iterdir()} for w in (workdir, tiny_workdir)]
    assert grids[0] == grids[1]


def test_a_run_killed_while_it_saved_resumes_bit_for_bit(
    cloud, workdir, data_dir, tiny_config, tiny_workdir, monkeypatch, capsys
):
    for name in cloud.names("bucket", "run/"):
        data = cloud.buckets["bucket"][name].data
        cloud.put("bucket", name.replace("run/", "killed/", 1), data)
    del cloud.buckets["bucket"]["killed/checkpoints/6/commit_success.txt"]
    cloud.put("bucket", "killed/checkpoints/newest", b"3")
    cloud.put("bucket", "killed/.lock.soft", b"1 on elsewhere")
    monkeypatch.setattr(files, "_EXPIRE_SECONDS", 0.5)
    killed = path_of("gs://bucket/killed")
    assert committed_steps(killed / "checkpoints") == [3]
    tiny_config.data.data_dir = data_dir
    assert train(tiny_config, killed) == 0
    assert_same_run(killed, tiny_workdir)
    assert "killed is locked by process 1 on elsewhere" in capsys.readouterr().err


def test_programs_read_and_write_there_as_on_a_disk(cloud, workdir, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tiny_network.install_detector(monkeypatch)
    scores = ("--metrics", "tiny:Brightness", "--num-samples", "4", "--use", "ema")
    for program, *flags in (
        ("generate.py", "--workdir", workdir, "--caption", "a red circle", "--out", "images"),
        ("eval_fid.py", "--workdir", workdir, *scores),
        ("eval_fid.py", f"--workdir={workdir}", *scores, "--watch"),
        ("eval_fid.py", "report", "--workdir", workdir),
        ("report.py", "--workdir", workdir),
        ("publish.py", "--workdir", workdir, "--license", "mit", "--to", "model"),
        ("doctor.py", "--workdir", workdir),
    ):
        status, output, errors = run(f"scripts/{program}", *flags)
        assert status == 0, output + errors
    assert [result.step for result in ResultFile(workdir / "evaluation").read()] == [3, 6]
    pages = {"report.md", "report_curves.png", "evaluation/report.md", "evaluation/curves.png"}
    assert {f"run/{page}" for page in pages} <= set(cloud.names("bucket"))
    assert {path.name for path in tmp_path.iterdir()} == {"images", "model"}  # and no "gs:"


def test_prepared_data_are_the_same_there(tiny_root, data_dir):
    data_sets = [DataSet("shapes/tiny", folder) for folder in (tiny_root / "data", data_dir)]
    for data_set in data_sets:
        data_set.prepare()
    on_disk, remote = (data_set.load("train") for data_set in data_sets)
    assert remote.fingerprint() == on_disk.fingerprint()
    assert remote[7] == on_disk[7]
    assert pickle.loads(pickle.dumps(remote))[7] == on_disk[7]  # as in a worker process


def test_data_that_are_not_there_are_to_be_copied(cloud):
    with pytest.raises(DataError, match=r"gcloud storage cp -r data/shapes gs://bucket/nothing/"):
        DataSet("shapes/tiny", "gs://bucket/nothing").prepare()


def test_a_run_can_start_from_one_there(workdir, tiny_workdir):
    found, stored = (init_from._read(str(folder)) for folder in (workdir, tiny_workdir))
    assert found[1] == stored[1] == {"step": 6}
    assert found[0].keys() == stored[0].keys()


# Checkpoints.


def test_a_checkpoint_comes_back_bit_for_bit_and_half_of_one_is_none(cloud, directory):
    save_steps(directory, 1, 2)
    state, extra = restore(directory, 2)
    assert_identical(state, make_state(2))
    assert extra == {"examples_seen": 16}
    (directory / "2" / "commit_success.txt").unlink()
    assert committed_steps(directory) == [1]
    with open_run(directory):  # removes what is left of it
        assert not (directory / "2").exists()
    with open_run(directory) as run, pytest.raises(CheckpointError, match=r"step 2 .* is gone"):
        run.latest_step()


def test_only_the_newest_steps_and_pinned_ones_are_kept(cloud, directory):
    save_steps(directory, 1)
    assert pin(directory, 1, "evaluation")
    assert not pin(directory, 7, "evaluation")
    with open_run(directory, keep=2) as run:
        for step in (2, 3, 4):
            run.save(step, make_state(step), {})
        run.wait()
        assert committed_steps(directory) == [1, 3, 4]
        assert pinned_steps(directory) == {1}
        unpin(directory, 1, "evaluation")
        run.save(5, make_state(5), {})
    assert {path.name for path in directory.iterdir() if path.name.isdigit()} == {"4", "5"}


def test_a_run_that_goes_back_sets_later_steps_aside(cloud, directory):
    save_steps(directory, 1, 3)
    with open_run(directory) as run:
        run.save(2, make_state(20), {})
    assert committed_steps(directory) == [1, 2]
    aside = directory / "set-aside-3"
    assert (aside / "commit_success.txt").exists()
    aside.rename(directory / "3")
    assert_identical(restore(directory, 3)[0], make_state(3))


# Orbax leaves threads of a failed read behind, which complain when its event loop is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_arrays_are_named_with_the_way_back(cloud, directory):
    save_steps(directory, 1, 2)
    names = cloud.names("bucket", f"{str(directory).removeprefix('gs://bucket/')}/2/state/d/")
    for name in names:
        data = cloud.buckets["bucket"][name].data
        cloud.put("bucket", name, data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"step 2 in gs(.|\n)*restore_step=1"):
        restore(directory, 2)


# Faults.


def test_a_bucket_that_vanishes_is_named_and_no_other_one_is_made(cloud, tiny_config):
    folder = path_of("gs://doomed/run")
    with open_run(folder) as run:
        run.save(1, make_state(1), {})
        run.wait()
        del cloud.buckets["doomed"]
        with pytest.raises(CheckpointError, match=r"gs://doomed/run cannot be reached"):
            run.save(2, make_state(2), {})
    with pytest.raises(CheckpointError, match="cannot write to gs://doomed/run"):
        train(tiny_config, folder)
    assert "doomed" not in cloud.buckets


def test_a_second_training_is_refused_while_the_first_one_lives(
    cloud, tiny_config, directory, monkeypatch
):
    monkeypatch.setattr(files, "_RENEW_SECONDS", 0.5)
    with (
        lock_workdir(directory),
        pytest.raises(CheckpointError, match=rf"by process {os.getpid()}"),
    ):
        train(tiny_config, directory)
    with lock_workdir(directory):
        pass


def test_whoever_lost_the_lock_ends(cloud, directory, monkeypatch, capsys):
    monkeypatch.setattr(files, "_RENEW_SECONDS", 0.1)
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with lock_workdir(directory):
        (directory / ".lock.soft").write_text("1 on elsewhere")
        time.sleep(1)
    assert statuses[0] == 2
    assert "was taken over by process 1 on elsewhere" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_there_and_one_resumes_after_a_kill(cloud, tiny_root, directory):
    checkpoints = directory / "checkpoints"
    options = ("num_train_steps=1000000", "checkpoint_every_steps=2", "mesh.fsdp=2")
    running = processes.start_run(tiny_root, directory, *options, processes=2, devices=2)
    try:
        deadline = time.monotonic() + 900
        while not committed_steps(checkpoints):
            assert time.monotonic() < deadline
            assert running[0].poll() is None, processes.finish(running, 60)
            time.sleep(0.2)
    finally:
        processes.kill_started()
    assert files.lock_holder(directory)
    target = committed_steps(checkpoints)[-1] + 2
    options = (f"num_train_steps={target}", "mesh.fsdp=1")
    again = processes.start_run(tiny_root, directory, *options, processes=1, devices=2)
    ((status, output),) = processes.finish(again, 900)
    assert status == 0, output
    assert f"resumed at {target - 2:,}" in output
    assert committed_steps(checkpoints)[-1] == target
