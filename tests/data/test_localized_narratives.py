"""Localized Narratives: one narrative an example, images stored once, every fault named."""

import json

import pytest
from file_server import serve
from official_samples import (
    hash_all,
    narrative,
    served,
    write_coco,
    write_narratives,
    write_open_images,
)

from xmcgan.data import DataSet
from xmcgan.data.localized_narratives import LnCoco, LnOpenImages
from xmcgan.data.pipeline import train_batches
from xmcgan.data.records import describe
from xmcgan.errors import DataError

VAL = "coco_val_localized_narratives.jsonl"


@pytest.fixture
def images(tmp_path):
    return write_coco(tmp_path / "coco", year="2017")


def prepare(data_set, sources, data_dir):
    contents = data_set.read(sources)
    assert data_set.write(contents, data_dir, num_workers=1)
    return contents


def all_examples(dataset, data_dir, split):
    return list(DataSet(dataset, data_dir).load(split))


def test_each_narrative_is_an_example_and_each_image_is_stored_once(images, tmp_path):
    lines = [narrative(6, "Six a.", 3), narrative(5, "Five.", 2), narrative(6, "Six b.", 4)]
    write_narratives(tmp_path / "ln", VAL, *lines)
    data = prepare(LnCoco, [tmp_path / "ln", images], tmp_path / "data")
    found = all_examples("ln_coco", tmp_path / "data", "val")
    assert [(e.name, e.image_id, e.captions, e.caption_ids) for e in found] == [
        ("000000000005.jpg#2", "5", ["Five."], ["2"]),
        ("000000000006.jpg#3", "6", ["Six a."], ["3"]),
        ("000000000006.jpg#4", "6", ["Six b."], ["4"]),
    ]
    assert found[1].image == found[2].image != found[0].image
    source = DataSet("ln_coco", tmp_path / "data").load("val")
    assert [source[i].image_id for i in source.one_per_image()] == ["5", "6"]
    assert DataSet("ln_coco", tmp_path / "data").splits() == {"val": 3}
    info = json.loads((LnCoco.find_version(tmp_path / "data") / "dataset_info.json").read_text())
    assert info["splits"][0]["shardLengths"] == ["2"]
    summary = describe(LnCoco, data, tmp_path / "data", "")
    assert "3 narratives of 2 images (published: 8,573)" in summary


def test_examples_past_the_end_do_not_exist(images, tmp_path):
    write_narratives(tmp_path / "ln", VAL, narrative(5, "a", 1), narrative(5, "b", 2))
    prepare(LnCoco, [tmp_path / "ln", images], tmp_path / "data")
    source = DataSet("ln_coco", tmp_path / "data").load("val")
    for index in (2, -1):
        with pytest.raises(IndexError):
            source[index]


def test_ids_without_zeros_find_images_of_2014_too(tmp_path):
    images = write_coco(tmp_path / "coco", year="2014")
    write_narratives(tmp_path / "ln", VAL, narrative(2, "Two."))
    data = LnCoco.read([tmp_path / "ln", images])
    assert data.splits["val"][0].image.path.endswith("COCO_train2014_000000000002.jpg")
    assert data.splits["val"][0].name == "000000000002.jpg"


def test_empty_and_repeated_narratives_are_dropped_and_counted(images, tmp_path):
    lines = [
        narrative(5, "Five.", 1),
        narrative(5, " Five.\n", 2),
        narrative(5, "Five, again.", 1),
        narrative(6, " "),
        narrative(6, "x\0"),
        narrative(7, "x" * 10_001),
        narrative(7, "Five."),  # the same words of another image
        "",
    ]
    write_narratives(tmp_path / "ln", VAL, *lines)
    data = LnCoco.read([tmp_path / "ln", images])
    assert [(e.image_id, e.caption_ids) for e in data.splits["val"]] == [
        ("5", ("1", "1-2")),
        ("7", ("1",)),
    ]
    counts = {key: n for key, n in data.left_out.items() if "images" not in key}
    assert counts == {
        "empty captions dropped": 1,
        "duplicate narratives dropped": 1,
        "unusable captions dropped": 2,
    }


def test_narratives_of_absent_images_are_counted(images, tmp_path):
    lines = [narrative(i, f"Photo {i}.") for i in (5, 6, 77)] + [narrative(77, "Again.")]
    write_narratives(tmp_path / "ln", VAL, *lines)
    data = LnCoco.read([tmp_path / "ln", images])
    assert data.left_out["images absent"] == 1
    assert data.left_out["narratives of absent images"] == 2
    assert len(data.splits["val"]) == 2


