"""The training step against separate gradients, and across devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmcgan.config import default_config
from xmcgan.losses.contrastive import feature_contrast
from xmcgan.models.discriminator import Discriminator, ImageEncoding
from xmcgan.models.generator import Generator
from xmcgan.models.spectral_norm import spectral_normalize
from xmcgan.training import step as steps
from xmcgan.training.objectives import Captions, discriminator_loss, generator_loss
from xmcgan.training.state import Networks, create_state
from xmcgan.training.step import Examples, FrozenNetworks, make_train_step
from xmcgan.utils.mesh import batch_sharding, make_mesh, put, replicated

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
    return Examples(batch["image"] / 255, Captions(words, batch["word_mask"], sentence), z)


def _one_part(examples):
    return jax.tree.map(lambda x: x[None], examples)


def test_both_gradients_equal_those_of_each_loss_differentiated_alone(networks, state):
    examples = _part()
    captions = examples.captions
    config = _config()

    def encode(g_params, d_params):
        fake, _ = steps.generate(networks, g_params, state.g_batch_stats, captions, examples.z)
        normalized, _ = spectral_normalize(d_params, state.d_vectors)
        return steps.encode_pair(networks, normalized, examples, fake, config)[:2]

    def d_loss(d_params):
        return discriminator_loss(*encode(state.g_params, d_params), captions, config)[0]

    def g_loss(g_params):
        return generator_loss(*encode(g_params, state.d_params), captions, config, None)[0]

    @jax.jit
    def both():
        joint = steps.joint_gradients(state, _one_part(examples), networks, config, None)
        return joint[:2], (jax.grad(d_loss)(state.d_params), jax.grad(g_loss)(state.g_params))

    joint, alone = both()
    for ours, expected in zip(joint, alone, strict=True):
        scale = float(optax.tree.norm(expected))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * scale), ours, expected)


@pytest.mark.mesh
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
    examples = _one_part(_part())
    step_fn = jax.jit(lambda s: steps.discriminator_step(s, examples, networks, _config()))
    after, _ = step_fn(state)
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


@pytest.mark.parametrize("part", [0, 1])
def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted(
    step_fn, state, stepped, part
):
    batch = _batch()
    batch["token_ids"][part, 3, 0] = 19
    table = FROZEN_PARAMS["text"].copy()
    table[19] = np.nan  # one caption of one update
    # No other caption may hold it.
    others = batch["token_ids"] == 19
    others[part, 3, 0] = False
    batch["token_ids"][others] = 0
    new, metrics = step_fn(state, {"text": table, "image": None}, batch)
    assert float(metrics["skipped_updates"]) == 1
    assert int(new.step) == int(state.step) + 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(new)))
    skipped = jax.tree.map(lambda a, b: bool((a == b).all()), new.g_params, state.g_params)
    assert all(jax.tree.leaves(skipped)) == (part == 1)
    assert float(stepped[1]["skipped_updates"]) == 0


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
    captions = _part().captions
    keys = jax.random.split(jax.random.key(0), 3)
    real, fake = (
        ImageEncoding(
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
        d_loss, d_metrics = discriminator_loss(real, fake, captions, config)
        g_loss, g_metrics = generator_loss(real, fake, captions, config, None)
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
    examples = _part()
    config = _config()
    config.losses.image_pretrained.enabled = True

    def encode_image(images):
        return images.mean(axis=1).reshape(images.shape[0], -1)

    gradients = jax.jit(
        lambda: steps.joint_gradients(state, _one_part(examples), networks, config, encode_image)
    )
    metrics = gradients()[-1]
    fake, _ = steps.generate(networks, state.g_params, state.g_batch_stats, *examples[1:3])
    expected = feature_contrast(encode_image(examples.real), encode_image(fake), 0.1)
    np.testing.assert_allclose(metrics["g_image_pretrained_loss"], expected.loss, rtol=1e-4)


@pytest.fixture(scope="module")
def grouped_networks():
    adam = optax.adam(1e-3, b1=0.5, b2=0.999)
    generator = Generator(SIZE, 2, 4, 8, batch_norm_group_size=B // 4)
    return Networks(generator, Discriminator(SIZE, 2, D, 8), adam, adam)


def _gradients(networks, state, num_parts):
    """Return everything that the joint step computes, from a batch in so many parts."""
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), _part())
    config = _config()
    config.losses.image_pretrained.enabled = True

    def encode_image(images):
        return images.mean(axis=1).reshape(images.shape[0], -1)

    def both(state):
        after, _ = steps.discriminator_step(state, parts, networks, config)
        return steps.joint_gradients(
            state, parts, networks, config, encode_image
        ), after.d_opt_state

    (d_grads, g_grads, *rest), d_opt_state = jax.jit(both)(state)
    # The first moment is the gradient: what Adam makes of it would blow up its rounding.
    return {"d": d_grads, "g": g_grads, "rest": rest, "d_only": d_opt_state[0].mu}


@pytest.fixture(scope="module")
def whole(grouped_networks, state):
    return _gradients(grouped_networks, state, 1)


def test_parts_and_recomputed_blocks_equal_the_step_with_batch_norm_groups_of_their_size(
    grouped_networks, state, whole
):
    recomputed = Networks(
        grouped_networks.generator.clone(remat=True),
        grouped_networks.discriminator.clone(remat=True),
        grouped_networks.g_optimizer,
        grouped_networks.d_optimizer,
    )
    in_parts = _gradients(recomputed, state, 4)
    for name, tree in whole.items():
        scale = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))
        close = partial(np.testing.assert_allclose, atol=1e-5 * scale, rtol=1e-5, err_msg=name)
        jax.tree.map(close, in_parts[name], tree)


def test_noise_does_not_depend_on_the_number_of_parts():
    batch = {name: value[0] for name, value in _batch().items()}
    noise = []
    for num_parts in (1, 4):
        parts = {n: x.reshape(num_parts, -1, *x.shape[1:]) for n, x in batch.items()}
        encode = partial(_encode_text, jnp.asarray(FROZEN_PARAMS["text"]))
        examples = steps.make_examples(parts, jax.random.key(5), encode, 4)
        noise.append(np.asarray(examples.z).reshape(B, 4))
    np.testing.assert_array_equal(*noise)
