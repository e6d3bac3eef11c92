"""A file is replaced by a complete one, or stays as it was."""

import pytest

from xmcgan.utils.files import atomic_file, clear_leftovers


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