def test_images_that_are_mostly_absent_are_an_error(images, tmp_path):
    write_narratives(tmp_path / "ln", VAL, *(narrative(i, "x") for i in (5, 76, 77)))
    with pytest.raises(DataError, match="2 of the 3 images"):
        LnCoco.read([tmp_path / "ln", images])


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ('{"image_id": ', "not a narrative"),
        (narrative(5, "whole")[:-40], "not a narrative"),
        ("[1]", "not a narrative"),
        ('{"caption": "x"}', "not a narrative"),
        ('{"image_id": "5"}', "not a narrative"),
        ('{"image_id": "5", "caption": null}', '"caption" must be a string'),
        (narrative("../../x", "x"), '"image_id"'),
        (narrative("x5", "x"), '"image_id"'),
        ('{"image_id": "5", "caption": "\xff"}', "not a narrative"),
    ],
)
def test_a_broken_line_is_named_with_file_and_number(images, tmp_path, bad, fault):
    root = tmp_path / "ln"
    root.mkdir()
    (root / VAL).write_bytes(f"{narrative(5, 'x')}\n\n{bad}\n".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{VAL}, line 3 .*{fault}"):
        LnCoco.read([root, images])


def test_no_narratives_name_the_file_that_is_looked_for(images):
    with pytest.raises(DataError, match="coco_train_localized_narratives-00000-of-00004"):
        LnCoco.read([images])


def test_open_images_are_taken_only_where_they_have_narratives(tmp_path):
    source = write_open_images(tmp_path / "oi")
    data = prepare(LnOpenImages, [source], tmp_path / "data")
    assert DataSet("ln_open_images", tmp_path / "data").splits() == {"train": 3, "validation": 2}
    assert DataSet("ln_open_images", tmp_path / "data").held_out() == "validation"
    assert data.left_out == {"images without captions": 1}
    found = all_examples("ln_open_images", tmp_path / "data", "train")
    assert [e.name for e in found] == ["a0.jpg#1", "a1.jpg#1", "a2.jpg#1"]
    assert found[2].captions == ["In this image 2."]


def test_training_sees_every_narrative_in_an_epoch(images, tmp_path, tokenizer):
    lines = [narrative(5, t, n) for n, t in enumerate("abc")] + [narrative(6, t) for t in "de"]
    write_narratives(tmp_path / "ln", VAL, *lines)
    prepare(LnCoco, [tmp_path / "ln", images], tmp_path / "data")
    source = DataSet("ln_coco", tmp_path / "data").load("val")
    batches = train_batches(
        source, tokenizer, batch_size=5, d_steps=1, image_size=8, resize="crop", flip=False, seed=0
    )
    seen = next(batches)["token_ids"][0, :, 1].tolist()
    batches.close()
    assert sorted(seen) == sorted(tokenizer(list("abcde"))[0][:, 1].tolist())


def test_the_editions_list_the_official_files():
    assert len(LnCoco.narratives) == 5
    assert len(LnOpenImages.narratives) == 11
    for edition in (LnCoco, LnOpenImages):
        assert all(edition.files.fullmatch(a.file_name) for a in edition.narratives)


def test_open_images_come_one_by_one_and_only_those_with_narratives(tmp_path, monkeypatch):
    official = write_open_images(tmp_path / "official")
    train, validation = LnOpenImages.narratives[0], LnOpenImages.narratives[-1]
    write_narratives(
        official, train.file_name, *(narrative(f"a{i}", f"This is {i}.") for i in (0, 1, 2, 9))
    )
    with serve(served(official)) as (url, server):
        archives = hash_all([train, validation], url, official)
        monkeypatch.setattr(LnOpenImages, "narratives", archives)
        monkeypatch.setattr(LnOpenImages, "image_host", url)
        LnOpenImages.download(tmp_path / "downloads")
    assert ("/train/a3.jpg", "") not in server.requests
    data = LnOpenImages.read([tmp_path / "downloads"])
    assert data.left_out == {"images absent": 1, "narratives of absent images": 1}
    assert {split: len(entries) for split, entries in data.splits.items()} == {
        "train": 3,
        "validation": 2,
    }
