"""The sample grid shows every image unchanged, and every caption whatever it holds."""

import numpy as np
import pytest
from PIL import ImageFont

from xmcgan.sampling.grid import image_grid, wrap_caption

FONT = ImageFont.load_default(14)


def solid(*colors: tuple[int, int, int], size: int = 32) -> np.ndarray:
    return np.stack([np.full((size, size, 3), color, np.uint8) for color in colors])


RED, GREEN, BLUE = (250, 0, 0), (0, 250, 0), (0, 0, 250)


def count(page, color) -> int:
    return int((np.asarray(page) == np.array(color)).all(-1).sum())


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_every_image_is_enlarged_by_a_whole_factor_to_at_least_the_cell(size):
    page = image_grid(solid(RED, GREEN, BLUE, size=size), ["a", "b", "c"], 2, min_cell=160)
    width = size * -(-160 // size)
    for color in (RED, GREEN, BLUE):
        assert count(page, color) == width * width


def test_pixels_are_enlarged_without_smoothing():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = RED
    assert count(image_grid(image, [""], 1, min_cell=100), RED) == 50 * 50


def test_images_stand_in_reading_order():
    page = np.asarray(image_grid(solid(RED, GREEN, BLUE), ["a", "b", "c"], 2))

    def center(color):
        return np.argwhere((page == np.array(color)).all(-1)).mean(0)

    (red_y, red_x), (green_y, green_x), (blue_y, blue_x) = map(center, (RED, GREEN, BLUE))
    assert red_y == green_y < blue_y
    assert red_x == blue_x < green_x


def test_reference_images_stand_to_the_left_of_their_own():
    page = np.asarray(
        image_grid(solid(RED), ["a"], 4, reference_images=solid(BLUE, size=16), title="Step 3")
    )
    red = np.argwhere((page == np.array(RED)).all(-1))
    blue = np.argwhere((page == np.array(BLUE)).all(-1))
    assert blue[:, 1].max() < red[:, 1].min()
    assert blue[:, 0].min() == red[:, 0].min()


def test_a_longer_caption_takes_more_ink():
    def ink(caption):
        page = np.asarray(image_grid(solid(RED), [caption], 1))
        return int((page.sum(-1) < 200).sum())

    assert 0 < ink("a cat") < ink("a cat on a mat with a hat")


def test_lines_fit_the_width_and_keep_every_word():
    caption = "a small red circle to the left of two large blue squares"
    lines = wrap_caption(caption, FONT, 120, max_lines=9)
    assert " ".join(lines) == caption
    assert len(lines) > 2
    assert all(FONT.getlength(line) <= 120 for line in lines)


def test_a_long_caption_ends_with_an_ellipsis_after_four_lines():
    lines = wrap_caption("word " * 200, FONT, 120)
    assert len(lines) == 4
    assert lines[-1].endswith("...")
    assert all(FONT.getlength(line) <= 120 for line in lines)


def test_a_word_wider_than_a_line_is_broken():
    lines = wrap_caption("W" * 20, FONT, 60, max_lines=9)
    assert "".join(lines) == "W" * 20
    assert all(FONT.getlength(line) <= 60 for line in lines)


@pytest.mark.parametrize(
    ("caption", "drawn"),
    [
        ("", []),
        (" \t\n", []),
        ("two\nlines\x00and\ttabs", ["two lines and tabs"]),
        ("café — naïve", ["cafe - naive"]),
        ("日本 😀", ["?? ?"]),
        ("A dog , running .", ["A dog, running."]),
    ],
)
def test_captions_of_any_characters_are_drawable(caption, drawn):
    assert wrap_caption(caption, FONT, 300) == drawn
    image_grid(solid(RED), [caption], 1)


@pytest.mark.parametrize(
    ("images", "captions", "columns", "references"),
    [
        (solid(RED), ["a", "b"], 1, None),
        (solid(RED)[:0], [], 1, None),
        (solid(RED), ["a"], 0, None),
        (solid(RED), ["a"], 1, solid(RED, RED)),
        (solid(RED).astype(np.float32), ["a"], 1, None),
    ],
)
def test_arguments_that_do_not_fit_are_refused(images, captions, columns, references):
    with pytest.raises(ValueError, match=r"images|zip"):
        image_grid(images, captions, columns, reference_images=references)
