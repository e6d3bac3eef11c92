"""Downloads resume, are checked, and stand under their names only when they are whole."""

import dataclasses
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from file_server import serve
from official_samples import (
    narrative,
    write_coco,
    write_narratives,
    write_open_images,
    zip_coco,
)
from test_prepare import ENV

from xmcgan.data import coco, prepare
from xmcgan.data import localized_narratives as ln
from xmcgan.data.downloads import Archive, download, download_images
from xmcgan.data.sources import list_splits
from xmcgan.errors import DataError

DATA = np.random.default_rng(0).bytes(100_000)


def archive(url: str, data: bytes = DATA, name: str = "a.zip") -> Archive:
    return Archive(f"{url}/{name}", len(data), hashlib.sha256(data).hexdigest())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_is_not_fetched_twice(tmp_path):
    with serve({"a.zip": DATA}) as (url, server):
        for _ in range(2):
            (path,) = download([archive(url)], tmp_path)
            assert path.read_bytes() == DATA
    assert server.requests == [("/a.zip", "")]
    assert names(tmp_path) == ["a.zip"]


def test_a_cut_connection_goes_on_where_it_ended(tmp_path):
    with serve({"a.zip": DATA}, cuts=[30_000, 20_000]) as (url, server):
        (path,) = download([archive(url)], tmp_path, pause_s=0)
    assert path.read_bytes() == DATA
    assert [asked for _, asked in server.requests] == ["", "bytes=30000-", "bytes=50000-"]


def test_an_earlier_run_is_resumed(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA[:70_000])
    with serve({"a.zip": DATA}) as (url, server):
        (path,) = download([archive(url)], tmp_path)
    assert path.read_bytes() == DATA
    assert server.requests == [("/a.zip", "bytes=70000-")]


def test_a_file_that_was_whole_but_not_checked_is_checked(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA)
    with serve({"a.zip": DATA}) as (url, _):
        (path,) = download([archive(url)], tmp_path)
    assert path.read_bytes() == DATA


