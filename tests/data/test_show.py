"""`prepare_data.py show` draws what is stored, and names every mistake."""

import io

import numpy as np
import pytest
from data_samples import NUM_TRAIN, NUM_VALIDATION
from PIL import Image

from xmcgan.data import DataSet, Example
from xmcgan.data.images import decode_image
from xmcgan.sampling.grid import contact_sheet

PREPARE = "scripts/prepare_data.py"


def contains(page: np.ndarray, image: np.ndarray) -> bool:
    """Return whether an image stands somewhere on a page, pixel by pixel."""
    height, width = image.shape[:2]
    tops, lefts = np.nonzero((page == image[0, 0]).all(-1))
    return any(
        np.array_equal(page[top : top + height, left : left + width], image)
        for top, left in zip(tops, lefts, strict=True)
    )


def test_the_sheet_shows_different_images_of_the_split(run, shapes_dir, tmp_path):
    flags = ["show", "shapes/tiny", "--data-dir", shapes_dir, "--split", "validation"]
    out = tmp_path / "new" / "sheet.png"
    status, output, errors = run(PREPARE, *flags, "--num", NUM_VALIDATION, "--out", out)
    assert status == 0, errors
    assert str(out) in output
    page = np.asarray(Image.open(out))
    source = DataSet("shapes/tiny", shapes_dir).load("validation")
    for example in source:
        image = np.asarray(decode_image(example.image, example.name))
        assert contains(page, image.repeat(2, axis=0).repeat(2, axis=1))
    first = DataSet("shapes/tiny", shapes_dir).load("train")[0]
    image = np.asarray(decode_image(first.image, first.name))
    assert not contains(page, image.repeat(2, axis=0).repeat(2, axis=1))


def test_the_choice_follows_the_seed(run, shapes_dir, tmp_path):
    def sheet(seed: int) -> bytes:
        flags = ("--data-dir", shapes_dir, "--num", 3, "--seed", seed, "--out", tmp_path / "s.png")
        assert run(PREPARE, "show", "shapes/tiny", *flags)[0] == 0
        return (tmp_path / "s.png").read_bytes()

    assert sheet(0) == sheet(0) != sheet(1)


def png(width: int, height: int, color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


def test_a_sheet_takes_images_of_any_size_and_any_number_of_captions():
    sizes = {"red": (300, 500), "blue": (20, 40), "lime": (640, 480)}
    examples = [
        Example(image=png(*size, color), captions=["a word"] * (number + 1), name=color)
        for number, (color, size) in enumerate(sizes.items())
    ]
    page = np.asarray(contact_sheet(examples))
    for color in ((255, 0, 0), (0, 0, 255), (0, 255, 0)):
        assert (page == np.array(color)).all(-1).sum() == 192**2


def test_every_caption_of_an_image_is_drawn():
    def ink(*captions: str) -> int:
        page = contact_sheet([Example(image=png(64, 64, "white"), captions=[*captions], name="x")])
        return int((np.asarray(page).sum(-1) < 200).sum())

    assert ink("a cat") < ink("a cat", "a cat") < ink("a cat", "a cat", "a cat")


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["emojy"], "'emoji'"),
        (["folder/mine"], "prepare_data.py folder"),
        (["coco"], "prepare_data.py coco"),
        (["shapes/tiny", "--split", "test"], "train, validation"),
        (["shapes/tiny", "--num", str(NUM_TRAIN + 1)], f"has {NUM_TRAIN} images"),
        (["shapes/tiny", "--num", "0"], "--num is 0"),
        (["shapes/tiny", "--seed", "-1"], "--seed is -1"),
        (["shapes/tiny", "--out", "sheet.jpg"], "sheet.jpg"),
        (["shapes/tiny", "--num", "1", "--out", "/dev/null/x/sheet.png"], "/dev/null/x/sheet.png"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(run, shapes_dir, tmp_path, flags, hint):
    out = [] if "--out" in flags else ["--out", tmp_path / "sheet.png"]
    status, _, errors = run(PREPARE, "show", *flags, *out, "--data-dir", shapes_dir)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors
    assert list(tmp_path.iterdir()) == []
