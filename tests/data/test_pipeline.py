"""Batches: a pure function of (seed, step), whatever reads them and whatever is damaged."""

import itertools
import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import time

import numpy as np
import pytest
from data_samples import encode

from xmcgan.data import DataSet, Example, Split
from xmcgan.data.pipeline import (
    SkippingSource,
    fixed_examples,
    num_steps,
    steps_per_epoch,
    train_batches,
)
from xmcgan.errors import DataError
from xmcgan.shapes.dataset import Shapes

WORDS = ["red", "blue", "green", "pink"]


class ListSource(list):
    """Hold examples in memory; at module level, so that worker processes can load it."""


class FaultySource(ListSource):
    """Fail on one example."""

    def __getitem__(self, index):
        if index == 3:
            raise DataError("record 3 of split 'train' is damaged")
        return super().__getitem__(index)


def make_source(num: int, kind=ListSource) -> ListSource:
    """Return images whose red channel is their number, darker on the right."""
    source = kind()
    for i in range(num):
        pixels = np.full((8, 8, 3), i, np.uint8)
        pixels[:, :4, 1], pixels[:, 4:, 1] = 250, 0
        source.append(Example(encode(pixels), WORDS, f"image-{i}"))
    return source


def batches(source, tokenizer, num, **options):
    defaults = {
        "batch_size": 3, "d_steps": 2, "image_size": 8, "resize": "crop", "flip": True, "seed": 7
    }  # fmt: skip
    iterator = train_batches(source, tokenizer, **{**defaults, **options})
    return list(itertools.islice(iterator, num))


def numbers(found) -> list[int]:
    return [int(n) for batch in found for n in batch["image"][..., 0, 0, 0].ravel()]


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def reference(tokenizer):
    return batches(make_source(10), tokenizer, 8)


def test_batch_has_the_shapes_and_types_of_the_contract(reference):
    batch = reference[0]
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((2, 3, 8, 8, 3), "uint8"),
        "token_ids": ((2, 3, 12), "int32"),
        "word_mask": ((2, 3, 12), "bool"),
    }


def test_every_epoch_holds_every_example_once_in_a_new_order(reference):
    stream = numbers(reference)
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("start", [1, 4, 7])
def test_resume_continues_the_uninterrupted_run_across_epochs(reference, tokenizer, start):
    resumed = batches(make_source(10), tokenizer, 8 - start, start_step=start)
    assert_equal(resumed, reference[start:])


def test_same_seed_repeats_and_another_seed_differs(reference, tokenizer):
    assert_equal(batches(make_source(10), tokenizer, 3), reference[:3])
    assert numbers(batches(make_source(10), tokenizer, 3, seed=8)) != numbers(reference[:3])


def test_d_steps_only_regroups_the_stream(reference, tokenizer):
    single = batches(make_source(10), tokenizer, 6, d_steps=1)
    for key in single[0]:
        merged = np.concatenate([batch[key] for batch in single])
        np.testing.assert_array_equal(merged, np.concatenate([b[key] for b in reference[:3]]))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_give_the_same_batches(reference, tokenizer, num_workers, shapes_dir):
    # A source of the package: worker processes import it, and open the files themselves.
    source = DataSet("shapes/tiny", shapes_dir).load("train")
    expected = batches(source, tokenizer, 4)
    assert_equal(batches(source, tokenizer, 4, num_workers=num_workers), expected)


def test_killed_worker_process_is_an_error_within_seconds(tokenizer, shapes_dir):
    source = DataSet("shapes/tiny", shapes_dir).load("train")
    others = set(multiprocessing.active_children())
    options = {"batch_size": 3, "d_steps": 1, "image_size": 8, "resize": "crop", "flip": False}
    iterator = train_batches(source, tokenizer, seed=0, num_workers=1, **options)
    next(iterator)
    (worker,) = set(multiprocessing.active_children()) - others
    os.kill(worker.pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"a process that decodes images died(.|\n)*num_workers"):
        list(itertools.islice(iterator, 100))
    assert time.monotonic() - start < 10


