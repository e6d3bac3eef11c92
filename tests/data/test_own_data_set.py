"""A user's own class, by dotted path: one file and one config line, and everything else works."""

import itertools
import pickle
import sys

import numpy as np
import pytest
from data_samples import photo
from PIL import Image

from xmcgan.config import load_config, read_config, save_config
from xmcgan.data import DataSet
from xmcgan.data.pipeline import train_batches
from xmcgan.errors import ConfigError, DataError

CODE = """
import numpy as np

class Squares:
    splits = ("train", "test")

    def __init__(self, split, num=6, root=None):
        self.split, self.num, self.root = split, num, root

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        image = np.full((8, 8, 3), 10 * index + (self.split == "test"), np.uint8)
        return {"image": image, "captions": [f"square {index}", "a square"]}

class Files(Squares):
    splits = ()

    def __getitem__(self, index):
        if self.root == "no caption":
            return {"image": b"", "captions": []}
        if self.root == "no image":
            return {"captions": ["a"]}
        if self.root == "text":
            return {"image": b"", "captions": "a cat"}
        with open(f"{self.root}/{index}.jpg", "rb") as file:
            return {"image": file.read(), "captions": ["a photo"], "name": f"{index}.jpg"}
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """Return the name of a module in the current directory."""
    (tmp_path / "my_pictures.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_pictures", raising=False)
    return "my_pictures"


def test_pixels_and_captions_come_through_the_pipeline(module, tokenizer):
    source = DataSet(f"{module}:Squares", "unused").load("train")
    options = {"batch_size": 3, "d_steps": 1, "image_size": 8, "resize": "crop", "flip": False}
    batches = train_batches(source, tokenizer, seed=0, **options)
    found = [batch["image"][..., 0, 0, 0] for batch in itertools.islice(batches, 2)]
    assert sorted(np.concatenate(found, axis=None)) == [0, 10, 20, 30, 40, 50]
    assert pickle.loads(pickle.dumps(source))[2].captions == ["square 2", "a square"]


def test_splits_and_held_out_images_are_those_that_the_class_names(module):
    data_set = DataSet(f"{module}:Squares", "unused", num=4)
    data_set.prepare()
    assert data_set.splits() == {"train": 4, "test": 4}
    assert data_set.held_out() == "test"
    assert DataSet(f"{module}:Files", "unused").held_out() is None
    assert data_set.load("test").one_per_image() == [0, 1, 2, 3]
    assert data_set.load("test")[1].name == "test-1"


def test_the_fingerprint_follows_fields_length_and_contents(module, tmp_path):
    def fingerprint(split="train", **fields):
        return DataSet(f"{module}:Squares", "unused", **fields).load(split).fingerprint()

    assert fingerprint() == fingerprint()
    different = {fingerprint(), fingerprint(num=7), fingerprint(root="x"), fingerprint("test")}
    assert len(different) == 4
    for seed in (1, 2):
        (tmp_path / "0.jpg").write_bytes(photo(seed))
        files = DataSet(f"{module}:Files", "unused", num=1, root=str(tmp_path)).load("train")
        different.add(files.fingerprint())
    assert len(different) == 6


def test_image_files_are_bytes_and_show_draws_them(module, run, tmp_path):
    (tmp_path / "0.jpg").write_bytes(photo())
    command = ["show", f"{module}:Files", "--field", "root=.", "--field", "num=1"]
    status, _, errors = run("scripts/prepare_data.py", *command, "--out", tmp_path / "sheet.png")
    assert (status, errors) == (0, "")
    assert Image.open(tmp_path / "sheet.png").width > 64


@pytest.mark.parametrize(
    ("name", "fields", "hint"),
    [
        ("my_pictures:Circles", {}, "Circles"),
        ("no_pictures:Squares", {}, "no_pictures"),
        ("my_pictures", {}, "my_pictures"),
        ("my_pictures:Squares", {"size": 8}, "data.fields.*size"),
    ],
)
def test_mistakes_of_name_and_fields_are_named(module, name, fields, hint):
    with pytest.raises(ConfigError, match=hint):
        DataSet(name, "unused", **fields).load("train")


@pytest.mark.parametrize("fault", ["no caption", "no image", "text"])
def test_an_example_that_cannot_be_used_is_named(module, fault):
    source = DataSet(f"{module}:Files", "unused", root=fault).load("train")
    with pytest.raises(DataError, match=r"example 3 of split 'train'.*my_pictures:Files"):
        source[3]


def test_an_empty_split_is_refused(module):
    with pytest.raises(DataError, match="'train'"):
        DataSet(f"{module}:Squares", "unused", num=0).load("train")


def test_fields_are_saved_with_the_config(tmp_path):
    config = load_config("emoji")
    with config.unlocked():
        config.data.fields = {"root": "pictures"}
    save_config(config, tmp_path / "config.json")
    read = read_config(tmp_path / "config.json")
    assert DataSet("folder/x", "data", **read.data.fields)._fields["root"] == "pictures"
