"""Sets of images on disk: one order, one digest, and every fault named."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.image_sources import list_images


def write_images(directory: Path, num: int, side: int = 8) -> np.ndarray:
    """Write 0.png, 1.png ... and return their pixels."""
    directory.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{index:03d}.png")
    return images


def as_zip(directory: Path) -> Path:
    path = directory.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(directory.iterdir(), reverse=True):
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_pixels_come_whole_and_in_the_order_of_names(tmp_path, batch_size):
    images = write_images(tmp_path / "a", 11)
    for source in (tmp_path / "a", as_zip(tmp_path / "a")):
        folder = list_images(source)
        assert folder.names == [f"{index:03d}.png" for index in range(11)]
        batches = list(folder.batches(batch_size, workers=3))
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        np.testing.assert_array_equal(np.concatenate(batches), images)


def test_a_directory_and_its_zip_have_one_digest_that_every_byte_and_name_changes(tmp_path):
    write_images(tmp_path / "a", 3)
    digests = [list_images(tmp_path / "a").digest(), list_images(as_zip(tmp_path / "a")).digest()]
    assert digests[0] == digests[1]
    read = list_images(tmp_path / "a")
    list(read.batches())
    assert read.digest() == digests[0]
    (tmp_path / "a" / "001.png").rename(tmp_path / "a" / "001b.png")
    renamed = list_images(tmp_path / "a").digest()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "001b.png")
    assert len({digests[0], renamed, list_images(tmp_path / "a").digest()}) == 3


def test_images_are_resized_as_for_training(tmp_path):
    Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)).save(tmp_path / "a.png")
    original = Image.open(tmp_path / "a.png")
    for resize, box in (("crop", (0, 1, 4, 5)), ("squash", None)):
        folder = list_images(tmp_path, image_size=8, resize=resize)
        expected = original.resize((8, 8), Image.Resampling.BICUBIC, box=box)
        np.testing.assert_array_equal(next(folder.batches())[0], np.asarray(expected))
        assert folder.recipe()["preparation"] == f"{resize} to 8, bicubic"


def test_a_choice_is_random_seeded_and_in_the_order_of_names(tmp_path):
    write_images(tmp_path, 30)
    folder = list_images(tmp_path)
    taken = folder.take(10, seed=1)
    assert len(set(taken.names)) == 10
    assert taken.names == sorted(taken.names)
    assert taken.names == folder.take(10, seed=1).names
    assert taken.names != folder.take(10, seed=2).names
    assert taken.names != folder.names[:10]
    assert taken.recipe()["chosen"] == "10 of 30 by numpy.random.default_rng(1)"
    with pytest.raises(EvaluationError, match=r"31 images were asked for, and .* has 30"):
        folder.take(31)


def test_the_recipe_says_which_images(tmp_path):
    write_images(tmp_path, 2)
    folder = list_images(tmp_path)
    assert folder.recipe() == {
        "source": str(tmp_path),
        "num_images": 2,
        "images_sha256": folder.digest(),
        "image_size": [8, 8],
        "preparation": "as stored",
    }


def test_images_of_several_sizes_are_an_error_that_names_two(tmp_path):
    write_images(tmp_path, 9)
    Image.new("RGB", (5, 7)).save(tmp_path / "006.png")
    with pytest.raises(EvaluationError, match=r"000\.png is 8 x 8, 006\.png is 5 x 7.*image-size"):
        list(list_images(tmp_path).batches(4))
    assert len(np.concatenate(list(list_images(tmp_path, image_size=8).batches(4)))) == 9


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_an_unreadable_image_is_named(tmp_path, content):
    write_images(tmp_path, 3)
    path = tmp_path / "001.png"
    path.write_bytes(path.read_bytes()[:-60] if content == "cut" else content)
    with pytest.raises(EvaluationError, match=r"001\.png"):
        list(list_images(tmp_path).batches())


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png.getvalue())
    with pytest.raises(EvaluationError, match=r"'a\.png' occurs twice"):
        list_images(tmp_path / "a.zip")


def test_a_set_without_images_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for path, hint in ((tmp_path, "no images"), (tmp_path / "b", "does not exist")):
        with pytest.raises(EvaluationError, match=hint):
            list_images(path)
    with pytest.raises(EvaluationError, match="neither"):
        list_images(tmp_path / "a.txt")