def test_a_server_without_ranges_is_read_from_the_start(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(b"x" * 150_000)
    with serve({"a.zip": DATA}, ranges=False) as (url, _):
        (path,) = download([archive(url)], tmp_path)
    assert path.read_bytes() == DATA


def test_a_range_that_begins_elsewhere_is_not_appended(tmp_path):
    (tmp_path / "a.zip.part").write_bytes(DATA[:10])
    with (
        serve({"a.zip": DATA}, shift=5) as (url, _),
        pytest.raises(DataError, match="asked from byte 10"),
    ):
        download([archive(url)], tmp_path, pause_s=0)


def test_wrong_bytes_are_deleted_and_both_hashes_named(tmp_path):
    wrong = b"!" + DATA[1:]
    with serve({"a.zip": wrong}) as (url, _):
        expected = f"{hashlib.sha256(wrong).hexdigest()}, expected {archive(url).sha256}"
        with pytest.raises(DataError, match=expected):
            download([archive(url)], tmp_path)
    assert names(tmp_path) == []


def test_another_size_is_refused_before_it_is_fetched(tmp_path):
    with (
        serve({"a.zip": DATA + b"more"}) as (url, _),
        pytest.raises(DataError, match="100,004 bytes, not 100,000"),
    ):
        download([archive(url)], tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_stays_away_is_named_and_what_came_is_kept(tmp_path):
    with (
        serve({"a.zip": DATA}, cuts=[40_000] + [0] * 9) as (url, server),
        pytest.raises(DataError, match=r"40,000 bytes are kept in .*a\.zip\.part"),
    ):
        download([archive(url)], tmp_path, pause_s=0)
    assert len(server.requests) == 6
    assert names(tmp_path) == ["a.zip.part"]


def test_an_address_that_does_not_exist_is_named(tmp_path):
    with serve({}) as (url, _), pytest.raises(DataError, match=r"a\.zip: HTTP Error 404"):
        download([archive(url)], tmp_path)


def test_a_hash_that_nobody_published_holds_from_the_first_download(tmp_path):
    with serve({"a.jsonl": DATA}) as (url, server):
        unknown = Archive(f"{url}/a.jsonl")
        (path,) = download([unknown], tmp_path)
        recorded = (tmp_path / "checksums.tsv").read_text()
        assert recorded.split() == [
            unknown.url, "100000", hashlib.sha256(DATA).hexdigest(), "a.jsonl",
        ]  # fmt: skip
        path.unlink()
        server.files["a.jsonl"] = DATA[::-1]
        with pytest.raises(DataError, match=f"expected {hashlib.sha256(DATA).hexdigest()}"):
            download([unknown], tmp_path)


def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with serve({"a.zip": DATA}) as (url, server):
        with pytest.raises(DataError, match="GB free"):
            download([archive(url)], tmp_path)
        (tmp_path / "a.zip.part").write_bytes(DATA[:60_000])
        assert download([archive(url)], tmp_path)  # the rest has room
    assert len(server.requests) == 1


def test_images_that_the_server_lacks_are_counted(tmp_path):
    with serve({"train/a.jpg": b"a", "train/b.jpg": b"bb"}) as (url, _):
        urls = [f"{url}/train/{letter}.jpg" for letter in "abcd"]
        assert download_images(urls, tmp_path, num_threads=2) == 2
    assert names(tmp_path) == ["a.jpg", "b.jpg"]


def test_a_killed_download_is_resumed_by_the_same_call(tmp_path):
    code = (
        "import sys; from pathlib import Path; from xmcgan.data.downloads import Archive, download;"
        "download([Archive(sys.argv[1])], Path(sys.argv[2]))"
    )
    data = DATA * 40  # more than the receiver takes at a time
    part = tmp_path / "a.zip.part"
    with serve({"a.zip": data}, stall_after=3_000_000) as (url, server):
        process = subprocess.Popen(
            [sys.executable, "-c", code, f"{url}/a.zip", str(tmp_path)], env=ENV
        )
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        server.stall_after = 0
        kept = part.stat().st_size
        assert names(tmp_path) == ["a.zip.part"]
        (path,) = download([archive(url, data)], tmp_path)
    assert path.read_bytes() == data
    assert kept > 0
    assert server.requests[-1] == ("/a.zip", f"bytes={kept}-")


def hash_all(archives, url, folder):
    """Return archives as they would be if their files were served at `url`."""
    return tuple(
        dataclasses.replace(
            archive((url), (folder / a.file_name).read_bytes(), a.file_name),
            sha256=a.sha256 and hashlib.sha256((folder / a.file_name).read_bytes()).hexdigest(),
            size=a.size and (folder / a.file_name).stat().st_size,
        )
        for a in archives
    )


def served(folder):
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_coco_comes_from_its_archives_to_a_data_set(tmp_path, monkeypatch):
    official = zip_coco(write_coco(tmp_path / "coco"), tmp_path / "official")
    os.rename(official / "annotations.zip", official / "annotations_trainval2014.zip")
    with serve(served(official), cuts=[500]) as (url, _):
        monkeypatch.setattr(coco, "ARCHIVES", hash_all(coco.ARCHIVES, url, official))
        folder = prepare.download_official("coco", tmp_path / "downloads")
    data = prepare.read_official("coco", [folder])
    assert prepare.prepare_official("coco", data, tmp_path / "data")
    assert list_splits("coco", tmp_path / "data") == {"train": 4, "val": 3}


def test_open_images_come_one_by_one_and_only_those_with_narratives(tmp_path, monkeypatch):
    official = write_open_images(tmp_path / "official")
    train, validation = ln.OPEN_IMAGES.narratives[0], ln.OPEN_IMAGES.narratives[-1]
    write_narratives(
        official, train.file_name, *(narrative(f"a{i}", f"This is {i}.") for i in (0, 1, 2, 9))
    )
    with serve(served(official)) as (url, server):
        edition = dataclasses.replace(
            ln.OPEN_IMAGES, narratives=hash_all([train, validation], url, official)
        )
        monkeypatch.setattr(ln, "OPEN_IMAGES", edition)
        monkeypatch.setattr(ln, "OPEN_IMAGES_HOST", url)
        folder = prepare.download_official("ln_open_images", tmp_path / "downloads")
    assert ("/train/a3.jpg", "") not in server.requests
    data = prepare.read_official("ln_open_images", [folder])
    assert data.counts == {"images absent": 1, "narratives of absent images": 1}
    assert {split: len(entries) for split, entries in data.splits.items()} == {
        "train": 3,
        "validation": 2,
    }


def test_without_download_no_socket_is_opened(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    data = prepare.read_official("coco", [write_coco(tmp_path / "coco")])
    assert prepare.prepare_official("coco", data, tmp_path / "data")


def test_the_hashes_of_coco_are_those_that_tfds_knows():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    pinned = [*coco.ARCHIVES, *ln.COCO.images]
    for item in pinned:
        info = known[item.url]
        assert (info.size, info.checksum) == (item.size, item.sha256)
        assert re.fullmatch("[0-9a-f]{64}", item.sha256 or "")
