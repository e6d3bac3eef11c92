"""Each protocol's resize and scaling, against the program that it stands for, written literally."""

import jax
import numpy as np
import pytest
from test_resize import gather_tf1, noise, pillow_resize

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.protocols import PROTOCOLS, get_protocol, preprocess

SHAPES = [(40, 31), (330, 310)]


def prepared(name: str, image: np.ndarray) -> np.ndarray:
    protocol = get_protocol(name)
    found = jax.jit(lambda x: preprocess(protocol, x))(image[None].astype(np.uint8))
    assert found.shape == (1, protocol.input_size, protocol.input_size, 3)
    return np.asarray(found)[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_2015_is_the_graph_of_ttur(shape):
    image = noise(*shape)
    expected = (gather_tf1(image, 299) - 128) / 128
    np.testing.assert_allclose(prepared("fid-2015", image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_clean_is_pillow_in_float_and_clipped(shape):
    image = noise(*shape)
    resized = pillow_resize(image, 299, "bicubic")
    if shape == SHAPES[0]:
        assert resized.max() > 260, "the clip matters"
        assert resized.min() < -5, "the clip matters"
    expected = (np.clip(resized, 0, 255) - 128) / 128
    np.testing.assert_allclose(prepared("fid-clean", image), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_keras_is_the_official_xmc_gan_code(shape):
    image = noise(*shape)
    resized = jax.image.resize(image / 255, (299, 299, 3), "bilinear", precision="highest")
    expected = np.clip(2 * np.asarray(resized) - 1, -1, 1)
    np.testing.assert_allclose(prepared("fid-keras", image), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("name", "size"), [("fd-effnet-lite0", 224), ("fd-effnet-lite2", 160)])
@pytest.mark.parametrize("shape", SHAPES)
def test_fd_effnet_gives_the_network_pixels_of_pillow_in_0_to_1(name, size, shape):
    image = noise(*shape)
    expected = np.clip(pillow_resize(image, size, "bicubic"), 0, 255) / 255
    np.testing.assert_allclose(prepared(name, image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "black", "white"),
    [
        ("fid-2015", -1, 127 / 128),
        ("fid-clean", -1, 127 / 128),
        ("fid-keras", -1, 1),
        ("fd-effnet-lite0", 0, 1),
        ("fd-effnet-lite2", 0, 1),
    ],
)
def test_black_and_white_are_scaled_to_what_the_network_was_trained_on(name, black, white):
    for level, expected in ((0, black), (255, white)):
        found = prepared(name, np.full((9, 9, 3), level))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_only_inception_features_are_called_fid():
    for protocol in PROTOCOLS.values():
        is_inception = protocol.network.startswith("inception")
        assert (protocol.label == "FID") == is_inception
        assert protocol.name.startswith("fid-") == is_inception
        assert (protocol.num_features == 2048) == is_inception


def test_an_unknown_protocol_is_an_error_with_a_hint():
    with pytest.raises(EvaluationError, match=r"'fid-2016'.*did you mean 'fid-2015'"):
        get_protocol("fid-2016")
