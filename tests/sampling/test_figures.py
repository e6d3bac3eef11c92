"""Figures show the images they are given, with text that can be read."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from xmcgan.sampling.exploration import (
    WordAttention,
    attention_figure,
    image_strip,
    image_table,
    write_video,
)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def shown(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]


def test_a_table_shows_each_image_in_its_place_under_its_names():
    images = noise(2, 3, 8, 8, 3)
    figure = image_table(images, ["one", "two"], ["a", "b", "c"], title="all")
    for axis, image in zip(figure.axes, images.reshape(6, 8, 8, 3), strict=True):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["a", "b", "c"]
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["one", "two"]


def test_a_strip_says_how_far_each_image_has_come():
    figure = image_strip(noise(5, 8, 8, 3), "red", "blue")
    assert [axis.get_title() for axis in figure.axes] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert "red" in figure.get_suptitle()
    assert "blue" in figure.get_suptitle()


@pytest.mark.parametrize("num_words", [2, 4, 5, 17])
def test_attention_has_a_panel_a_word_on_one_scale(num_words):
    maps = np.random.default_rng(0).dirichlet(np.ones(num_words), (4, 4)).transpose(2, 0, 1)
    words = [f"word{number}" for number in range(num_words)]
    image = noise(8, 8, 3)
    figure = attention_figure(WordAttention(image, words, maps), "a caption")
    first, *panels = [axis for axis in figure.axes if axis.get_visible() and axis.get_title()]
    np.testing.assert_array_equal(first.images[0].get_array(), image)
    assert [axis.get_title().split("\n")[0] for axis in panels] == words
    for axis, shares in zip(panels, maps, strict=True):
        heat = axis.images[1]
        np.testing.assert_array_equal(heat.get_array(), shares)
        assert heat.get_clim() == (0, maps.max())
        assert heat.get_extent() == axis.images[0].get_extent()


def test_text_is_large_enough_to_read_and_inside_the_figure():
    long = "a small purple triangle to the left of a large yellow star on a gray background"
    columns = [f"noise {i}" for i in range(4)]
    table = image_table(noise(3, 4, 8, 8, 3), [long] * 3, columns, title=3 * long)
    words = WordAttention(noise(8, 8, 3), long.split(), np.full((16, 4, 4), 1 / 16))
    for figure in (table, attention_figure(words, 3 * long)):
        figure.draw_without_rendering()
        for text in texts(figure):
            assert text.get_fontsize() >= 9
            box = text.get_window_extent()
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= figure.bbox.width
            assert box.y1 <= figure.bbox.height


def test_a_gif_runs_forth_and_back_in_the_order_of_the_images(tmp_path):
    levels = [0, 80, 160, 240]
    images = np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])
    path = write_video(tmp_path / "new" / "way.gif", images, seconds=2)
    gif = Image.open(path)
    assert gif.size == (256, 256)
    assert gif.info["loop"] == 0
    assert gif.info["duration"] == 500
    seen = []
    for frame in range(gif.n_frames):
        gif.seek(frame)
        seen.append(gif.convert("RGB").getpixel((100, 100))[0])
    assert seen == [0, 80, 160, 240, 160, 80]
