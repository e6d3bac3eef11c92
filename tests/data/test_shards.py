"""Shards: what TFDS would write, by any number of processes, and none of them outlives a kill."""

import os
import signal
import subprocess
import sys
import time

import pytest
from data_samples import photo
from official_samples import write_coco
from tensorflow_datasets.core import example_serializer
from test_coco import record_files
from test_prepare import CLI, ENV

from xmcgan.data import shards
from xmcgan.data.file_index import FileRef
from xmcgan.data.images import check_image, decode_image
from xmcgan.data.official import Coco, OfficialConfig
from xmcgan.data.prepare import prepare_official, read_official
from xmcgan.data.shards import Entry, cut_shards, serialize, write_shards
from xmcgan.data.sources import list_splits
from xmcgan.errors import DataError


def entry(size: int = 10, **fields) -> Entry:
    base = Entry(FileRef("x.jpg", size), "ü.jpg", "7", "val2014", ("a cat", "☕"), ("1", "2"))
    return base._replace(**fields)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_000, 20_000, 3_000_000])
def test_records_are_those_of_tfds_for_images_of_any_length(size, tmp_path):
    data = read_official("coco", [write_coco(tmp_path)])
    builder = Coco(data_dir=str(tmp_path), config=OfficialConfig(name="a", data=data))
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    image = bytes(size)
    written = entry()
    fields = {key: getattr(written, key) for key in features if key != "image"}
    expected = serializer.get_tf_example(features.encode_example({"image": b"\0", **fields}))
    expected.features.feature["image"].bytes_list.value[:] = [image]
    assert type(expected).FromString(serialize(written, image)) == expected


def test_shards_are_cut_by_bytes_and_keep_the_order():
    entries = [entry(size) for size in (60, 60, 30, 10, 200, 1)]
    cut = cut_shards(entries, most=100)
    assert [[e.image.size for e in shard] for shard in cut] == [[60], [60, 30, 10], [200], [1]]


def test_worker_processes_write_the_same_files(tmp_path, monkeypatch):
    source = write_coco(tmp_path / "coco", train=6)
    size = max(path.stat().st_size for path in source.rglob("*.jpg"))
    data = read_official("coco", [source])
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * size)
    monkeypatch.setattr(cut_shards, "__defaults__", (2 * size,))
    for num_workers in (1, 2):
        assert prepare_official("coco", data, tmp_path / str(num_workers), num_workers=num_workers)
    assert record_files(tmp_path / "1") == record_files(tmp_path / "2")
    assert len(record_files(tmp_path / "1")) > 4
    assert list_splits("coco", tmp_path / "1") == {"train": 6, "val": 3}


def test_a_worker_that_dies_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "write_shard", _die)
    jobs = [shards.ShardJob(str(tmp_path / "x"), [entry()])] * 2
    with pytest.raises(DataError, match=r"a process that wrote to .* died"):
        write_shards(jobs, 2, lambda num: None)


def _die(path, entries):
    os._exit(1)


def test_a_killed_preparation_leaves_no_process_and_is_done_again(tmp_path):
    source = write_coco(tmp_path / "coco", train=600, val=1)
    code = (
        "import sys; from xmcgan.data import shards; shards.SHARD_BYTES = 2000;"
        "shards.cut_shards.__defaults__ = (2000,);"
        "from pathlib import Path; from xmcgan.data.prepare import *;"
        "prepare_official('coco', read_official('coco', [Path(sys.argv[1])]), sys.argv[2],"
        " num_workers=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, source, tmp_path / "data"], env=ENV)
    deadline = time.monotonic() + 60
    root = tmp_path / "data" / "coco" / "default"
    while len(list(root.glob("incomplete.*/*record*"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(root.glob("incomplete.*"))
    assert children
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, children))
    command = [*CLI, "coco", "--source", source, "--data-dir", tmp_path / "data"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert "600 images with 1,200 captions" in done.stdout
    assert not list(root.glob("incomplete.*"))
    again = subprocess.run(command, env=ENV, capture_output=True, text=True, check=True)
    assert "coco/default was prepared before" in again.stdout


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(child) for child in found.stdout.split()]


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except OSError:
        return False


def test_the_quick_check_of_an_image_agrees_with_decoding_it():
    good = photo(3, 64, 48)
    bad = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "truncated": good[:-100],
        "header only": good[:30],
        "end without a beginning": b"\0" * 50 + good[-50:],
        "a beginning and an end": good[:3] + good[-2:],
    }
    for data in (good, good + b"\0\0"):
        check_image(data, "x")
        decode_image(data, "x")
    for name, data in bad.items():
        for check in (check_image, decode_image):
            with pytest.raises(DataError, match=f"image {name}"):
                check(data, name)


def test_the_quick_check_refuses_a_bomb(monkeypatch):
    monkeypatch.setattr("xmcgan.data.images.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="more than the 100 pixels"):
        check_image(photo(), "x")