def test_closing_ends_the_worker_processes(tokenizer, shapes_dir):
    source = DataSet("shapes/tiny", shapes_dir).load("train")
    others = set(multiprocessing.active_children())
    options = {"batch_size": 3, "d_steps": 1, "image_size": 8, "resize": "crop", "flip": False}
    iterator = train_batches(source, tokenizer, seed=0, num_workers=1, **options)
    next(iterator)
    iterator.close()
    assert set(multiprocessing.active_children()) <= others


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_shares_of_all_processes_make_the_batch(tokenizer, num_workers, shapes_dir):
    source = DataSet("shapes/tiny", shapes_dir).load("train")
    options = {"batch_size": 6, "start_step": 1, "num_workers": num_workers}
    shares = [batches(source, tokenizer, 3, share=(i, 3), **options) for i in range(3)]
    joined = [
        {key: np.concatenate([part[key] for part in parts], axis=1) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, batches(source, tokenizer, 3, batch_size=6, start_step=1))


def test_processes_that_cannot_share_a_batch_are_refused(tokenizer):
    with pytest.raises(DataError, match="batch of 3 images does not divide over 4 processes"):
        batches(make_source(5), tokenizer, 1, share=(0, 4))


def test_about_half_of_the_images_are_mirrored_and_none_without_flip(tokenizer):
    source = make_source(10)
    found = np.concatenate([b["image"] for b in batches(source, tokenizer, 40)]).reshape(
        -1, 8, 8, 3
    )
    mirrored = (found[:, 0, 0, 1] == 0).mean()
    assert 0.35 < mirrored < 0.65
    plain = np.concatenate([b["image"] for b in batches(source, tokenizer, 10, flip=False)])
    assert (plain[..., 0, 0, 1] == 250).all()


def test_flip_changes_neither_order_nor_captions(reference, tokenizer):
    plain = batches(make_source(10), tokenizer, 8, flip=False)
    assert numbers(plain) == numbers(reference)
    for a, b in zip(plain, reference, strict=True):
        np.testing.assert_array_equal(a["token_ids"], b["token_ids"])


def test_all_captions_of_an_image_are_used(tokenizer):
    found = batches(make_source(4), tokenizer, 40, batch_size=4, d_steps=1)
    ids = np.concatenate([b["token_ids"][0, :, 1] for b in found])
    images = np.concatenate([b["image"][0, :, 0, 0, 0] for b in found])
    pairs = {(int(image), int(word)) for image, word in zip(images, ids, strict=True)}
    assert pairs == set(itertools.product(range(4), tokenizer(WORDS)[0][:, 1].tolist()))


def test_batch_as_large_as_the_data_set_works_and_larger_is_refused(tokenizer):
    (batch,) = batches(make_source(3), tokenizer, 1)
    assert sorted(numbers([batch])) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="batch_size is 4, but the data set has 3 examples"):
        batches(make_source(3), tokenizer, 1, batch_size=4)


def test_damaged_record_stops_training_with_its_name(tokenizer):
    with pytest.raises(DataError, match="record 3"):
        batches(make_source(5, FaultySource), tokenizer, 4)


def test_unreadable_image_stops_training_with_its_name(tokenizer):
    source = make_source(5)
    source[2] = Example(b"rubbish", ["red"], "broken.jpg")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        batches(source, tokenizer, 4)


def test_fixed_examples_are_the_same_different_images_unmirrored():
    source = make_source(10)
    options = {"seed": 1, "image_size": 8, "resize": "crop"}
    images, captions = fixed_examples(source, 6, **options)
    again, captions_again = fixed_examples(source, 6, **options)
    np.testing.assert_array_equal(images, again)
    assert captions == captions_again
    assert len(set(images[:, 0, 0, 0].tolist())) == 6
    assert (images[:, 0, 0, 1] == 250).all()


@pytest.mark.parametrize(
    ("epochs", "num", "batch", "d_steps", "steps"),
    [(1, 10, 5, 1, 2), (1, 11, 5, 1, 3), (2, 11, 5, 1, 5), (1, 10, 5, 2, 1), (0.5, 100, 10, 1, 5),
     (3, 82_783, 256, 2, 486)],
)  # fmt: skip
def test_steps_cover_the_epochs_and_no_step_more(epochs, num, batch, d_steps, steps):
    assert num_steps(epochs, num, batch, d_steps) == steps
    assert steps * batch * d_steps >= epochs * num > (steps - 1) * batch * d_steps
    assert steps_per_epoch(num, batch, d_steps) == num / (batch * d_steps)


def test_tensorflow_is_never_imported():
    assert "tensorflow" not in sys.modules
    assert "torch" not in sys.modules


NUM = 6
OPTIONS = {"batch_size": 3, "d_steps": 1, "image_size": 8, "resize": "crop", "flip": False}


@pytest.fixture
def flipped(tmp_path) -> Split:
    """Return a training split with a flipped byte in the image of its third record."""
    Shapes.write(Shapes.read(num_train=NUM, num_validation=2), tmp_path)
    (path,) = Shapes.find_version(tmp_path).glob("*train*")
    data = bytearray(path.read_bytes())
    data[[match.start() for match in re.finditer(b"\x89PNG", data)][2] + 60] ^= 0xFF
    path.write_bytes(bytes(data))
    return DataSet("shapes", tmp_path).load("train")


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
