"""Networks and optimizers of a config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmcgan.config import (
    apply_override,
    fingerprint,
    load_config,
    read_config,
    save_config,
    validate,
)
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


def _configured(*overrides):
    config = load_config("shapes:quickstart")
    for override in overrides:
        apply_override(config, override)
    return config


@pytest.mark.parametrize(
    ("fields", "schedule"),
    [
        (("cosine_decay_schedule",), optax.cosine_decay_schedule(1.0, 10)),
        (("linear_schedule", "end_value=0.5"), optax.linear_schedule(1.0, 0.5, 10)),
        (
            ("warmup_cosine_decay_schedule", "warmup_steps=4", "decay_steps=8"),
            optax.warmup_cosine_decay_schedule(0.0, 1.0, 4, 8),
        ),
        (
            ("piecewise_constant_schedule", "boundaries_and_scales={'3': 0.5}"),
            optax.piecewise_constant_schedule(1.0, {3: 0.5}),
        ),
    ],
)
def test_a_schedule_of_optax_scales_both_rates_by_the_step_of_training(fields, schedule):
    name, *rest = fields
    overrides = [f"schedule.type={name}", *(f"schedule.{field}" for field in rest), "d_steps=2"]
    config = _configured(*overrides)
    networks = build.build_networks(config, 8, num_steps=10)
    optimizers = {"generator": networks.g_optimizer, "discriminator": networks.d_optimizer}
    for network, optimizer in optimizers.items():
        params, updates_per_step = jnp.zeros(()), 1 + (network == "discriminator")
        state = optimizer.init(params)
        for update_number in range(10 * updates_per_step):
            update, state = optimizer.update(jnp.ones(()), state, params)
            rate = schedule(update_number // updates_per_step) * config[network].learning_rate
            np.testing.assert_allclose(-float(update), rate, rtol=1e-4, atol=1e-9)


def test_gradients_are_clipped_before_adam_sees_them():
    config = _configured("clip.type=clip_by_global_norm", "clip.max_norm=1.0")
    optimizer = build.build_networks(config, 8, num_steps=10).g_optimizer
    params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    large = jax.tree.map(lambda x: x + 50.0, params)
    _, clipped = optimizer.update(large, optimizer.init(params), params)
    moments = [x for x in jax.tree.leaves(clipped) if x.shape]
    norm = np.sqrt(sum(float((m**2).sum()) for m in moments[:2]))
    assert norm == pytest.approx(1 - config.adam.b1, rel=1e-4)


def test_a_run_without_schedule_and_clipping_has_the_state_and_record_that_it_had(tmp_path):
    plain = load_config("shapes:quickstart")
    assert not [name for name in fingerprint(plain) if name.startswith(("schedule", "clip"))]
    optimizer = build.build_networks(plain, 8, num_steps=10).g_optimizer
    params = jnp.zeros(())
    before = optax.adam(plain.generator.learning_rate, **plain.adam).init(params)
    assert jax.tree.structure(optimizer.init(params)) == jax.tree.structure(before)
    other = _configured("schedule.type=cosine_decay_schedule", "schedule.alpha=0.1")
    save_config(other, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json").to_dict() == other.to_dict()
    assert fingerprint(other).keys() - fingerprint(plain).keys() == {
        "schedule.type", "schedule.alpha",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.type=cosine_decay"], "cosine_decay_schedule"),
        (["schedule.type=_schedule"], "is none of optax"),
        (["schedule.type=exponential_decay"], "lacks decay_rate"),
        (["schedule.type=cosine_decay_schedule", "schedule.alfa=1"], "has no alfa"),
        (["schedule.type=cosine_decay_schedule", "schedule.decay_steps=-1"], "schedule: cosine"),
        (["clip.type=clip_by_norm"], "clip_by_global_norm"),
        (["clip.type=clip_by_global_norm"], "lacks max_norm"),
    ],
)
def test_what_optax_does_not_have_is_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build.build_networks(_configured(*overrides), 8, num_steps=10)


def test_fields_of_a_schedule_follow_its_type_and_exclude_the_other_decay():
    with pytest.raises(ConfigError, match=r"schedule\.decay_steps"):
        _configured("schedule.decay_steps=4")
    both = _configured("schedule.type=cosine_decay_schedule", "learning_rate_decay=0.5")
    with pytest.raises(ConfigError, match="learning_rate_decay"):
        validate(both)


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
