"""Preparation is safe to repeat and to kill; prepared data notice damage and change."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_samples import NUM_TRAIN, NUM_VALIDATION, encode, write_folder
from tensorflow_datasets.proto import tf_example_pb2

from xmcgan.data import DataSet
from xmcgan.data.folder import Folder, default_name
from xmcgan.errors import ConfigError, DataError
from xmcgan.shapes.dataset import Shapes

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, str(ROOT / "scripts" / "prepare_data.py")]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
TINY = Shapes.read(num_train=6, num_validation=2)


def run_cli(*args, **options):
    command = [*CLI, *map(str, args)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, **options)


def record_file(data_dir, split="train") -> Path:
    (path,) = Shapes.find_version(data_dir).glob(f"*{split}*")
    return path


def test_second_preparation_finds_the_first(tmp_path):
    assert Shapes.write(TINY, tmp_path)
    before = record_file(tmp_path).stat().st_mtime_ns
    assert not Shapes.write(TINY, tmp_path)
    assert record_file(tmp_path).stat().st_mtime_ns == before


def test_builds_are_equal_byte_by_byte_in_every_process_and_other_seeds_differ(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        Shapes.write(Shapes.read(num_train=6, num_validation=2, seed=seed), tmp_path / name)
    numbers = ("--num-train", 6, "--num-validation", 2)
    assert run_cli("shapes", "--data-dir", tmp_path / "c", *numbers).returncode == 0
    a, b, c = (
        {p.name: p.read_bytes() for p in Shapes.find_version(tmp_path / name).iterdir()}
        for name in "abc"
    )
    assert a == c
    assert a.keys() == b.keys()
    assert a != b
    digests = [DataSet("shapes", tmp_path / name).load("train").fingerprint() for name in "abc"]
    assert digests[0] == digests[2] != digests[1]


def test_other_numbers_under_the_same_name_are_refused(tmp_path):
    Shapes.write(TINY, tmp_path)
    with pytest.raises(DataError, match=r"was prepared from other data(.|\n)*--name"):
        Shapes.write(Shapes.read(num_train=7, num_validation=2), tmp_path)


@pytest.mark.parametrize(
    "numbers", [{"num_train": 0}, {"num_validation": 0}, {"seed": -1}, {"max_objects": 4}]
)
def test_numbers_that_cannot_work_are_refused(numbers):
    with pytest.raises(DataError, match="|".join(numbers)):
        Shapes.read(**numbers)


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "a b"])
def test_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="the name"):
        Folder.write(Folder.read(write_folder(tmp_path / "source")), tmp_path / "data", name)


@pytest.mark.parametrize(
    ("source", "name"), [("My photos.zip", "My_photos"), ("a-b/", "a-b"), ("été!", "t")]
)
def test_default_name_comes_from_the_source(source, name):
    assert default_name(Path(source)) == name


def test_changed_captions_under_the_same_name_are_refused(tmp_path):
    source = write_folder(tmp_path / "source")
    assert Folder.write(Folder.read(source), tmp_path / "data", "mine")
    assert not Folder.write(Folder.read(source), tmp_path / "data", "mine")
    captions = (source / "captions.jsonl").read_text()
    (source / "captions.jsonl").write_text(captions.replace("number 2", "number two"))
    with pytest.raises(DataError, match="was prepared from other data"):
        Folder.write(Folder.read(source), tmp_path / "data", "mine")


def test_killed_preparation_leaves_nothing_that_counts_and_is_cleaned_up(tmp_path):
    process = subprocess.Popen([*CLI, "shapes", "--data-dir", str(tmp_path)], env=ENV,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("shapes/default/incomplete.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("shapes/default/incomplete.*"))
    with pytest.raises(DataError, match="not prepared"):
        Shapes.find_version(tmp_path)
    assert Shapes.write(TINY, tmp_path)
    assert not list(tmp_path.glob("shapes/default/incomplete.*"))
    assert DataSet("shapes", tmp_path).splits() == {"train": 6, "validation": 2}


def test_command_line_prepares_a_folder_then_says_it_was_there(tmp_path):
    source = write_folder(tmp_path / "my photos")
    first = run_cli("folder", "--source", source, "--data-dir", tmp_path / "data")
    assert first.returncode == 0, first.stderr
    assert "folder/my_photos is ready" in first.stdout
    assert "absl" not in first.stderr
    second = run_cli("folder", "--source", source, "--data-dir", tmp_path / "data")
    assert "folder/my_photos was prepared before" in second.stdout


def test_command_line_shows_a_fault_without_traceback(tmp_path):
    result = run_cli("folder", "--source", tmp_path / "none", "--data-dir", tmp_path / "data")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_data_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write to"):
        Shapes.write(TINY, tmp_path / "file")


def test_full_disk_is_an_error_that_leaves_nothing_half_written(tmp_path):
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))}
    args = ["--num-train", 200, "--num-validation", 1]
    result = run_cli("shapes", "--data-dir", tmp_path, *args, **limit)
    assert result.returncode == 2
    assert "error: cannot write" in result.stderr
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]


def test_unprepared_folder_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"prepare_data\.py folder .* --name mine --source"):
        DataSet("folder/mine", tmp_path).prepare()


def test_shapes_already_there_in_another_size_are_taken(tmp_path):
    Shapes.write(TINY, tmp_path)
    DataSet("shapes", tmp_path).prepare()
    assert DataSet("shapes", tmp_path).splits()["train"] == 6


def test_unknown_data_set_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"coco2.*'coco'"):
        DataSet("coco2", tmp_path)


def test_unknown_split_lists_the_known_ones(shapes_dir):
    with pytest.raises(DataError, match=r"no split 'test'; it has: train, validation"):
        DataSet("shapes/tiny", shapes_dir).load("test")


def test_splits_have_the_sizes_asked_for(shapes_dir):
    expected = {"train": NUM_TRAIN, "validation": NUM_VALIDATION}
    assert DataSet("shapes/tiny", shapes_dir).splits() == expected


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    Shapes.write(TINY, tmp_path)
    path = record_file(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"damaged(.|\n)*prepare it again"):
        DataSet("shapes", tmp_path).load("train")[0]


def test_damaged_description_is_an_error_that_names_the_folder(tmp_path):
    Shapes.write(TINY, tmp_path)
    (Shapes.find_version(tmp_path) / "dataset_info.json").write_text("{")
    for read in (
        lambda: DataSet("shapes", tmp_path).splits(),
        lambda: DataSet("shapes", tmp_path).load("train"),
    ):
        with pytest.raises(DataError, match="not a readable data set"):
            read()


def test_fingerprint_notices_another_file(tmp_path):
    Shapes.write(TINY, tmp_path)
    before = DataSet("shapes", tmp_path).load("train").fingerprint()
    with record_file(tmp_path).open("ab") as file:
        file.write(b"x")
    assert DataSet("shapes", tmp_path).load("train").fingerprint() != before


def test_no_network_is_used(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    Shapes.write(TINY, tmp_path)
    assert DataSet("shapes", tmp_path).load("train")[0].captions


@pytest.mark.parametrize("captions", [[], [b"\xff"]])
def test_a_record_without_a_readable_caption_is_named(shapes_dir, monkeypatch, captions):
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(encode(np.zeros((4, 4, 3), np.uint8)))
    record.features.feature["captions"].bytes_list.value.extend(captions)
    source = Shapes("train", data_dir=shapes_dir, variant="tiny")
    monkeypatch.setitem(source.__dict__, "_records", [record.SerializeToString()])
    with pytest.raises(DataError, match=r"record 0 of .* is damaged"):
        source[0]


def test_prepared_data_are_read_from_a_folder_that_cannot_be_written(tiny_root):
    root = tiny_root / "data"

    def everything() -> dict[Path, tuple[int, int]]:
        paths = [root, *root.rglob("*")]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}

    before = everything()
    folders = [path for path in before if path.is_dir()]
    try:
        for path in folders:
            path.chmod(0o555)  # does not bind the superuser, whose writes would show below
        data_set = DataSet("shapes/tiny", root)
        data_set.prepare()
        assert len(data_set.load("train")) == 40
        assert data_set.load("validation")[0]
        assert everything() == before
    finally:
        for path in folders:
            path.chmod(0o755)
