"""Networks and optimizers of a config."""

import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.config import load_config, validate
from xmcgan.errors import ConfigError, WeightsError
from xmcgan.training.build import build_image_encoder, build_networks


@pytest.mark.parametrize("d_steps", [1, 2])
def test_learning_rates_fall_linearly_to_zero_over_the_last_share_of_the_run(d_steps):
    config = load_config("shapes:quickstart")
    config.learning_rate_decay, config.d_steps = 0.6, d_steps
    networks = build_networks(config, 8, num_steps=10)
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
    published = rf"[\s\S]*https://\S+/{network}-\w+\.pth[\s\S]*convert_weights\.py {network}"
    with pytest.raises(ConfigError, match=f"weights is empty{published}"):
        build_image_encoder(config)
    config.losses.image_pretrained.weights = "absent.safetensors"
    with pytest.raises(WeightsError, match=rf"absent\.safetensors{published}"):
        build_image_encoder(config)
