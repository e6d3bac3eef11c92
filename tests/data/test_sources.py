"""Files in directories and zips are found and read alike; nothing outside them, nothing damaged."""

import os
import stat
import zipfile

import pytest
from data_samples import photo

from xmcgan.data.sources import list_files
from xmcgan.errors import DataError


def contents(*sources):
    return {path: ref.read() for path, ref in list_files(sources)}


def make_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
)
def test_members_are_read_without_extraction(tmp_path, compression):
    members = {"a/1.jpg": photo(1), "b.txt": b"text " * 100, "empty": b"", "ü.jpg": photo(2)}
    path = make_zip(tmp_path / "a.zip", members, compression)
    assert contents(path) == contents(tmp_path) == members
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_directory_is_read_with_its_zips_and_links(tmp_path):
    outside = tmp_path / "outside"
    (outside / "loop").parent.mkdir()
    (outside / "2.jpg").write_bytes(b"two")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "1.jpg").write_bytes(b"one")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "3.jpg").write_bytes(b"three")
    (root / "unfinished.zip.part").write_bytes(b"x")
    (root / "link").symlink_to(outside)
    (outside / "loop").symlink_to(root)
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    make_zip(root / "z.zip", {"4.jpg": b"four"})
    assert contents(root) == {"link/2.jpg": b"two", "sub/1.jpg": b"one", "4.jpg": b"four"}


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg"])
def test_members_that_point_outside_are_refused(tmp_path, name):
    path = make_zip(tmp_path / "evil.zip", {name: photo()})
    with pytest.raises(DataError, match="points outside"):
        contents(path)
    assert os.listdir(tmp_path) == ["evil.zip"]


def test_a_member_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    link = zipfile.ZipInfo("link.jpg")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16  # as Unix writes it
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, str(tmp_path / "secret"))
    assert contents(tmp_path / "a.zip") == {"link.jpg": str(tmp_path / "secret").encode()}
    assert sorted(os.listdir(tmp_path)) == ["a.zip", "secret"]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_zip_is_named(tmp_path, keep):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": photo(1), "2.jpg": photo(2)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"a\.zip is not a readable zip"):
        contents(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_byte_is_named(tmp_path, compression):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": photo(1) * 5}, compression)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"1\.jpg in .*a\.zip cannot be read"):
        contents(path)


def test_a_damaged_member_header_is_named(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.jpg": photo(1)})
    path.write_bytes(b"xx" + path.read_bytes()[2:])
    with pytest.raises(DataError, match=r"1\.jpg in .*a\.zip cannot be read"):
        contents(path)


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xmcgan.data.sources.MAX_FILE_BYTES", 1024**2)
    path = make_zip(tmp_path / "a.zip", {"1.jpg": bytes(1024**2 + 1)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="larger than 1 MiB"):
        contents(path)


def test_an_absent_source_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        contents(tmp_path / "none")


def test_a_file_that_went_away_is_named(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"x")
    ((_, ref),) = list_files([tmp_path])
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"1\.jpg cannot be read"):
        ref.read()
