"""A user's own images and captions: stored unchanged, every fault named."""

import json
import shutil
import zipfile

import pytest
from data_samples import encode, photo, write_folder
from PIL import Image

from xmcgan.data import DataSet
from xmcgan.data.folder import Folder
from xmcgan.data.records import describe
from xmcgan.errors import DataError

JSON_LINE = '"image" must be a path and "captions" a list'


def line(image="images/0.jpg", captions=("a cat",), **fields) -> str:
    return json.dumps({"image": image, "captions": list(captions), **fields})


def write_lines(root, *lines: str):
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "source")


def stored(data_dir, name):
    """Return image name -> (bytes, captions, split) of a prepared data set."""
    found = {}
    data_set = DataSet(name, data_dir)
    for split in data_set.splits():
        source = data_set.load(split)
        for i in range(len(source)):
            found[source[i].name] = (source[i].image, source[i].captions, split)
    return found


def entries(contents):
    """Return image, split and captions of all entries."""
    return [(e.name, split, e.captions) for split, es in contents.splits.items() for e in es]


def zip_folder(root, path, members=None):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file() and (members is None or members(file)):
                archive.write(file, file.relative_to(root))
    return path


def test_bytes_captions_and_splits_are_stored_as_given(folder, tmp_path):
    contents = Folder.read(folder)
    assert Folder.write(contents, tmp_path / "data", "mine")
    summary = describe(Folder, contents, tmp_path / "data", "mine")
    assert "3 images with 6 captions" in summary
    assert "left out" not in summary
    expected = {
        f"images/{i}.jpg": (photo(i), [f"a photo of {i}", f"number {i}"], split)
        for i, split in enumerate(["train", "train", "train", "dev"])
    }
    assert stored(tmp_path / "data", "folder/mine") == expected


def test_zip_and_directory_with_zip_give_the_same_data_set(folder, tmp_path):
    expected = Folder.read(folder)
    whole = zip_folder(folder, tmp_path / "all.zip")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(folder / "captions.jsonl", mixed)
    zip_folder(folder, mixed / "images.zip", lambda file: file.suffix == ".jpg")
    for source in (whole, mixed):
        data = Folder.read(source)
        assert entries(data) == entries(expected)
        assert data.recipe == expected.recipe
    Folder.write(Folder.read(mixed), tmp_path / "data", "mixed")
    assert len(stored(tmp_path / "data", "folder/mixed")) == 4


def test_captions_below_the_top_of_a_zip_name_images_beside_them(folder, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.move(folder, outer / "photos")
    data = Folder.read(zip_folder(outer, tmp_path / "outer.zip"))
    assert entries(data)[0][0] == "photos/images/0.jpg"


def test_captions_elsewhere_name_images_relative_to_the_source(folder, tmp_path):
    captions = shutil.move(folder / "captions.jsonl", tmp_path / "other.jsonl")
    assert len(entries(Folder.read(folder, captions))) == 4


def test_one_text_file_per_image(tmp_path):
    root = tmp_path / "texts"
    (root / "b").mkdir(parents=True)
    (root / "a.jpg").write_bytes(photo(0))
    (root / "a.txt").write_text("a cat \n\n a dog\n\n", encoding="utf-8-sig")
    (root / "b" / "a.PNG").write_bytes(encode(Image.new("L", (4, 4))))
    (root / "b" / "a.txt").write_text("grün\r\n")
    (root / "alone.jpg").write_bytes(photo(1))
    data = Folder.read(root)
    assert entries(data) == [
        ("a.jpg", "train", ("a cat", "a dog")),
        ("b/a.PNG", "train", ("grün",)),
    ]
    assert data.left_out == {"images without captions": 1, "empty captions dropped": 1}


def test_missing_split_means_train_and_others_keep_their_names(folder):
    write_lines(folder, line(), line("images/1.jpg", split="my_test"))
    assert [split for _, split, _ in entries(Folder.read(folder))] == ["train", "my_test"]


def test_empty_captions_beside_others_are_dropped_and_counted(folder):
    write_lines(folder, line(captions=["", "a cat", " \t "]))
    data = Folder.read(folder)
    assert entries(data)[0][2] == ("a cat",)
    assert data.left_out == {"images without captions": 3, "empty captions dropped": 2}


def test_line_separator_characters_inside_a_caption_do_not_break_the_line(folder):
    text = '{"image": "images/0.jpg", "captions": ["a\u2028cat\x85"]}'
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    assert entries(Folder.read(folder))[0][2][0] == "a\u2028cat"


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ('{"image": ', "not a JSON object"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"captions": ["a"]}', JSON_LINE),
        (line(image=""), JSON_LINE),
        ('{"image": "images/1.jpg"}', JSON_LINE),
        ('{"image": "images/1.jpg", "captions": "a cat"}', JSON_LINE),
        ('{"image": "images/1.jpg", "captions": [1]}', JSON_LINE),
        (line("images/1.jpg", []), "every caption is empty"),
        (line("images/1.jpg", ["", " \n"]), "every caption is empty"),
        (line("images/1.jpg", ["a\0b"]), "NUL"),
        (line("images/1.jpg", ["x" * 2001]), "2,001 characters"),
        (line("images/1.jpg", ["\ud800"]), "not valid Unicode"),
        (line("images/1.jpg", split="../x"), '"split" is'),
        (line("images/1.jpg", split="all"), '"split" is'),
        (line(), "already has captions in .*line 1"),
    ],
)
def test_broken_line_is_named_with_file_and_number(folder, bad, fault):
    write_lines(folder, line(), "", bad)
    with pytest.raises(DataError, match=rf"captions\.jsonl, line 3\b.*{fault}"):
        Folder.read(folder)


