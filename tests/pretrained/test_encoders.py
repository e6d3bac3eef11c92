"""Frozen encoders of the user's own are found by dotted path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from xmcgan.errors import ConfigError
from xmcgan.pretrained.encoders import load_image_encoder, load_text_encoder

MODULE = """
import flax.linen as nn
import numpy as np
from xmcgan.pretrained.encoders import load_bert_encoder

class Mean(nn.Module):
    @nn.compact
    def __call__(self, images):
        mean = images.mean(axis=(1, 2))
        return mean, nn.Dense(5)(mean)

def image(path, *, dtype):
    return Mean(), {"Dense_0": {"kernel": np.ones((3, 5), dtype), "bias": np.zeros(5, dtype)}}

def text(path, *, sentence_pooling, dtype):
    return load_bert_encoder(path / "below", sentence_pooling=sentence_pooling, dtype=dtype)
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_encoders.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_image_network_and_text_encoder_of_the_users_own(tmp_path):
    images = np.full((2, 8, 8, 3), 0.25, np.float32)
    encoder = load_image_encoder("my_encoders:image", tmp_path, input_size=4)
    np.testing.assert_allclose(jax.jit(encoder.apply)(encoder.params, images), 0.25, rtol=1e-6)
    assert encoder.width == 3
    assert load_image_encoder("my_encoders:image", tmp_path, feature="logits").width == 5
    tiny.write_bert(tmp_path / "weights" / "below")
    text = load_text_encoder(tmp_path / "weights", "my_encoders:text", dtype=jnp.float32)
    assert text.width == tiny.WIDTH


@pytest.mark.parametrize("load", [load_image_encoder, load_text_encoder])
@pytest.mark.parametrize("kind", ["vgg", "my_absent_module:load"])
def test_unknown_kinds_are_named(load, kind, tmp_path):
    arguments = (kind, tmp_path) if load is load_image_encoder else (tmp_path, kind)
    with pytest.raises(ConfigError, match=kind.split(":")[0]):
        load(*arguments)
