"""A network of twelve features in the place of a protocol's, for tests of what surrounds it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.evaluation import features
from xmcgan.evaluation.protocols import PROTOCOLS, FeatureNetwork
from xmcgan.pretrained.weights import FileIdentity
from xmcgan.shapes import alignment
from xmcgan.shapes.detector import Detector
from xmcgan.shapes.detector_training import ShapesDetector, TrainingRecipe

NUM_FEATURES = 12
SHA256 = "ab" * 32


def _apply(params, x):
    """Return the means of the four quarters, and their sum; NaN where all is black."""
    batch, half = len(x), x.shape[1] // 2
    quarters = x[:, : 2 * half, : 2 * half].reshape(batch, 2, half, 2, half, 3).mean(axis=(2, 4))
    values = quarters.reshape(batch, NUM_FEATURES) * params["scale"]
    values = jnp.where(x.max(axis=(1, 2, 3))[:, None] == 0, jnp.nan, values)
    return values, values.sum(axis=1, keepdims=True) * jnp.arange(3)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every protocol use the tiny network."""
    network = FeatureNetwork(_apply, {"scale": np.float32(2)}, FileIdentity(SHA256, True))
    monkeypatch.setattr(features, "load_network", lambda *_, **__: network)
    for name, protocol in list(PROTOCOLS.items()):
        tiny = dataclasses.replace(protocol, num_features=NUM_FEATURES)
        monkeypatch.setitem(PROTOCOLS, name, tiny)


def install_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let evaluations of `shapes` use a small detector that was never trained."""

    def open_detector(*_):
        recipe, area = TrainingRecipe(32, width=4), np.zeros((1, 24, 24, 3), np.float32)
        init = jax.jit(ShapesDetector(recipe.width).init)
        return Detector(recipe, init(jax.random.key(0), area)["params"])

    monkeypatch.setattr(alignment, "open_detector", open_detector)
