"""A file is replaced by a complete one, or stays as it was."""

import errno
import fcntl
import os
from pathlib import Path

import fsspec
import pytest

from xmcgan.config import load_config, validate
from xmcgan.errors import CheckpointError, ConfigError
from xmcgan.utils import files
from xmcgan.utils.files import (
    SOFT_LOCKS,
    atomic_file,
    clear_leftovers,
    lock_holder,
    lock_workdir,
    num_cores,
    path_of,
)


def test_a_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new.txt"
    with atomic_file(path) as file:
        file.write(b"whole")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_cleared_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("a.txt", ".a.txt.lock", ".b.txt.7.tmp", "a.tmp")]
    for path in [*kept, tmp_path / ".a.txt.7.tmp"]:
        path.touch()
    clear_leftovers(tmp_path, "a.txt")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(path for path in kept if "7" not in path.name)


# Elsewhere than on Linux with a local disk.


def test_cores_are_counted_where_the_system_has_no_mask_of_them(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS
    assert num_cores() == os.cpu_count()


@pytest.fixture
def no_flock(monkeypatch):
    """Make every file system one without locks."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_file_system_without_locks_is_named_with_what_to_do(no_flock, tmp_path):
    with pytest.raises(CheckpointError, match=rf"without locks .*{SOFT_LOCKS}=1"):
        lock_workdir(tmp_path).__enter__()


def test_a_soft_lock_holds_others_off_and_is_removed_at_the_end(no_flock, monkeypatch, tmp_path):
    monkeypatch.setenv(SOFT_LOCKS, "1")
    for _ in range(2):
        with lock_workdir(tmp_path):
            assert lock_holder(tmp_path).startswith(f"{os.getpid()} on ")
            with pytest.raises(CheckpointError, match=rf"process {os.getpid()} on .*delete"):
                lock_workdir(tmp_path).__enter__()
    monkeypatch.undo()
    assert lock_holder(tmp_path) == ""


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run"])
def test_a_url_is_refused_by_its_scheme_and_never_becomes_a_folder(run, url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refused = f"{url[:2]}:// is not supported here"
    with pytest.raises(CheckpointError, match=refused):
        lock_workdir(Path(url)).__enter__()
    config = load_config("shapes")
    config.data.data_dir = "s3://bucket/data"
    with pytest.raises(ConfigError, match="s3:// is not supported here"):
        validate(config)
    commands = [
        ("scripts/generate.py", "--model", "emoji64", "--caption", "x", "--out", url),
        ("scripts/generate.py", "--model", "emoji64", "--caption", "x", f"--out={url}"),
        ("scripts/prepare_data.py", "shapes", "--data-dir", url),
        ("scripts/report.py", "--workdir", "runs", url),
    ]
    if url.startswith("s3"):
        commands += [
            ("xmcgan/train.py", "--config", "shapes", "--workdir", url),
            ("xmcgan/train.py", "--config", "shapes", f"--workdir={url}"),
            ("xmcgan/train.py", "--config", "shapes", f"--config.data.data_dir={url}"),
            ("xmcgan/train.py", "--config", "shapes", "--config.init_from", url),
        ]
    for program, *flags in commands:
        status, _, errors = run(program, *flags)
        assert (status, refused in errors) == (2, True), errors
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_cannot_be_used_is_named_with_the_reason(cloud, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def said(url: str) -> str:
        files._check_bucket.cache_clear()
        status, _, errors = run("scripts/report.py", "--workdir", url)
        assert status == 2
        assert errors.count("\n") == 1
        return errors

    assert "gs://nothing: there is no such bucket" in said("gs://nothing/run")
    assert "name a folder of the bucket" in said("gs://bucket")
    assert "gs://bucket/empty/config.json is missing" in said("gs://bucket/empty/")
    cloud.fail = 401
    assert "gs://bucket cannot be read: the test says so, 401. The account" in said("gs://bucket/a")
    cloud.fail = 0

    def fail(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(fsspec, "get_filesystem_class", fail)
    assert "gs://bucket: buckets need a missing package: pip install gcsfs" in said("gs://bucket/a")
    files._check_bucket.cache_clear()
    assert list(tmp_path.iterdir()) == []


def test_what_another_machine_writes_to_a_bucket_is_seen(cloud):
    folder = path_of("gs://bucket/seen")
    assert list(folder.glob("*")) == []
    cloud.put("bucket", "seen/a", b"1")
    assert [path.name for path in folder.glob("*")] == ["a"]
    cloud.put("bucket", "seen/a", b"22")
    assert (folder / "a").read_bytes() == b"22"