def test_text_that_is_not_utf8_is_named_with_its_line(folder):
    (folder / "captions.jsonl").write_bytes(line().encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"line 2: not UTF-8"):
        Folder.read(folder)


def test_caption_of_exactly_the_limit_is_kept(folder):
    write_lines(folder, line(captions=["x" * 2000, "☕ \U0001f600"]))
    assert [len(c) for c in entries(Folder.read(folder))[0][2]] == [2000, 3]


def test_missing_images_are_listed_and_counted(folder):
    lines = [line(f"images/none-{i}.jpg") for i in range(8)]
    write_lines(folder, line(), *lines)
    with pytest.raises(DataError, match=r"name 8 images(.|\n)*none-0(.|\n)*none-4\.jpg\n.*3 more"):
        Folder.read(folder)


@pytest.mark.parametrize("outside", ["../secret.jpg", "/etc/passwd", "images/../../secret.jpg"])
def test_captions_cannot_reach_outside_the_source(folder, outside):
    (folder.parent / "secret.jpg").write_bytes(photo())
    write_lines(folder, line(outside))
    with pytest.raises(DataError, match="not in"):
        Folder.read(folder)


def test_unreadable_images_are_all_named_and_nothing_is_left(folder, tmp_path):
    (folder / "images" / "1.jpg").write_bytes(photo()[:-100])
    (folder / "images" / "2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 4 images(.|\n)*1\.jpg(.|\n)*2\.jpg is empty"):
        Folder.write(Folder.read(folder), tmp_path / "data", "mine")
    left = [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"]
    assert left == []


def test_folder_without_captions_is_refused(folder):
    (folder / "captions.jsonl").unlink()
    with pytest.raises(DataError, match="no captions for any image"):
        Folder.read(folder)


def test_several_caption_files_are_refused(folder):
    shutil.copy(folder / "captions.jsonl", folder / "images")
    with pytest.raises(DataError, match=r"several captions\.jsonl"):
        Folder.read(folder)


def test_two_images_of_one_text_file_are_refused(tmp_path):
    for suffix in ("jpg", "png"):
        (tmp_path / f"a.{suffix}").write_bytes(photo())
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(DataError, match=r"a\.txt describes two images"):
        Folder.read(tmp_path)


def test_image_both_in_directory_and_zip_is_refused(folder):
    zip_folder(folder, folder / "images.zip", lambda file: file.name == "0.jpg")
    with pytest.raises(DataError, match=r"'images/0\.jpg' occurs twice"):
        Folder.read(folder)


@pytest.mark.parametrize("name", ["none", "rubbish.zip", "text"])
def test_source_that_is_missing_or_no_zip_is_refused(tmp_path, name):
    for file in ("rubbish.zip", "text"):
        (tmp_path / file).write_bytes(b"PK rubbish")
    with pytest.raises(DataError, match=str(tmp_path / name)):
        Folder.read(tmp_path / name)


def test_flipped_byte_in_a_zip_is_named(folder, tmp_path):
    path = zip_folder(folder, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[data.index(photo(1)) + 300] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"images/1\.jpg .*CRC"):
        Folder.write(Folder.read(path), tmp_path / "data", "a")


def test_files_that_archivers_leave_behind_are_ignored(folder):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "0.jpg").write_bytes(b"rubbish")
    (folder / ".DS_Store.jpg").write_bytes(b"rubbish")
    assert Folder.read(folder).left_out == {}


def test_every_kind_of_image_passes_from_folder_to_example(tmp_path):
    root = tmp_path / "kinds"
    root.mkdir()
    kinds = [("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png")]
    for mode, suffix in kinds:
        name = f"{mode.replace(';', '')}.{suffix}"
        Image.new(mode, (6, 4)).save(root / name)
        (root / name).with_suffix(".txt").write_text(f"mode {mode}")
    Folder.write(Folder.read(root), tmp_path / "data", "kinds")
    found = stored(tmp_path / "data", "folder/kinds")
    assert {name: data for name, (data, _, _) in found.items()} == {
        p.name: p.read_bytes() for p in root.iterdir() if p.suffix != ".txt"
    }


def test_flickr8k_is_read_as_it_is(shared_dir):
    data = Folder.read(shared_dir / "data" / "flickr8k_128")
    assert {split: len(found) for split, found in data.splits.items()} == {
        "train": 6000,
        "dev": 1000,
    }
    assert sum(len(captions) for _, _, captions in entries(data)) == 35_000
    assert data.left_out == {}
