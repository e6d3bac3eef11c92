"""Resize and scaling of each protocol, against the program that it stands for, written literally.

PyTorch's resize is compared with values of PyTorch 2.14.1, in expected/fid_pytorch.npz.

Also which of them are flattered by training.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from xmcgan.config import default_config
from xmcgan.errors import EvaluationError
from xmcgan.evaluation.protocols import (
    PROTOCOLS,
    antialiased_matrix,
    apply_matrices,
    flattered_by,
    get_protocol,
    half_pixel_bilinear_matrix,
    preprocess,
    tf1_bilinear_matrix,
)

SIZES = [((5, 9), 7), ((128, 96), 299), ((320, 400), 299), ((64, 64), 64), ((17, 1), 4)]
EXPECTED = Path(__file__).parents[1] / "pretrained" / "expected"
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(height: int, width: int) -> np.ndarray:
    """Return pixels (h, w, 3) with the sharpest edges there are."""
    return np.random.default_rng(0).choice([0, 3, 128, 255], (height, width, 3)).astype(np.float32)


def gather_tf1(image: np.ndarray, size: int) -> np.ndarray:
    """Resize pixel by pixel, as the kernel of TensorFlow 1 does."""

    def place(index: int, size_in: int) -> tuple[int, int, np.float32]:
        at = np.float32(index) * (np.float32(size_in) / np.float32(size))
        low = int(np.floor(at))
        return low, min(low + 1, size_in - 1), at - np.float32(low)

    out = np.empty((size, size, image.shape[2]), np.float32)
    for i in range(size):
        top, bottom, dy = place(i, image.shape[0])
        for j in range(size):
            left, right, dx = place(j, image.shape[1])
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            out[i, j] = above + (below - above) * dy
    return out


def pillow_resize(image: np.ndarray, size: int, kernel: str) -> np.ndarray:
    """Resize each channel in Pillow's mode "F", as clean-fid does."""
    channels = [
        np.asarray(Image.fromarray(image[..., c], "F").resize((size, size), PILLOW[kernel]))
        for c in range(image.shape[2])
    ]
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_tf1_bilinear_is_the_gather_form(shape, size):
    image = noise(*shape)
    matrices = [tf1_bilinear_matrix(side, size) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image[None]), *matrices))[0]
    np.testing.assert_allclose(found, gather_tf1(image, size), rtol=0, atol=5e-5)


def test_tf1_bilinear_starts_at_the_first_pixel_and_repeats_the_last():
    row = np.array([0, 100], np.float32)
    np.testing.assert_array_equal(tf1_bilinear_matrix(2, 4) @ row, [0, 50, 100, 100])


@pytest.mark.parametrize(("size", "step"), [(299, 30), (24, 4)])
def test_half_pixel_bilinear_is_that_of_pytorch(size, step):
    image = noise(40, 31)
    matrices = [half_pixel_bilinear_matrix(side, size) for side in (40, 31)]
    found = np.asarray(apply_matrices(jnp.asarray(image[None]), *matrices))[0]
    expected = np.load(EXPECTED / "fid_pytorch.npz")[f"resized_{size}"]
    np.testing.assert_allclose(found[::step, ::step], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 64), (64, 40), (5, 9)])
def test_half_pixel_bilinear_upwards_is_the_antialiased_one(shape):
    # Where an image grows there is nothing to antialias, and both have half pixels.
    for side in shape:
        np.testing.assert_allclose(
            half_pixel_bilinear_matrix(side, 299), antialiased_matrix(side, 299), atol=1e-5
        )


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_antialiased_resize_is_that_of_pillow(shape, size, kernel):
    image = noise(*shape)
    matrices = [antialiased_matrix(side, size, kernel) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image[None]), *matrices))[0]
    np.testing.assert_allclose(found, pillow_resize(image, size, kernel), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("shape", "size"), SIZES)
def test_antialiased_resize_is_that_of_jax(shape, size, kernel):
    image = noise(*shape)[None]
    matrices = [antialiased_matrix(side, size, kernel) for side in shape]
    found = np.asarray(apply_matrices(jnp.asarray(image), *matrices))
    expected = jax.image.resize(image, (1, size, size, 3), kernel, precision="highest")
    # JAX makes its weights in float32, ours are made in float64: 1e-2 of 255 levels at 400 pixels.
    np.testing.assert_allclose(found, np.asarray(expected), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "matrix", [tf1_bilinear_matrix, half_pixel_bilinear_matrix, antialiased_matrix]
)
def test_a_flat_image_stays_flat(matrix):
    for size_in, size_out in ((3, 299), (500, 299), (1, 7), (7, 1)):
        np.testing.assert_allclose(matrix(size_in, size_out).sum(axis=1), 1, atol=1e-6)


def test_matrices_are_applied_at_highest_precision():
    matrix = antialiased_matrix(4, 6)
    jaxpr = jax.make_jaxpr(lambda x: apply_matrices(x, matrix, matrix))(jnp.zeros((1, 4, 4, 3)))
    products = [str(e) for e in jaxpr.jaxpr.eqns if "dot_general" in str(e)]
    assert len(products) == 2
    assert all("HIGHEST" in product for product in products)


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


@pytest.mark.parametrize("shape", SHAPES)
def test_fid_pytorch_is_pytorch_fid(shape):
    image = noise(*shape)
    rows, columns = (half_pixel_bilinear_matrix(side, 299).astype(np.float64) for side in shape)
    resized = np.einsum("ih,jw,hwc->ijc", rows, columns, image / 255, optimize=True)
    np.testing.assert_allclose(prepared("fid-pytorch", image), 2 * resized - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_pr_vgg16_gives_the_network_pixels_of_torch_fidelity_in_0_to_1(shape):
    image = noise(*shape)
    expected = gather_tf1(image, 224) / 255
    np.testing.assert_allclose(prepared("pr-vgg16", image), expected, rtol=0, atol=1e-6)


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
        ("fid-pytorch", -1, 1),
        ("fid-clean", -1, 127 / 128),
        ("fid-keras", -1, 1),
        ("fd-effnet-lite0", 0, 1),
        ("fd-effnet-lite2", 0, 1),
        ("pr-vgg16", 0, 1),
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


def config(*, image_loss: str = "", discriminator: str = "paper"):
    made = default_config()
    made.losses.image_pretrained.enabled = bool(image_loss)
    made.losses.image_pretrained.network = image_loss or "efficientnet_lite0"
    with made.unlocked():
        made.discriminator.type = discriminator
    return made


@pytest.mark.parametrize(
    ("made", "flattered"),
    [
        (config(), None),
        (config(image_loss="resnet50"), None),
        (config(image_loss="vgg19"), None),
        (config(image_loss="vgg16"), "pr-vgg16"),
        (config(image_loss="efficientnet_lite0"), "fd-effnet-lite0"),
        (config(discriminator="projected"), "fd-effnet-lite0"),
    ],
)
def test_only_the_networks_of_training_flatter(made, flattered):
    found = {name for name, protocol in PROTOCOLS.items() if flattered_by(made, protocol)}
    assert found == ({flattered} if flattered else set())


def test_a_config_that_has_no_type_of_discriminator_is_the_papers():
    made = default_config()
    with made.unlocked():
        if "type" in made.discriminator:
            del made.discriminator.type
    made.losses.image_pretrained.enabled = False
    assert flattered_by(made, get_protocol("fd-effnet-lite0")) == ""
