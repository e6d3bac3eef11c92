"""A user's own images and captions: stored unchanged, every fault named."""

import json
import os
import shutil
import zipfile

import pytest
from data_samples import encode, photo, write_folder
from PIL import Image

from xmcgan.data.folder import check_images, read_folder
from xmcgan.data.prepare import prepare_folder
from xmcgan.data.sources import list_splits, load_source
from xmcgan.errors import DataError


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
    for split in list_splits(name, data_dir):
        source = load_source(name, data_dir, split)
        for i in range(len(source)):
            found[source[i].name] = (source[i].image, source[i].captions, split)
    return found


def zip_folder(root, path, members=None):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file() and (members is None or members(file)):
                archive.write(file, file.relative_to(root))
    return path


def test_bytes_captions_and_splits_are_stored_as_given(folder, tmp_path):
    built, summary = prepare_folder(folder, tmp_path / "data", name="mine")
    assert built
    assert summary.startswith("4 images with 8 captions")
    expected = {
        f"images/{i}.jpg": (photo(i), [f"a photo of {i}", f"number {i}"], split)
        for i, split in enumerate(["train", "train", "train", "dev"])
    }
    assert stored(tmp_path / "data", "folder/mine") == expected


def test_zip_and_directory_with_zip_give_the_same_data_set(folder, tmp_path):
    expected = read_folder(folder)
    whole = zip_folder(folder, tmp_path / "all.zip")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(folder / "captions.jsonl", mixed)
    zip_folder(folder, mixed / "images.zip", lambda file: file.suffix == ".jpg")
    for source in (whole, mixed):
        data = read_folder(source)
        assert data.entries == expected.entries
        assert data.digest() == expected.digest()
    prepare_folder(mixed, tmp_path / "data")
    assert len(stored(tmp_path / "data", "folder/mixed")) == 4


def test_captions_below_the_top_of_a_zip_name_images_beside_them(folder, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    shutil.move(folder, outer / "photos")
    data = read_folder(zip_folder(outer, tmp_path / "outer.zip"))
    assert data.entries[0].image == "photos/images/0.jpg"


def test_captions_elsewhere_name_images_relative_to_the_source(folder, tmp_path):
    captions = shutil.move(folder / "captions.jsonl", tmp_path / "other.jsonl")
    assert len(read_folder(folder, captions).entries) == 4


def test_one_text_file_per_image(tmp_path):
    root = tmp_path / "texts"
    (root / "b").mkdir(parents=True)
    (root / "a.jpg").write_bytes(photo(0))
    (root / "a.txt").write_text("a cat \n\n a dog\n\n", encoding="utf-8-sig")
    (root / "b" / "a.PNG").write_bytes(encode(Image.new("L", (4, 4))))
    (root / "b" / "a.txt").write_text("grün\r\n")
    (root / "alone.jpg").write_bytes(photo(1))
    data = read_folder(root)
    assert [(e.image, e.split, e.captions) for e in data.entries] == [
        ("a.jpg", "train", ("a cat", "a dog")),
        ("b/a.PNG", "train", ("grün",)),
    ]
    assert (data.num_uncaptioned, data.num_empty_captions) == (1, 1)


def test_missing_split_means_train_and_others_keep_their_names(folder):
    write_lines(folder, line(), line("images/1.jpg", split="my_test"))
    assert read_folder(folder).splits == {"train": 1, "my_test": 1}


def test_empty_captions_beside_others_are_dropped_and_counted(folder):
    write_lines(folder, line(captions=["", "a cat", " \t "]))
    data = read_folder(folder)
    assert data.entries[0].captions == ("a cat",)
    assert data.num_empty_captions == 2
    assert data.num_uncaptioned == 3


def test_line_separator_characters_inside_a_caption_do_not_break_the_line(folder):
    text = '{"image": "images/0.jpg", "captions": ["a\u2028cat\x85"]}'
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    assert read_folder(folder).entries[0].captions[0] == "a\u2028cat"


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ('{"image": ', "broken JSON"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "broken JSON"),
        ('{"captions": ["a"]}', '"image" must be a path'),
        (line(image=""), '"image" must be a path'),
        ('{"image": "images/1.jpg"}', '"captions" must be a list'),
        ('{"image": "images/1.jpg", "captions": "a cat"}', '"captions" must be a list'),
        ('{"image": "images/1.jpg", "captions": [1]}', '"captions" must be a list'),
        (line("images/1.jpg", []), "every caption is empty"),
        (line("images/1.jpg", ["", " \n"]), "every caption is empty"),
        (line("images/1.jpg", ["a\0b"]), "NUL"),
        (line("images/1.jpg", ["x" * 2001]), "2,001 characters"),
        (line("images/1.jpg", ["\ud800"]), "not valid Unicode"),
        (line("images/1.jpg", split="../x"), '"split" is'),
        (line("images/1.jpg", split="all"), '"split" is'),
        (line(), "already has captions in line 1"),
    ],
)
def test_broken_line_is_named_with_file_and_number(folder, bad, fault):
    write_lines(folder, line(), "", bad)
    with pytest.raises(DataError, match=rf"captions\.jsonl, line 3: .*{fault}"):
        read_folder(folder)


