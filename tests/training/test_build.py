"""Networks and optimizers of a config."""

import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.config import load_config, validate
from xmcgan.errors import ConfigError, WeightsError
from xmcgan.training import build
from xmcgan.training.logging import image_network_line


@pytest.mark.parametrize("d_steps", [1, 2])
def test_learning_rates_fall_linearly_to_zero_over_the_last_share_of_the_run(d_steps):
    config = load_config("shapes:quickstart")
    config.learning_rate_decay, config.d_steps = 0.6, d_steps
    networks = build.build_networks(config, 8, num_steps=10)
    optimizers = {"generator": networks.g_optimizer, "discriminator": networks.d_optimizer}
    for name, optimizer in optimizers.items():
        params = jnp.zeros(())
        state, sizes = optimizer.init(params), []
        for _ in range(10 * (d_steps if name == "discriminator" else 1)):
            # Under a constant gradient Adam moves by the learning rate.
            update, state = optimizer.update(jnp.ones(()), state, params)
            sizes.append(-float(update) / config[name].learning_rate)
        done = np.arange(len(sizes)) / len(sizes)
        np.testing.assert_allclose(sizes, np.minimum(1, (1 - done) / 0.6), atol=1e-4)


def test_a_share_beyond_the_run_is_refused():
    config = load_config("shapes:quickstart")
    config.learning_rate_decay = 1.5
    with pytest.raises(ConfigError, match="learning_rate_decay"):
        validate(config)


@pytest.mark.parametrize("network", ["vgg16", "vgg19"])
def test_missing_weights_of_a_vgg_say_where_they_are_published(network):
    config = load_config("coco")
    config.losses.image_pretrained.network = network
    validate(config)
    published = rf"https://\S+/{network}-\w+\.pth[\s\S]*fetch_weights\.py {network} .*--accept"
    with pytest.raises(WeightsError, match=published):
        build.build_image_encoder(config)
    config.losses.image_pretrained.weights = "absent.safetensors"
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        build.build_image_encoder(config)


def test_efficientnet_stands_in_for_a_resnet_that_nobody_has_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("XMCGAN_WEIGHTS_DIR", str(tmp_path))
    config = load_config("coco")
    build.replace_missing_image_network(config)
    loss = config.losses.image_pretrained
    assert (loss.network, loss.feature) == ("efficientnet_lite0", "pooled")
    assert loss.in_place_of == "resnet50"
    validate(config)
    (line,) = image_network_line(config).values()
    assert "efficientnet_lite0 in place of resnet50" in line
    assert "fetch_weights.py resnet50" in line

    for changes in ({"weights": "mine"}, {"network": "vgg19"}, {"enabled": False}):
        own = load_config("coco")
        own.losses.image_pretrained.update(changes)
        before = own.to_dict()
        build.replace_missing_image_network(own)
        assert own.to_dict() == before
    (tmp_path / "resnet50").mkdir()
    (tmp_path / "resnet50" / "any.safetensors").write_bytes(b"")
    there = load_config("coco")
    build.replace_missing_image_network(there)
    assert there.losses.image_pretrained.network == "resnet50"
    assert not image_network_line(there)
