"""COCO from folders and zips: the same data set, every fault counted or named."""

import json
import os
import re
import shutil
import socket
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_samples import encode, photo
from file_server import serve
from official_samples import coco_name, hash_all, served, write_coco, zip_coco
from PIL import Image

from xmcgan.data import DataSet, coco
from xmcgan.data.coco import Coco
from xmcgan.data.localized_narratives import LnCoco
from xmcgan.data.records import describe
from xmcgan.errors import DataError


@pytest.fixture
def source(tmp_path):
    return write_coco(tmp_path / "coco")


def prepare(sources, data_dir, **options):
    contents = Coco.read(sources)
    assert Coco.write(contents, data_dir, num_workers=1, **options)
    return contents


def record_files(data_dir):
    return {p.name: p.read_bytes() for p in Coco.find_version(data_dir).glob("*array_record*")}


def edit_captions(source, change, split="train", year="2014"):
    path = source / "annotations" / f"captions_{split}{year}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_bytes_names_ids_captions_and_splits_are_stored_as_given(source, tmp_path):
    prepare([source], tmp_path / "data")
    assert DataSet("coco", tmp_path / "data").splits() == {"train": 4, "val": 3}
    assert DataSet("coco", tmp_path / "data").held_out() == "val"
    val = DataSet("coco", tmp_path / "data").load("val")
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
    data = Coco.read([write_coco(tmp_path / "coco", year="2017")])
    assert [e.name for e in data.splits["val"]] == [f"{i:012d}.jpg" for i in (5, 6, 7)]
    assert data.splits["train"][0].source_split == "train2017"
    assert data.published["val"] == 5_000


def test_two_years_in_one_place_must_be_told_apart(tmp_path):
    source = write_coco(tmp_path / "coco", year="2017")
    shutil.copytree(write_coco(tmp_path / "other"), source, dirs_exist_ok=True)
    with pytest.raises(DataError, match="choose with --year"):
        Coco.read([source])
    data = Coco.read([source], year="2014")
    assert all("COCO_val2014_" in entry.image.path for entry in data.splits["val"])


def test_captions_of_2014_find_images_under_their_names_of_2017(source, tmp_path):
    images = write_coco(tmp_path / "other", year="2017")
    shutil.rmtree(images / "annotations")
    for split in ("train", "val"):
        shutil.rmtree(source / f"{split}2014")
    data = Coco.read([source, images])
    assert [e.name for e in data.splits["val"]] == [coco_name(i, "val", "2014") for i in (5, 6, 7)]


def test_karpathys_file_replaces_the_splits(source, tmp_path):
    splits = ["train", "train", "train", "train", "restval", "val", "test"]
    images = [{"cocoid": i, "split": split} for i, split in enumerate(splits, 1)]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": images}))
    data = Coco.read([source], karpathy=path)
    ids = {split: [e.image_id for e in entries] for split, entries in data.splits.items()}
    assert ids == {"train": ["1", "2", "3", "4"], "restval": ["5"], "val": ["6"], "test": ["7"]}
    assert data.splits["restval"][0].source_split == "val2014"
    Coco.write(data, tmp_path / "data", "karpathy")
    data_set = DataSet("coco/karpathy", tmp_path / "data")
    assert data_set.held_out() == "restval+val+test"
    assert len(data_set.load("restval+val+test")) == 3


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
        Coco.read([source], karpathy=tmp_path / "k.json")


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
    data = Coco.read([source])
    assert [e.image_id for e in data.splits["train"]] == ["3", "4"]
    assert data.splits["train"][0].captions == ("a bird \U0001f426",)
    assert data.left_out == {
        "images absent": 1,
        "images without captions": 2,  # 99 has none; those of 1 are empty and unusable
        "empty captions dropped": 1,
        "unusable captions dropped": 2,
        "captions of images that the file does not list": 1,
    }
    Coco.write(data, tmp_path / "data")
    summary = describe(Coco, data, tmp_path / "data", "")
    assert "2 images with 3 captions (published: 82,783)" in summary
    assert "1 images absent" in summary


def test_an_archive_that_is_not_there_is_an_error(source):
    shutil.rmtree(source / "train2014")
    with pytest.raises(DataError, match=r"4 of the 7 images(.|\n)*archive missing"):
        Coco.read([source])


def test_full_data_are_recognized(source, tmp_path, monkeypatch):
    monkeypatch.setitem(coco.PUBLISHED, "2014", {"train": 4, "val": 3})
    data = prepare([source], tmp_path / "data")
    summary = describe(Coco, data, tmp_path / "data", "")
    assert "full published data" in summary


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"images": [', r"captions_train2014\.json is not captions of COCO.*line 1"),
        ("[]", "not captions of COCO"),
        ('{"images": []}', "not captions of COCO"),
        ('{"images": [{"id": 1}], "annotations": []}', "file_name"),
        ('{"images": [], "annotations": [{"id": 1}]}', r'"annotations"\[0\] is not a caption'),
    ],
)
def test_broken_captions_are_named_with_their_file(source, text, hint):
    (source / "annotations" / "captions_train2014.json").write_text(text)
    with pytest.raises(DataError, match=hint):
        Coco.read([source])


def test_missing_captions_name_the_archive(source):
    shutil.rmtree(source / "annotations")
    with pytest.raises(DataError, match=r"annotations_trainval2014\.zip"):
        Coco.read([source])