def test_text_that_is_not_utf8_is_named_with_its_line(folder):
    (folder / "captions.jsonl").write_bytes(line().encode() + b"\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"line 2: not UTF-8"):
        read_folder(folder)


def test_caption_of_exactly_the_limit_is_kept(folder):
    write_lines(folder, line(captions=["x" * 2000, "☕ \U0001f600"]))
    assert [len(c) for c in read_folder(folder).entries[0].captions] == [2000, 3]


def test_missing_images_are_listed_and_counted(folder):
    lines = [line(f"images/none-{i}.jpg") for i in range(8)]
    write_lines(folder, line(), *lines)
    with pytest.raises(DataError, match=r"name 8 images(.|\n)*none-0(.|\n)*none-4\.jpg\n.*3 more"):
        read_folder(folder)


@pytest.mark.parametrize("outside", ["../secret.jpg", "/etc/passwd", "images/../../secret.jpg"])
def test_captions_cannot_reach_outside_the_source(folder, outside):
    (folder.parent / "secret.jpg").write_bytes(photo())
    write_lines(folder, line(outside))
    with pytest.raises(DataError, match="not in"):
        read_folder(folder)


def test_unreadable_images_are_all_named(folder):
    (folder / "images" / "1.jpg").write_bytes(photo()[:-100])
    (folder / "images" / "2.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 4 images(.|\n)*1\.jpg(.|\n)*2\.jpg is empty"):
        check_images(read_folder(folder))


def test_nothing_is_left_when_an_image_is_unreadable(folder, tmp_path):
    (folder / "images" / "1.jpg").write_bytes(b"rubbish")
    with pytest.raises(DataError, match=r"images/1\.jpg"):
        prepare_folder(folder, tmp_path / "data", name="mine")
    left = [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"]
    assert left == []


def test_folder_without_captions_is_refused(folder):
    (folder / "captions.jsonl").unlink()
    with pytest.raises(DataError, match="no captions for any image"):
        read_folder(folder)


def test_several_caption_files_are_refused(folder):
    shutil.copy(folder / "captions.jsonl", folder / "images")
    with pytest.raises(DataError, match=r"several captions\.jsonl"):
        read_folder(folder)


def test_two_images_of_one_text_file_are_refused(tmp_path):
    for suffix in ("jpg", "png"):
        (tmp_path / f"a.{suffix}").write_bytes(photo())
    (tmp_path / "a.txt").write_text("a cat")
    with pytest.raises(DataError, match=r"a\.txt describes two images"):
        read_folder(tmp_path)


def test_image_both_in_directory_and_zip_is_refused(folder):
    zip_folder(folder, folder / "images.zip", lambda file: file.name == "0.jpg")
    with pytest.raises(DataError, match=r"'images/0\.jpg' occurs twice"):
        read_folder(folder)


def test_source_that_is_missing_or_no_zip_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_folder(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"PK rubbish")
    with pytest.raises(DataError, match="neither a directory nor a zip"):
        read_folder(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "C:/evil.jpg"])
def test_zip_entry_that_points_outside_is_refused_and_nothing_written(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, photo())
    with pytest.raises(DataError, match="points outside"):
        read_folder(tmp_path / "evil.zip")
    assert os.listdir(tmp_path) == ["evil.zip"]


def test_flipped_byte_in_a_zip_is_named(folder, tmp_path):
    path = zip_folder(folder, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[data.index(photo(1)) + 300] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"images/1\.jpg .*CRC"):
        check_images(read_folder(path))


def test_files_that_archivers_leave_behind_are_ignored(folder):
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "0.jpg").write_bytes(b"rubbish")
    (folder / ".DS_Store.jpg").write_bytes(b"rubbish")
    assert read_folder(folder).num_uncaptioned == 0


def test_every_kind_of_image_passes_from_folder_to_example(tmp_path):
    root = tmp_path / "kinds"
    root.mkdir()
    kinds = [("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png")]
    for mode, suffix in kinds:
        name = f"{mode.replace(';', '')}.{suffix}"
        Image.new(mode, (6, 4)).save(root / name)
        (root / name).with_suffix(".txt").write_text(f"mode {mode}")
    prepare_folder(root, tmp_path / "data")
    found = stored(tmp_path / "data", "folder/kinds")
    assert {name: data for name, (data, _, _) in found.items()} == {
        p.name: p.read_bytes() for p in root.iterdir() if p.suffix != ".txt"
    }


def test_flickr8k_is_read_as_it_is(shared_dir):
    data = read_folder(shared_dir / "data" / "flickr8k_128")
    assert data.splits == {"train": 6000, "dev": 1000}
    assert sum(len(entry.captions) for entry in data.entries) == 35_000
    assert data.num_uncaptioned == 0
