"""A `coco_captions` that TFDS made is read as it is."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data_samples import photo

from xmcgan.data.prepare import ensure_prepared
from xmcgan.data.sources import held_out_split, list_splits, load_source
from xmcgan.errors import DataError

SPLITS = {"train": 3, "restval": 2, "val": 1, "test": 1}


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
        return {split: self._generate_examples(split, num) for split, num in SPLITS.items()}

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
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    builder = CocoCaptions(data_dir=str(root), config="2014")
    builder.download_and_prepare(file_format="array_record", download_dir=str(root / "unused"))
    return root


def test_images_captions_and_ids_are_those_of_the_records(data_dir):
    ensure_prepared("coco_captions/2014", data_dir)
    assert list_splits("coco_captions/2014", data_dir) == SPLITS
    source = load_source("coco_captions/2014", data_dir, "restval")
    found = {source[i].image_id: source[i] for i in range(len(source))}
    assert set(found) == {"700", "701"}
    assert found["701"].image == photo(701)
    assert found["701"].name == "COCO_restval_701.jpg"
    assert found["701"].captions == ["a cat", "cat 701"]
    assert found["701"].caption_ids == ["9", "8"]


def test_all_of_val2014_is_held_out(data_dir):
    split = held_out_split("coco_captions/2014", data_dir)
    assert split == "restval+val+test"
    source = load_source("coco_captions/2014", data_dir, split)
    assert sorted(source[i].image_id for i in range(len(source))) == ["300", "400", "700", "701"]


def test_a_joined_split_with_an_unknown_part_is_named(data_dir):
    with pytest.raises(DataError, match=r"no split 'val\+dev'"):
        load_source("coco_captions/2014", data_dir, "val+dev")


def test_one_that_is_not_there_names_the_command_of_tfds(tmp_path):
    with pytest.raises(DataError, match="tfds build coco_captions"):
        ensure_prepared("coco_captions/2014", tmp_path)
