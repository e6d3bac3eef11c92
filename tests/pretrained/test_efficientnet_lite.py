"""EfficientNet-Lite0 gives the published network's values, and useful gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_writer import Tensor, save_legacy

from xmcgan.errors import WeightsError
from xmcgan.pretrained.efficientnet_lite import load_efficientnet_lite0
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
    with pytest.raises(WeightsError, match=r"missing: _fc\.weight.*conv1\.weight"):
        load_efficientnet_lite0(save_legacy(tmp_path / "a.pth", state))


def test_unknown_options_are_refused(efficientnet_dir):
    with pytest.raises(ValueError, match="kind"):
        load_image_encoder("vgg", efficientnet_dir)
    with pytest.raises(ValueError, match="feature"):
        load_image_encoder("efficientnet_lite0", efficientnet_dir, feature="maps")
