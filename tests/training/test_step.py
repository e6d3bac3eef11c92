"""The training step against separate gradients, and across devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmcgan.config import default_config
from xmcgan.mesh import batch_sharding, make_mesh, put, replicated
from xmcgan.models.discriminator import Discriminator
from xmcgan.models.generator import Generator
from xmcgan.training import step as steps
from xmcgan.training.state import Networks, create_state
from xmcgan.training.step import Captions, FrozenNetworks, make_train_step

B, T, D, SIZE = 8, 5, 6, 32


def _config():
    config = default_config()
    config.losses.image_pretrained.enabled = False
    return config


def _networks():
    adam = optax.adam(1e-3, b1=0.5, b2=0.999)
    return Networks(Generator(SIZE, 2, 4, 8), Discriminator(SIZE, 2, D, 8), adam, adam)


def _new_state(networks):
    """Draw a state with NumPy: compiling the initialisers would take longer than the tests."""
    create = partial(create_state, networks, max_tokens=T, word_dim=D, sentence_dim=D)
    shapes = jax.eval_shape(create, jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if leaf.dtype != jnp.float32:
            return np.zeros(leaf.shape, leaf.dtype)
        if "opt_state" in name:
            return np.zeros(leaf.shape, np.float32)
        values = rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return (np.abs(values) if "'var'" in name else values).astype(np.float32)

    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, shapes))


def _batch(d_steps=2):
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (d_steps, B, SIZE, SIZE, 3), dtype=np.uint8),
        "token_ids": rng.integers(0, 20, (d_steps, B, T)).astype(np.int32),
        "word_mask": np.broadcast_to(
            np.arange(T) < rng.integers(2, T + 1, (B, 1)), (d_steps, B, T)
        ),
    }


def _encode_text(table, token_ids, word_mask):
    words = table[token_ids]
    return words, jnp.mean(words, axis=1)


FROZEN = FrozenNetworks(_encode_text)
FROZEN_PARAMS = {
    "text": np.random.default_rng(1).normal(size=(20, D)).astype(np.float32),
    "image": None,
}


@pytest.fixture(scope="module")
def networks():
    return _networks()


@pytest.fixture(scope="module")
def state(networks):
    return _new_state(networks)


@pytest.fixture(scope="module")
def step_fn(networks):
    return jax.jit(make_train_step(networks, FROZEN, _config()))


@pytest.fixture(scope="module")
def stepped(step_fn, state):
    return step_fn(state, FROZEN_PARAMS, _batch())


def _part():
    batch = {name: jnp.asarray(value[0]) for name, value in _batch().items()}
    words, sentence = _encode_text(FROZEN_PARAMS["text"], batch["token_ids"], None)
    z = jax.random.normal(jax.random.key(3), (B, 4))
    return batch["image"] / 255, Captions(words, batch["word_mask"], sentence), z


def test_both_gradients_equal_those_of_each_loss_differentiated_alone(networks, state):
    real, captions, z = _part()
    config = _config()

    def encode(g_params, d_params):
        fake, _ = steps.generate(networks, g_params, state.g_batch_stats, captions, z)
        return steps.encode_pair(networks, d_params, state.d_vectors, real, fake, captions)[:2]

    def d_loss(d_params):
        return steps.discriminator_loss(*encode(state.g_params, d_params), captions, config)[0]

    def g_loss(g_params):
        return steps.generator_loss(*encode(g_params, state.d_params), captions, config, None)[0]

    @jax.jit
    def both():
        joint = steps.joint_gradients(state, real, captions, z, networks, config, None)
        return joint[:2], (jax.grad(d_loss)(state.d_params), jax.grad(g_loss)(state.g_params))

    joint, alone = both()
    for ours, expected in zip(joint, alone, strict=True):
        scale = float(optax.tree.norm(expected))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * scale), ours, expected)


def test_a_step_is_the_same_on_one_and_on_four_devices(networks, state):
    results = []
    for count in (1, 4):
        mesh = make_mesh(jax.devices()[:count])
        everywhere, shared = replicated(mesh), batch_sharding(mesh)
        step_fn = jax.jit(
            make_train_step(networks, FROZEN, _config()),
            in_shardings=(everywhere, everywhere, shared),
            out_shardings=everywhere,
        )
        placed = jax.device_put(jax.device_get(state), everywhere)
        params = jax.device_put(FROZEN_PARAMS, everywhere)
        results.append(jax.device_get(step_fn(placed, params, put(_batch(), shared))))
    (one, one_metrics), (four, four_metrics) = results
    for name, value in one_metrics.items():
        np.testing.assert_allclose(four_metrics[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    # Adam divides by the gradient's size, so that rounding in a tiny gradient shows: compare
    # its first moment, which is the gradient.
    for ours, expected in (
        (four.g_opt_state, one.g_opt_state),
        (four.d_opt_state, one.d_opt_state),
    ):
        scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[0].mu))
        close = partial(np.testing.assert_allclose, atol=1e-4 * scale)
        jax.tree.map(close, ours[0].mu, expected[0].mu)


def test_a_step_is_deterministic_and_the_next_one_draws_other_noise(step_fn, state, stepped):
    again = step_fn(state, FROZEN_PARAMS, _batch())
    jax.tree.map(np.testing.assert_array_equal, again, stepped)
    later = step_fn(state.replace(step=state.step + 1), FROZEN_PARAMS, _batch())
    assert float(later[1]["g_hinge_loss"]) != float(stepped[1]["g_hinge_loss"])


def test_every_part_but_the_last_updates_the_discriminator_alone(networks, state):
    real, captions, z = _part()
    after = jax.jit(lambda s: steps.discriminator_step(s, real, captions, z, networks, _config()))(
        state
    )
    same = ("g_params", "g_batch_stats", "g_opt_state", "ema_params", "ema_batch_stats", "step")
    for name in same:
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.d_params, state.d_params)
    assert all(jax.tree.leaves(changed))


def test_the_moving_average_follows_its_formula(state, stepped):
    new, _ = stepped  # at step 0 the warm-up's decay is 1 / 10

    def expected(old, now):
        return 0.1 * np.asarray(old) + 0.9 * np.asarray(now)

    for ema, start, now in (
        (new.ema_params, state.ema_params, new.g_params),
        (new.ema_batch_stats, state.ema_batch_stats, new.g_batch_stats),
    ):
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        jax.tree.map(close, ema, jax.tree.map(expected, start, now))


def test_every_leaf_of_the_state_moves(state, stepped):
    moved = jax.tree.map(
        lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), state, stepped[0]
    )
    unmoved = {
        jax.tree_util.keystr(path)
        for path, m in jax.tree_util.tree_leaves_with_path(moved)
        if not m
    }
    assert unmoved == {".rng"}  # a step's key is this one folded with the step's number


@pytest.mark.parametrize("name", ["hinge", "sentence", "word", "image_discriminator"])
def test_each_loss_counts_by_its_weight_and_can_be_switched_off(name):
    real, captions, _ = _part()
    keys = jax.random.split(jax.random.key(0), 3)
    real, fake = (
        steps.ImageEncoding(
            logits=jax.random.normal(key, (B,)),
            feature=jax.random.normal(key, (B, 7)),
            regions=jax.random.normal(key, (B, 9, D)),
            sentence=jax.random.normal(keys[2], (B, 7)),
        )
        for key in keys[:2]
    )

    def losses(change):
        config = _config()
        change(config.losses[name])
        d_loss, d_metrics = steps.discriminator_loss(real, fake, captions, config)
        g_loss, g_metrics = steps.generator_loss(real, fake, captions, config, None)
        return float(d_loss), float(g_loss), d_metrics | g_metrics

    d_full, g_full, metrics = losses(lambda loss: None)
    d_twice, g_twice, _ = losses(lambda loss: loss.update(weight=2.0))
    d_off, g_off, off_metrics = losses(lambda loss: loss.update(enabled=False))
    g_term = float(metrics[f"g_{name}_loss"])
    d_term = float(metrics.get(f"d_{name}_loss", 0.0))
    np.testing.assert_allclose((d_twice - d_full, g_twice - g_full), (d_term, g_term), rtol=1e-4)
    np.testing.assert_allclose((d_full - d_off, g_full - g_off), (d_term, g_term), rtol=1e-4)
    assert f"g_{name}_loss" not in off_metrics


def test_the_frozen_image_network_contrasts_real_with_generated_images(networks, state):
    real, captions, z = _part()
    config = _config()
    config.losses.image_pretrained.enabled = True

    def encode_image(images):
        return images.mean(axis=1).reshape(images.shape[0], -1)

    gradients = jax.jit(
        lambda: steps.joint_gradients(state, real, captions, z, networks, config, encode_image)
    )
    metrics = gradients()[-1]
    fake, _ = steps.generate(networks, state.g_params, state.g_batch_stats, captions, z)
    expected = steps.feature_contrast(encode_image(real), encode_image(fake), 0.1)
    np.testing.assert_allclose(metrics["g_image_pretrained_loss"], expected.loss, rtol=1e-4)
