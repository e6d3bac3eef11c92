"""Preparation is safe to repeat and to kill; prepared data notice damage and change."""

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_samples import NUM_TRAIN, NUM_VALIDATION, write_folder

from xmcgan.data.prepare import default_name, ensure_prepared, prepare_folder, prepare_shapes
from xmcgan.data.sources import find_version, fingerprint, list_splits, load_source
from xmcgan.errors import DataError
from xmcgan.shapes.dataset import ShapesConfig

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, str(ROOT / "scripts" / "prepare_data.py")]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
TINY = ShapesConfig(num_train=6, num_validation=2)


def run_cli(*args, **options):
    command = [*CLI, *map(str, args)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True, check=False, **options)


def record_file(data_dir, split="train") -> Path:
    (path,) = find_version("shapes", data_dir).glob(f"*{split}*")
    return path


def test_second_preparation_finds_the_first(tmp_path):
    assert prepare_shapes(tmp_path, TINY)
    before = record_file(tmp_path).stat().st_mtime_ns
    assert not prepare_shapes(tmp_path, TINY)
    assert record_file(tmp_path).stat().st_mtime_ns == before


def test_two_builds_are_equal_byte_by_byte_and_other_seeds_differ(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare_shapes(tmp_path / name, ShapesConfig(num_train=6, num_validation=2, seed=seed))
    a, b, c = (record_file(tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    digests = [fingerprint("shapes", tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_other_numbers_under_the_same_name_are_refused(tmp_path):
    prepare_shapes(tmp_path, TINY)
    with pytest.raises(DataError, match=r"was prepared from other data(.|\n)*--name"):
        prepare_shapes(tmp_path, ShapesConfig(num_train=7, num_validation=2))


@pytest.mark.parametrize("numbers", [{"num_train": 0}, {"num_validation": 0}, {"seed": -1}])
def test_numbers_that_cannot_work_are_refused(tmp_path, numbers):
    with pytest.raises(DataError, match="at least 1 image"):
        prepare_shapes(tmp_path, ShapesConfig(**numbers))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="the name"):
        prepare_folder(write_folder(tmp_path / "source"), tmp_path / "data", name=name)


@pytest.mark.parametrize(
    ("source", "name"), [("My photos.zip", "My_photos"), ("a-b/", "a-b"), ("été!", "t")]
)
def test_default_name_comes_from_the_source(source, name):
    assert default_name(source) == name


def test_changed_captions_under_the_same_name_are_refused(tmp_path):
    source = write_folder(tmp_path / "source")
    assert prepare_folder(source, tmp_path / "data")[0]
    assert not prepare_folder(source, tmp_path / "data")[0]
    captions = (source / "captions.jsonl").read_text()
    (source / "captions.jsonl").write_text(captions.replace("number 2", "number two"))
    with pytest.raises(DataError, match="was prepared from other data"):
        prepare_folder(source, tmp_path / "data")


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
        find_version("shapes", tmp_path)
    assert prepare_shapes(tmp_path, TINY)
    assert not list(tmp_path.glob("shapes/default/incomplete.*"))
    assert list_splits("shapes", tmp_path) == {"train": 6, "validation": 2}


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
        prepare_shapes(tmp_path / "file", TINY)


def test_full_disk_is_an_error_that_leaves_nothing_half_written(tmp_path):
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))}
    args = ["--num-train", 200, "--num-validation", 1]
    result = run_cli("shapes", "--data-dir", tmp_path, *args, **limit)
    assert result.returncode == 2
    assert "error: cannot write" in result.stderr
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]


def test_unprepared_folder_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"prepare_data\.py folder .* --name mine --source"):
        ensure_prepared("folder/mine", tmp_path)


def test_shapes_already_there_in_another_size_are_taken(tmp_path):
    prepare_shapes(tmp_path, TINY)
    ensure_prepared("shapes", tmp_path)
    assert list_splits("shapes", tmp_path)["train"] == 6


def test_unknown_data_set_is_named(tmp_path):
    with pytest.raises(DataError, match="unknown data set 'coco2'"):
        ensure_prepared("coco2", tmp_path)


def test_unknown_split_lists_the_known_ones(shapes_dir):
    with pytest.raises(DataError, match=r"no split 'test'; it has: train, validation"):
        load_source("shapes/tiny", shapes_dir, "test")


def test_splits_have_the_sizes_asked_for(shapes_dir):
    expected = {"train": NUM_TRAIN, "validation": NUM_VALIDATION}
    assert list_splits("shapes/tiny", shapes_dir) == expected


def test_flipped_byte_is_an_error_that_names_record_and_folder(tmp_path):
    prepare_shapes(tmp_path, TINY)
    path = record_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 60] ^= 0xFF
    path.write_bytes(bytes(data))
    source = load_source("shapes", tmp_path, "train")
    with pytest.raises(DataError, match=r"record \d of split 'train' in .*shapes.* is damaged"):
        [source[i] for i in range(len(source))]


@pytest.mark.parametrize("keep", [0, 0.5])
def test_truncated_file_is_an_error_that_names_it(tmp_path, keep):
    prepare_shapes(tmp_path, TINY)
    path = record_file(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"damaged(.|\n)*prepare it again"):
        load_source("shapes", tmp_path, "train")[0]


def test_damaged_description_is_an_error_that_names_the_folder(tmp_path):
    prepare_shapes(tmp_path, TINY)
    (find_version("shapes", tmp_path) / "dataset_info.json").write_text("{")
    for read in (
        lambda: list_splits("shapes", tmp_path),
        lambda: load_source("shapes", tmp_path, "train"),
    ):
        with pytest.raises(DataError, match="not a readable data set"):
            read()


def test_fingerprint_notices_another_file(tmp_path):
    prepare_shapes(tmp_path, TINY)
    before = fingerprint("shapes", tmp_path)
    with record_file(tmp_path).open("ab") as file:
        file.write(b"x")
    assert fingerprint("shapes", tmp_path) != before


def test_no_network_is_used(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    prepare_shapes(tmp_path, TINY)
    assert load_source("shapes", tmp_path, "train")[0].captions
