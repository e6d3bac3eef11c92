"""COCO from folders and zips: the same data set, every fault counted or named."""

import json
import shutil
import zipfile

import pytest
from data_samples import encode, photo
from official_samples import coco_name, write_coco, zip_coco
from PIL import Image

from xmcgan.data import coco
from xmcgan.data.prepare import official_summary, prepare_official, read_official
from xmcgan.data.sources import find_version, held_out_split, list_splits, load_source
from xmcgan.errors import DataError


@pytest.fixture
def source(tmp_path):
    return write_coco(tmp_path / "coco")


def prepare(sources, data_dir, dataset="coco", name="default", **options):
    data = read_official(dataset, sources)
    assert prepare_official(dataset, data, data_dir, name=name, num_workers=1, **options)
    return data


def record_files(data_dir, name="coco"):
    return {p.name: p.read_bytes() for p in find_version(name, data_dir).glob("*array_record*")}


def edit_captions(source, change, split="train", year="2014"):
    path = source / "annotations" / f"captions_{split}{year}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_bytes_names_ids_captions_and_splits_are_stored_as_given(source, tmp_path):
    prepare([source], tmp_path / "data")
    assert list_splits("coco", tmp_path / "data") == {"train": 4, "val": 3}
    assert held_out_split("coco", tmp_path / "data") == "val"
    val = load_source("coco", tmp_path / "data", "val")
    for i in range(3):
        number = 5 + i
        assert val[i].image == photo(number)
        assert val[i].name == coco_name(number, "val", "2014")
        assert val[i].image_id == str(number)
        assert val[i].captions == [f"photo {number}, caption {k}" for k in (0, 1)]
        assert val[i].caption_ids == [f"{number}0", f"{number}1"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_folders_and_zips_give_the_same_record_files(source, tmp_path, compression):
    prepare([source], tmp_path / "a")
    zips = zip_coco(source, tmp_path / "zips", compression)
    prepare([zips], tmp_path / "b")
    prepare(sorted(zips.glob("*.zip")), tmp_path / "c")
    expected = record_files(tmp_path / "a")
    assert record_files(tmp_path / "b") == record_files(tmp_path / "c") == expected
    assert sorted(p.name for p in zips.iterdir()) == [  # nothing was extracted
        "annotations.zip", "train2014.zip", "val2014.zip",
    ]  # fmt: skip


def test_names_of_2017_are_read_and_the_year_is_found(tmp_path):
    data = coco.read_coco([write_coco(tmp_path / "coco", year="2017")])
    assert [e.name for e in data.splits["val"]] == [f"{i:012d}.jpg" for i in (5, 6, 7)]
    assert data.splits["train"][0].source_split == "train2017"
    assert data.published["val"] == 5_000


def test_two_years_in_one_place_must_be_told_apart(tmp_path):
    source = write_coco(tmp_path / "coco", year="2017")
    shutil.copytree(write_coco(tmp_path / "other"), source, dirs_exist_ok=True)
    with pytest.raises(DataError, match="choose with --year"):
        coco.read_coco([source])
    data = coco.read_coco([source], year="2014")
    assert all("COCO_val2014_" in entry.image.path for entry in data.splits["val"])


def test_captions_of_2014_find_images_under_their_names_of_2017(source, tmp_path):
    images = write_coco(tmp_path / "other", year="2017")
    shutil.rmtree(images / "annotations")
    for split in ("train", "val"):
        shutil.rmtree(source / f"{split}2014")
    data = coco.read_coco([source, images])
    assert [e.name for e in data.splits["val"]] == [coco_name(i, "val", "2014") for i in (5, 6, 7)]


def test_karpathys_file_replaces_the_splits(source, tmp_path):
    splits = ["train", "train", "train", "train", "restval", "val", "test"]
    images = [{"cocoid": i, "split": split} for i, split in enumerate(splits, 1)]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    data = coco.read_coco([source], karpathy=path)
    ids = {split: [e.image_id for e in entries] for split, entries in data.splits.items()}
    assert ids == {"train": ["1", "2", "3", "4"], "restval": ["5"], "val": ["6"], "test": ["7"]}
    assert data.splits["restval"][0].source_split == "val2014"
    prepare_official("coco", data, tmp_path / "data", name="karpathy")
    held_out = held_out_split("coco/karpathy", tmp_path / "data")
    assert held_out is not None
    assert len(load_source("coco/karpathy", tmp_path / "data", held_out)) == 3


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("{", "is not Karpathy"),
        ('{"images": [{"cocoid": 1}]}', "is not Karpathy"),
        ('{"images": [{"cocoid": 1, "split": "odd"}]}', "split 'odd'"),
        ('{"images": [{"cocoid": 99, "split": "val"}]}', "none of its images"),
    ],
)
def test_another_file_is_not_taken_for_karpathys(source, tmp_path, text, hint):
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(DataError, match=hint):
        coco.read_coco([source], karpathy=tmp_path / "k.json")


