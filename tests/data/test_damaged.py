"""Damaged records stop whatever reads them, unless a few may be left out of training."""

import itertools
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from data_samples import encode

from xmcgan.data.damaged import SkippingSource
from xmcgan.data.pipeline import fixed_examples, train_batches
from xmcgan.data.prepare import prepare_shapes
from xmcgan.data.sources import Example, TfdsSource, find_version, load_source
from xmcgan.errors import DataError
from xmcgan.shapes.dataset import ShapesConfig

NUM = 6
OPTIONS = {"batch_size": 3, "d_steps": 1, "image_size": 8, "resize": "crop", "flip": False}


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("intact")
    prepare_shapes(data_dir, ShapesConfig(num_train=NUM, num_validation=2))
    return data_dir


@pytest.fixture
def flipped(intact, tmp_path) -> TfdsSource:
    """Return a training split with a flipped byte in the image of its third record."""
    prepare_shapes(tmp_path, ShapesConfig(num_train=NUM, num_validation=2))
    (path,) = find_version("shapes", tmp_path).glob("*train*")
    data = bytearray(path.read_bytes())
    data[[match.start() for match in re.finditer(b"\x89PNG", data)][2] + 60] ^= 0xFF
    path.write_bytes(bytes(data))
    return load_source("shapes", tmp_path, "train")


def test_a_flipped_byte_costs_one_record_and_names_file_and_index(flipped):
    others = [flipped[index].name for index in range(NUM) if index != 2]
    assert len(set(others)) == NUM - 1
    with pytest.raises(DataError, match=r"record 2 of .*/shapes-train\.array_record-0\S+ is dam"):
        flipped[2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_training_stops_at_a_damaged_record_wherever_it_is_read(flipped, tokenizer, num_workers):
    batches = train_batches(flipped, tokenizer, seed=0, num_workers=num_workers, **OPTIONS)
    with pytest.raises(DataError, match=r"record 2 of .* is damaged"):
        list(itertools.islice(batches, 4))


def test_training_goes_on_without_the_records_that_may_be_damaged(flipped, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        source = SkippingSource(flipped, 1)
        batches = list(itertools.islice(train_batches(source, tokenizer, seed=0, **OPTIONS), 4))
        again = list(itertools.islice(train_batches(source, tokenizer, seed=0, **OPTIONS), 4))
    for one, other in zip(batches, again, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    warnings = [record.getMessage() for record in caplog.records if "left out" in record.message]
    assert len(warnings) == 1
    assert "damaged record 1 of at most 1" in warnings[0]


def test_the_next_readable_example_stands_in(flipped):
    source = SkippingSource(flipped, 1)
    assert [source[i].name for i in (2, 3)] == [flipped[3].name] * 2
    assert pickle.loads(pickle.dumps(source))[2].name == flipped[3].name


class Damaged(list):
    """Hold examples, and None for damaged ones."""

    def __getitem__(self, index):
        if (example := super().__getitem__(index)) is None:
            raise DataError(f"record {index} is damaged")
        return example


def test_one_damaged_record_too_many_stops_training():
    good = Example(b"", ["red"], "good")
    source = SkippingSource(Damaged([None, good, None, None]), 2)
    assert [source[0], source[1], source[0]] == [good] * 3
    with pytest.raises(DataError, match=r"record 3 is damaged\nMore .*max_damaged_records = 2"):
        source[2]


def test_where_all_records_are_damaged_training_stops():
    with pytest.raises(DataError, match="damaged"):
        SkippingSource(Damaged([None] * 3), 10)[0]


def test_fixed_examples_are_never_others(flipped):
    with pytest.raises(DataError, match=r"record 2 of .* is damaged"):
        fixed_examples(flipped, NUM, seed=0, image_size=8, resize="crop")


@pytest.mark.parametrize("captions", [[], [b"\xff"]])
def test_a_record_without_a_readable_caption_is_named(intact, monkeypatch, captions):
    from tensorflow_datasets.proto import tf_example_pb2

    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(encode(np.zeros((4, 4, 3), np.uint8)))
    record.features.feature["captions"].bytes_list.value.extend(captions)
    source = load_source("shapes", intact, "train")
    monkeypatch.setitem(source.__dict__, "_records", [record.SerializeToString()])
    with pytest.raises(DataError, match=r"record 0 of .* is damaged"):
        source[0]
