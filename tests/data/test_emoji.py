"""The embedded `emoji`: complete, unchanged, and its held-out compositions are of known parts."""

import json
import re
import shutil
import zipfile
from collections import defaultdict

import pytest

from xmcgan.data import DataSet, Example, folder
from xmcgan.data.folder import EMOJI_ARCHIVE, Emoji
from xmcgan.data.images import decode_image
from xmcgan.errors import DataError

TONES = {1, 2, 3, 4, 5}
SPLITS = {"train": 3463, "validation": 323}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Return the lines of the caption file, with group and skin tone."""
    with zipfile.ZipFile(EMOJI_ARCHIVE) as archive:
        return [json.loads(line) for line in archive.read("captions.jsonl").splitlines()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    DataSet("emoji", data_dir).prepare()
    return data_dir


@pytest.fixture(scope="module")
def examples(data_dir) -> dict[str, list[Example]]:
    return {split: list(DataSet("emoji", data_dir).load(split)) for split in SPLITS}


def test_the_archive_is_small_and_its_licenses_stand_beside_it():
    assert EMOJI_ARCHIVE.stat().st_size < 6_500_000
    text = (EMOJI_ARCHIVE.parent / "README.md").read_text(encoding="utf-8")
    for words in (EMOJI_ARCHIVE.name, "Apache License 2.0", "MIT License", "Unicode License"):
        assert words in text


def test_first_use_prepares_it_and_a_second_leaves_it(data_dir):
    assert DataSet("emoji", data_dir).splits() == SPLITS
    assert DataSet("emoji", data_dir).held_out() == "validation"
    info = Emoji.find_version(data_dir) / "dataset_info.json"
    before = info.stat().st_mtime_ns
    DataSet("emoji/default", data_dir).prepare()
    assert info.stat().st_mtime_ns == before


def test_images_captions_and_splits_are_stored_as_they_are(rows, examples):
    with zipfile.ZipFile(EMOJI_ARCHIVE) as archive:
        expected = {
            row["image"]: (row["split"], row["captions"], archive.read(row["image"]))
            for row in rows
        }
    stored = {e.name: (split, e.captions, e.image) for split, es in examples.items() for e in es}
    assert stored == expected


def test_every_image_is_64_pixels_and_has_different_captions(examples):
    for example in examples["train"] + examples["validation"]:
        assert decode_image(example.image, example.name).size == (64, 64)
        assert len(set(example.captions)) == len(example.captions) >= 4


def test_what_is_held_out_is_one_skin_tone_of_five(rows):
    persons = defaultdict(dict)
    for row in rows:
        if row["tone"] in TONES:
            person = re.sub("1f3f[b-f]", "TONE", row["image"])  # the code points of the tones
            persons[person][row["tone"]] = row["split"]
    held_out = [row for row in rows if row["split"] == "validation"]
    assert {row["tone"] for row in held_out} == TONES
    assert len(persons) == len(held_out) == SPLITS["validation"]
    for tones in persons.values():
        assert tones.keys() == TONES
        assert sorted(tones.values()) == ["train"] * 4 + ["validation"]


def test_no_held_out_image_is_trained_on_but_the_snowboarder(examples):
    trained = {example.image for example in examples["train"]}
    seen = [e.captions[0] for e in examples["validation"] if e.image in trained]
    assert seen == ["snowboarder: medium skin tone"]  # shows no skin
    captions = {caption for example in examples["train"] for caption in example.captions}
    assert not any(captions & set(example.captions) for example in examples["validation"])


@pytest.mark.parametrize("damage", ["absent", "cut", "flipped"])
def test_a_missing_or_damaged_archive_is_named(tmp_path, monkeypatch, damage):
    archive = tmp_path / "emoji_64.zip"
    if damage != "absent":
        shutil.copy(EMOJI_ARCHIVE, archive)
        data = bytearray(archive.read_bytes())
        data[len(data) // 2] ^= 1
        archive.write_bytes(data if damage == "flipped" else data[:1000])
    monkeypatch.setattr(folder, "EMOJI_ARCHIVE", archive)
    with pytest.raises(DataError, match=re.escape(str(archive))):
        DataSet("emoji", tmp_path / "data").prepare()