def test_what_is_left_out_is_counted(source, tmp_path):
    (source / "train2014" / coco_name(2, "train", "2014")).unlink()
    (source / "train2014" / coco_name(99, "train", "2014")).write_bytes(photo())

    def change(content):
        captions = {a["id"]: a for a in content["annotations"]}
        captions[10]["caption"] = " \n"
        captions[11]["caption"] = "a\0b"
        captions[30]["caption"] = "x" * 2001
        captions[31]["caption"] = "a bird \U0001f426"
        content["annotations"].append({"image_id": 12345, "id": 7, "caption": "nothing"})

    edit_captions(source, change)
    data = coco.read_coco([source])
    assert [e.image_id for e in data.splits["train"]] == ["3", "4"]
    assert data.splits["train"][0].captions == ("a bird \U0001f426",)
    assert data.counts == {
        "images absent": 1,
        "images without captions": 2,  # 99 has none; those of 1 are empty and unusable
        "empty captions dropped": 1,
        "unusable captions dropped": 2,
        "captions of images that the file does not list": 1,
    }
    prepare_official("coco", data, tmp_path / "data")
    summary = official_summary("coco", data, "default", tmp_path / "data")
    assert "2 images with 3 captions (published: 82,783)" in summary
    assert "1 images absent" in summary


def test_an_archive_that_is_not_there_is_an_error(source):
    shutil.rmtree(source / "train2014")
    with pytest.raises(DataError, match=r"4 of the 7 images(.|\n)*archive missing"):
        coco.read_coco([source])


def test_full_data_are_recognised(source, tmp_path, monkeypatch):
    monkeypatch.setitem(coco.PUBLISHED, "2014", {"train": 4, "val": 3})
    data = prepare([source], tmp_path / "data")
    summary = official_summary("coco", data, "default", tmp_path / "data")
    assert "full published data" in summary


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"images": [', r"captions_train2014\.json: broken JSON.*line 1"),
        ("[]", "not captions of COCO"),
        ('{"images": []}', "not captions of COCO"),
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ('{"images": [], "annotations": [{"id": 1}]}', r'"annotations"\[0\] is no caption'),
    ],
)
def test_broken_captions_are_named_with_their_file(source, text, hint):
    (source / "annotations" / "captions_train2014.json").write_text(text)
    with pytest.raises(DataError, match=hint):
        coco.read_coco([source])


def test_missing_captions_name_the_archive(source):
    shutil.rmtree(source / "annotations")
    with pytest.raises(DataError, match=r"annotations_trainval2014\.zip"):
        coco.read_coco([source])


def test_images_with_faults_are_all_named_or_left_out_on_request(source, tmp_path):
    folder = source / "train2014"
    (folder / coco_name(1, "train", "2014")).write_bytes(photo(1)[:-20])
    (folder / coco_name(2, "train", "2014")).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 7 images(.|\n)*0001\.jpg(.|\n)*0002\.jpg is empty"):
        prepare([source], tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*array_record*"))
    data = prepare([source], tmp_path / "data", skip_damaged=True)
    assert list_splits("coco", tmp_path / "data") == {"train": 2, "val": 3}
    summary = official_summary("coco", data, "default", tmp_path / "data")
    assert "2 damaged images" in summary


def test_mostly_damaged_images_are_never_skipped(source, tmp_path):
    for path in [*(source / "train2014").iterdir()]:
        path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="4 of 7 images cannot be used"):
        prepare([source], tmp_path / "data", skip_damaged=True)


def test_every_kind_of_image_is_kept_as_it_is(source, tmp_path):
    kinds = {
        1: encode(Image.new("L", (6, 4)), "JPEG"),
        2: encode(Image.new("CMYK", (6, 4)), "JPEG"),
        3: encode(Image.new("RGBA", (6, 4)), "PNG"),
        4: encode(Image.new("I;16", (6, 4)), "PNG"),
        5: encode(Image.new("P", (6, 4)), "GIF"),
        6: photo(6) + b"\0\0",  # bytes after the end of the image
    }
    for i, data in kinds.items():
        split = "train" if i < 5 else "val"
        (source / f"{split}2014" / coco_name(i, split, "2014")).write_bytes(data)
    prepare([source], tmp_path / "data")
    stored = {}
    for split in ("train", "val"):
        examples = load_source("coco", tmp_path / "data", split)
        stored |= {int(examples[i].image_id): examples[i].image for i in range(len(examples))}
    assert {i: stored[i] for i in kinds} == kinds


def test_other_data_under_the_same_name_are_refused(source, tmp_path):
    prepare([source], tmp_path / "data")
    data = read_official("coco", [source])
    assert not prepare_official("coco", data, tmp_path / "data")
    edit_captions(source, lambda content: content["annotations"][0].update(caption="other"))
    with pytest.raises(DataError, match="was prepared from other data"):
        prepare_official("coco", read_official("coco", [source]), tmp_path / "data")


def test_too_little_disk_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="GB free"):
        prepare([source], tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.json"))


def test_the_real_photographs_take_at_most_a_twentieth_more(shared_dir, tmp_path):
    data = read_official("coco", [shared_dir / "data" / "coco_mini"])
    assert prepare_official("coco", data, tmp_path)
    assert list_splits("coco", tmp_path) == {"train": 80, "val": 79}
    size = sum(path.stat().st_size for path in find_version("coco", tmp_path).iterdir())
    assert size < 1.05 * data.num_bytes
    example = load_source("coco", tmp_path, "train")[0]
    original = shared_dir / "data" / "coco_mini" / "train2017" / example.name
    assert example.image == original.read_bytes()
    assert len(example.captions) == 5