def test_images_with_faults_are_all_named_or_left_out_on_request(source, tmp_path):
    folder = source / "train2014"
    (folder / coco_name(1, "train", "2014")).write_bytes(photo(1)[:-20])
    (folder / coco_name(2, "train", "2014")).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 7 images(.|\n)*0001\.jpg(.|\n)*0002\.jpg is empty"):
        prepare([source], tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*array_record*"))
    data = prepare([source], tmp_path / "data", skip_damaged=True)
    assert DataSet("coco", tmp_path / "data").splits() == {"train": 2, "val": 3}
    summary = describe(Coco, data, tmp_path / "data", "")
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
        examples = DataSet("coco", tmp_path / "data").load(split)
        stored |= {int(examples[i].image_id): examples[i].image for i in range(len(examples))}
    assert {i: stored[i] for i in kinds} == kinds


def test_other_data_under_the_same_name_are_refused(source, tmp_path):
    prepare([source], tmp_path / "data")
    assert not Coco.write(Coco.read([source]), tmp_path / "data")
    edit_captions(source, lambda content: content["annotations"][0].update(caption="other"))
    with pytest.raises(DataError, match="was prepared from other data"):
        Coco.write(Coco.read([source]), tmp_path / "data")


def test_too_little_disk_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="GB free"):
        prepare([source], tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.json"))


def test_the_real_photographs_take_at_most_a_twentieth_more(shared_dir, tmp_path):
    data = Coco.read([shared_dir / "data" / "coco_mini"])
    assert Coco.write(data, tmp_path)
    data_set = DataSet("coco", tmp_path)
    assert data_set.splits() == {"train": 80, "val": 79}
    size = sum(path.stat().st_size for path in Coco.find_version(tmp_path).iterdir())
    assert size < 1.05 * data.num_bytes
    example = data_set.load("train")[0]
    original = shared_dir / "data" / "coco_mini" / "train2017" / example.name
    assert example.image == original.read_bytes()
    assert len(example.captions) == 5


def test_coco_comes_from_its_archives_to_a_data_set(tmp_path, monkeypatch):
    official = zip_coco(write_coco(tmp_path / "coco"), tmp_path / "official")
    os.rename(official / "annotations.zip", official / "annotations_trainval2014.zip")
    with serve(served(official), cuts=[500]) as (url, _):
        monkeypatch.setattr(coco, "ARCHIVES", hash_all(coco.ARCHIVES, url, official))
        Coco.download(tmp_path / "downloads")
    assert Coco.write(Coco.read([tmp_path / "downloads"]), tmp_path / "data")
    assert DataSet("coco", tmp_path / "data").splits() == {"train": 4, "val": 3}


def test_without_download_no_socket_is_opened(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert Coco.write(Coco.read([write_coco(tmp_path / "coco")]), tmp_path / "data")


def test_the_hashes_of_coco_are_those_that_tfds_knows():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    pinned = [*coco.ARCHIVES, *LnCoco.images]
    for item in pinned:
        info = known[item.url]
        assert (info.size, info.checksum) == (item.size, item.sha256)
        assert re.fullmatch("[0-9a-f]{64}", item.sha256 or "")


TFDS_SPLITS = {"train": 3, "restval": 2, "val": 1, "test": 1}


class CocoCaptions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The features of TFDS's own builder, without its downloads."""

    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014", version="1.1.0")]  # noqa: RUF012

    def _info(self):
        label = tfds.features.ClassLabel(names=["person", "cat"])
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": label,
                    "is_crowd": np.bool_,
                }
            ),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split, num) for split, num in TFDS_SPLITS.items()}

    def _generate_examples(self, split, num):
        for i in range(num):
            number = 100 * len(split) + i
            box = tfds.features.BBox(0.0, 0.1, 0.5, 0.6)
            label = {"id": 1, "area": 2, "bbox": box, "label": "cat", "is_crowd": False}
            yield (
                i,
                {
                    "image": photo(number),
                    "image/filename": f"COCO_{split}_{number}.jpg",
                    "image/id": number,
                    "captions": [{"id": 9, "text": "a cat"}, {"id": 8, "text": f"cat {number}"}],
                    "objects": [label] * i,
                },
            )


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = CocoCaptions(data_dir=str(root), config="2014")
    builder.download_and_prepare(file_format="array_record", download_dir=str(root / "unused"))
    return root


def test_a_data_set_of_tfds_is_read_as_it_is(tfds_dir):
    data_set = DataSet("coco_captions/2014", tfds_dir)
    data_set.prepare()
    assert data_set.splits() == TFDS_SPLITS
    source = data_set.load("restval")
    found = {source[i].image_id: source[i] for i in range(len(source))}
    assert set(found) == {"700", "701"}
    assert found["701"].image == photo(701)
    assert found["701"].name == "COCO_restval_701.jpg"
    assert found["701"].captions == ["a cat", "cat 701"]
    assert found["701"].caption_ids == ["9", "8"]


def test_all_of_val2014_is_held_out(tfds_dir):
    data_set = DataSet("coco_captions/2014", tfds_dir)
    split = data_set.held_out()
    assert split == "restval+val+test"
    source = data_set.load(split)
    assert sorted(source[i].image_id for i in range(len(source))) == ["300", "400", "700", "701"]


def test_a_joined_split_with_an_unknown_part_is_named(tfds_dir):
    with pytest.raises(DataError, match=r"no split 'val\+dev'"):
        DataSet("coco_captions/2014", tfds_dir).load("val+dev")


def test_one_that_is_not_there_names_the_command_of_tfds(tmp_path):
    with pytest.raises(DataError, match="tfds build coco_captions"):
        DataSet("coco_captions/2014", tmp_path).prepare()
