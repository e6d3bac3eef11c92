"""The projected discriminator: what it returns, what it trains, and that no mode changes it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmcgan.config import default_config, validate
from xmcgan.errors import ConfigError, WeightsError
from xmcgan.losses import build_losses
from xmcgan.models.generator import Generator
from xmcgan.models.projected import ProjectedDiscriminator
from xmcgan.training.build import build_networks, load_discriminator_trunk
from xmcgan.training.state import Networks, create_state
from xmcgan.training.step import FrozenNetworks, make_train_step
from xmcgan.utils.mesh import batch_sharding, make_mesh, replicated

B, T, D, SIZE = 8, 5, 6, 32


class TinyTrunk(nn.Module):
    """Maps at strides 4, 8, 16 and 32, as the real trunk has, at once compiled."""

    @nn.compact
    def __call__(self, images):
        x, maps = nn.Conv(4, (4, 4), 4, name="stem")(images), []
        for index in range(4):
            maps.append(jnp.tanh(x))
            x = nn.Conv(4, (2, 2), 2, name=f"block_{index}")(x)
        return tuple(maps)


def _networks(**fields):
    discriminator = ProjectedDiscriminator(TinyTrunk(), 64, 1, D, 8, **fields)
    generator = Generator(SIZE, 2, 4, 8, batch_norm_group_size=2)
    return Networks(generator, discriminator, optax.adam(1e-3), optax.adam(1e-3))


@pytest.fixture(scope="module")
def trunk():
    return {"trunk": TinyTrunk().init(jax.random.key(1), jnp.zeros((1, 64, 64, 3)))["params"]}


@pytest.fixture(scope="module")
def state():
    create = partial(create_state, _networks(), max_tokens=T, word_dim=D, sentence_dim=D)
    return jax.jit(create)(jax.random.key(0))


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    return rng.random((B, SIZE, SIZE, 3), np.float32), rng.normal(size=(B, D)).astype(np.float32)


def test_no_parameter_of_the_trunk_is_in_the_state(state):
    names = {str(path[0].key) for path, _ in jax.tree_util.tree_leaves_with_path(state.d_params)}
    assert "trunk" not in names
    assert {"regions", "sentence_0", "logit_4", "pixels"} <= names


def test_an_image_is_encoded_alike_in_any_batch(state, trunk, pair):
    encode = jax.jit(_networks().discriminate)
    images, sentence = pair
    params = state.d_params | trunk
    whole, part = encode(params, *pair), encode(params, images[2:4], sentence[2:4])
    for name, value in whole._asdict().items():
        np.testing.assert_allclose(value[2:4], getattr(part, name), atol=1e-4, err_msg=name)
    assert whole.logits.shape[0] == B
    assert whole.regions.shape == (B, 64, D)
    assert whole.feature.shape == whole.sentence.shape


def test_frozen_features_and_pixels_both_reach_the_logits(state, trunk, pair):
    def logits(images, trunk):
        return _networks().discriminate(state.d_params | trunk, images, pair[1]).logits

    silent = jax.tree.map(jnp.zeros_like, trunk)
    by_pixels = jax.grad(lambda x: logits(x, silent).sum())(pair[0])
    by_both = jax.grad(lambda x: logits(x, trunk).sum())(pair[0])
    assert np.abs(by_pixels).max() > 0
    assert np.abs(by_both - by_pixels).max() > 0


def _encode_text(table, token_ids, word_mask):
    return table[token_ids], table[token_ids].mean(axis=1)


def _step(state, trunk, num_parts, mesh=None, **fields):
    config = default_config()
    config.losses.image_pretrained.enabled = False
    config.num_microbatches, config.discriminator.augment = num_parts, "color,translation,cutout"
    rng = np.random.default_rng(0)
    if num_parts > 1:
        config.batch_norm_group_size = B // num_parts
    shape = (2, B)
    batch = {
        "image": rng.integers(0, 256, (*shape, SIZE, SIZE, 3), dtype=np.uint8),
        "token_ids": rng.integers(0, 20, (*shape, T)).astype(np.int32),
        "word_mask": np.ones((*shape, T), bool),
    }
    table = rng.normal(size=(20, D)).astype(np.float32)
    step = make_train_step(
        _networks(**fields), FrozenNetworks(_encode_text), build_losses(config), config
    )
    places = (replicated(mesh), replicated(mesh), batch_sharding(mesh)) if mesh else None
    jitted = jax.jit(step, in_shardings=places) if mesh else jax.jit(step)
    return jitted(state, {"text": table, "image": None, "discriminator": trunk}, batch)


@pytest.fixture(scope="module")
def stepped(state, trunk):
    return _step(state, trunk, 1)


def _assert_same_losses(metrics, expected):
    for name in (n for n in expected if n.endswith("_loss")):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-4, err_msg=name)


def test_parts_and_recomputed_blocks_change_no_loss(state, trunk, stepped):
    _assert_same_losses(_step(state, trunk, 4, remat="blocks")[1], stepped[1])


@pytest.mark.mesh
def test_devices_change_no_loss(state, trunk, stepped):
    _assert_same_losses(_step(state, trunk, 1, make_mesh(jax.devices()[:4]))[1], stepped[1])


def test_bfloat16_changes_losses_little(state, trunk, stepped):
    _, metrics = _step(state, trunk, 1, dtype=jnp.bfloat16)
    for name in ("d_loss", "g_loss"):
        np.testing.assert_allclose(metrics[name], stepped[1][name], rtol=0.05)


def _config(**fields):
    config = default_config()
    config.discriminator.type = "projected"
    config.image_size = 64
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_every_image_size_is_encoded(size):
    config = _config(image_size=size, region_size=size // 4 if size < 128 else 16)
    validate(config)
    create = partial(
        create_state, build_networks(config, D), max_tokens=T, word_dim=D, sentence_dim=D
    )
    shapes = jax.eval_shape(create, jax.random.key(0)).d_params
    assert shapes["regions"]["kernel"].shape[-1] == D


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"discriminator__type": "projecte"}, "discriminator.type"),
        ({"discriminator__augment": "colour"}, "discriminator.augment"),
        ({"discriminator__trunk_size": 80}, "discriminator.trunk_size"),
        ({"discriminator__trunk_size": 1024, "region_size": 8}, "region_size"),
    ],
)
def test_what_cannot_work_is_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        validate(_config(**fields))


def test_missing_weights_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("XMCGAN_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match=r"fetch_weights\.py efficientnet_lite0"):
        load_discriminator_trunk(_config())


def test_features_with_places_tell_where_an_object_is(trunk):
    def distance(places: bool) -> float:
        """Distance of one object in two corners, relative to the features themselves."""
        network = ProjectedDiscriminator(TinyTrunk(), 64, 1, D, 8, places=places)
        images = np.full((2, SIZE, SIZE, 3), 0.5, np.float32)
        images[0, 2:10, 2:10], images[1, -10:-2, -10:-2] = 1, 1
        sentence = jnp.zeros((2, D))
        params = network.init(jax.random.key(0), images, sentence)["params"] | trunk
        first, second = network.apply({"params": params}, images, sentence).feature
        return float(jnp.linalg.norm(first - second) / jnp.linalg.norm(first))

    assert distance(True) > 2 * distance(False)
