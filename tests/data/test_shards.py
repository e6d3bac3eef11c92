"""Shards: the same files by any number of processes, and none of them outlives a kill."""

import os
import signal
import subprocess
import sys
import time

import pytest
from data_samples import photo
from official_samples import write_coco
from test_coco import record_files
from test_records import CLI, ENV

from xmcgan.data import DataSet, shards
from xmcgan.data.coco import Coco
from xmcgan.data.images import check_image, decode_image
from xmcgan.data.shards import ImageEntry, ShardJob, split_into_shards, write_shards
from xmcgan.data.sources import FileRef
from xmcgan.errors import DataError


def entry(size: int = 10) -> ImageEntry:
    return ImageEntry(FileRef("x.jpg", size), "ü.jpg", ("a cat", "☕"))


def test_shards_are_cut_by_bytes_and_keep_the_order():
    entries = [entry(size) for size in (60, 60, 30, 10, 200, 1)]
    cut = split_into_shards(entries, 100)
    assert [[e.size for e in shard] for shard in cut] == [[60], [60, 30, 10], [200], [1]]


def test_worker_processes_write_the_same_files(tmp_path, monkeypatch):
    source = write_coco(tmp_path / "coco", train=6)
    size = max(path.stat().st_size for path in source.rglob("*.jpg"))
    monkeypatch.setattr(shards, "SHARD_BYTES", 2 * size)
    for num_workers in (1, 2):
        data_dir = tmp_path / str(num_workers)
        assert Coco.write(Coco.read([source]), data_dir, num_workers=num_workers)
    assert record_files(tmp_path / "1") == record_files(tmp_path / "2")
    assert len(record_files(tmp_path / "1")) > 4
    assert DataSet("coco", tmp_path / "1").splits() == {"train": 6, "val": 3}


def test_a_worker_that_dies_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "write_shard", _die)
    jobs = [ShardJob("train", str(tmp_path / "x"), [entry()])] * 2
    with pytest.raises(DataError, match=r"a process that wrote to .* died"):
        write_shards(jobs, 2, lambda num: None)


def _die(job):
    os._exit(1)


def test_a_killed_preparation_leaves_no_process_and_is_done_again(tmp_path):
    source = write_coco(tmp_path / "coco", train=600, val=1)
    # It waits in its first report of progress, while its workers go on.
    code = """
import sys
from pathlib import Path
from xmcgan.data import shards
from xmcgan.data.coco import Coco
shards.SHARD_BYTES, write = 2000, shards.write_shards
wait = lambda num: print("writing", flush=True) or sys.stdin.read()
shards.write_shards = lambda jobs, num_workers, report: write(jobs, num_workers, wait)
Coco.write(Coco.read([Path(sys.argv[1])]), Path(sys.argv[2]), num_workers=2)
"""
    command = [sys.executable, "-c", code, source, tmp_path / "data"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=ENV, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"writing\n"
        children = _children(process.pid)
        process.send_signal(signal.SIGKILL)
    root = tmp_path / "data" / "coco" / "default"
    deadline = time.monotonic() + 60
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
    assert "coco was prepared before" in again.stdout


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
