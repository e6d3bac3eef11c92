"""The training step against separate gradients, and across devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmcgan.config import default_config
from xmcgan.errors import ConfigError
from xmcgan.losses import build_losses, weighted_sum
from xmcgan.losses.context import Context, Features
from xmcgan.losses.contrastive import feature_contrast
from xmcgan.models.discriminator import Discriminator
from xmcgan.models.generator import Generator
from xmcgan.models.outputs import Captions, DiscriminatorOutput
from xmcgan.models.spectral_norm import spectral_normalize
from xmcgan.training import microbatching
from xmcgan.training import step as steps
from xmcgan.training.state import Networks, create_state
from xmcgan.training.step import FrozenNetworks, Inputs, Model, make_train_step
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
    """Draw a state with NumPy: compiling the initializers would take longer than the tests."""
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
    return jax.jit(_train_step(networks))


@pytest.fixture(scope="module")
def stepped(step_fn, state):
    return step_fn(state, FROZEN_PARAMS, _batch())


def _train_step(networks, config=None):
    config = config or _config()
    return make_train_step(networks, FROZEN, build_losses(config), config)


def _model(networks, config=None, encode_image=None):
    config = config or _config()
    frozen = FrozenNetworks(_encode_text, encode_image)
    return Model(networks, frozen, FROZEN_PARAMS, build_losses(config), config)


def _inputs():
    batch = {name: jnp.asarray(value[0]) for name, value in _batch().items()}
    words, sentence = _encode_text(FROZEN_PARAMS["text"], batch["token_ids"], None)
    z = jax.random.normal(jax.random.key(3), (B, 4))
    return Inputs(batch["image"] / 255, Captions(words, batch["word_mask"], sentence), z)


def test_both_gradients_equal_those_of_each_loss_differentiated_alone(networks, state):
    inputs, model = _inputs(), _model(networks)

    def loss(side, g_params, d_params):
        fake, _ = networks.generate(g_params, state.g_batch_stats, inputs.captions, inputs.z)
        normalized, _ = spectral_normalize(d_params, state.d_vectors)
        features = [
            model.features(normalized, inputs, images, kind)
            for images, kind in ((inputs.real, "real"), (fake, "fake"))
        ]
        return weighted_sum(model.losses, side, Context(inputs.captions, *features))[0]

    @jax.jit
    def both():
        joint = steps.joint_gradients(model, state, inputs)
        d_only, _ = steps.discriminator_gradients(model, state, inputs)
        d_alone = jax.grad(partial(loss, "discriminator", state.g_params))(state.d_params)
        g_alone = jax.grad(lambda p: loss("generator", p, state.d_params))(state.g_params)
        return (joint.d_grads, d_only, joint.g_grads), (d_alone, d_alone, g_alone)

    joint, alone = both()
    for ours, expected in zip(joint, alone, strict=True):
        scale = float(optax.tree.norm(expected))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * scale), ours, expected)


class PixelLoss:
    """A loss of pixels and of the discriminator's gradient by them, on both sides."""

    needs_images = True

    def __init__(self, gamma=1.0):
        self.gamma = gamma

    def discriminator(self, context):
        grads = jax.grad(lambda x: context.discriminate(x).logits.sum())(context.real_images)
        return self.gamma * jnp.mean(grads**2), {}

    def generator(self, context):
        return self.gamma * jnp.mean(jnp.abs(context.real_images - context.fake_images)), {}


def test_a_loss_of_a_module_outside_the_package_sees_pixels_and_the_discriminator(networks, state):
    config = _config()
    with config.unlocked():
        config.losses.pixels = {"type": "test_step:PixelLoss", "gamma": 2.0, "weight": 3.0}
    inputs = _inputs()
    models = [_model(networks, c) for c in (_config(), config)]
    off, on = jax.jit(lambda: [steps.joint_gradients(model, state, inputs) for model in models])()

    def pixel_loss(g_params):
        fake, _ = networks.generate(g_params, state.g_batch_stats, inputs.captions, inputs.z)
        return 6.0 * jnp.mean(jnp.abs(inputs.real - fake))

    def penalty(d_params):
        normalized, _ = spectral_normalize(d_params, state.d_vectors)
        grads = jax.grad(
            lambda x: networks.discriminate(normalized, x, inputs.captions.sentence).logits.sum()
        )(inputs.real)
        return 6.0 * jnp.mean(grads**2)

    for name, expected in (
        ("g_grads", jax.jit(jax.grad(pixel_loss))(state.g_params)),
        ("d_grads", jax.jit(jax.grad(penalty))(state.d_params)),
    ):
        change = jax.tree.map(jnp.subtract, getattr(on, name), getattr(off, name))
        scale = float(optax.tree.norm(getattr(off, name)))
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * scale), change, expected)
    config.num_microbatches = 2
    with pytest.raises(ConfigError, match="pixels"):
        build_losses(config)


def test_the_diversity_loss_pushes_two_images_of_a_caption_apart(networks, state):
    config, inputs = _config(), _inputs()
    with config.unlocked():
        config.losses.diversity = {"bound": 0.5, "weight": 3.0}
    other_z = jax.random.normal(jax.random.key(4), inputs.z.shape)
    plain, diverse = _model(networks), _model(networks, config)

    def distance(g_params):
        captions, stats = inputs.captions, state.g_batch_stats
        pair = [networks.generate(g_params, stats, captions, z)[0] for z in (inputs.z, other_z)]
        return jnp.abs(pair[0] - pair[1]).mean(axis=(1, 2, 3))

    @jax.jit
    def gradients():
        off = steps.joint_gradients(plain, state, inputs)
        on = steps.joint_gradients(diverse, state, inputs._replace(other_z=other_z))
        expected = jax.grad(lambda p: -3.0 * distance(p).mean() / 0.5)(state.g_params)
        return off.g_grads, on.g_grads, expected, on.metrics, distance(state.g_params)

    off, on, expected, metrics, distances = gradients()
    assert 0 < distances.max() < 0.5
    np.testing.assert_allclose(metrics["g_diversity_loss"], 1 - distances.mean() / 0.5, rtol=1e-5)
    scale = float(optax.tree.norm(off))
    change = jax.tree.map(jnp.subtract, on, off)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5 * scale), change, expected)
    drawn = diverse.inputs({k: v[0] for k, v in _batch().items()}, jax.random.key(0))
    assert np.any(drawn.other_z != drawn.z)
    config.num_microbatches = 2
    with pytest.raises(ConfigError, match="diversity"):
        build_losses(config)


@pytest.mark.parametrize("fields", [{"type": "no_module:A"}, {"type": "hinj"}, {"gama": 1.0}])
def test_a_loss_that_cannot_be_built_is_named(fields):
    config = _config()
    with config.unlocked():
        config.losses.mine = {"type": "test_step:PixelLoss"} | fields
    with pytest.raises(
        ConfigError, match=next(iter(fields.values())) if "type" in fields else "gama"
    ):
        build_losses(config)


@pytest.mark.mesh
def test_a_step_is_the_same_on_one_and_on_four_devices(networks, state):
    results = []
    for count in (1, 4):
        mesh = make_mesh(jax.devices()[:count])
        everywhere, shared = replicated(mesh), batch_sharding(mesh)
        step_fn = jax.jit(
            _train_step(networks),
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


def test_every_update_but_the_last_trains_the_discriminator_alone(step_fn, state, stepped):
    # The joint update of the second part starts from a discriminator that the first has changed.
    without_first = step_fn(state, FROZEN_PARAMS, jax.tree.map(lambda x: x[1:], _batch()))[0]
    d_counts = [s.d_opt_state[0].count for s in (stepped[0], without_first)]
    g_counts = [s.g_opt_state[0].count for s in (stepped[0], without_first)]
    assert (d_counts, g_counts) == ([2, 1], [1, 1])
    assert int(stepped[0].step) == int(without_first.step) == int(state.step) + 1


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


def test_the_forms_of_a_gpu_give_the_same_step(networks, state, stepped, monkeypatch):
    def as_on_a_gpu(*args, cuda=None, default=None, **others):
        return (cuda or default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_gpu)
    step_fn = jax.jit(_train_step(networks))
    new, metrics = step_fn(state, FROZEN_PARAMS, _batch())
    np.testing.assert_allclose(metrics["g_loss"], stepped[1]["g_loss"], rtol=1e-4)
    for ours, expected in (
        (new.g_opt_state, stepped[0].g_opt_state),
        (new.d_opt_state, stepped[0].d_opt_state),
    ):
        assert ours[0].count == expected[0].count
        scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[0].mu))
        close = partial(np.testing.assert_allclose, atol=1e-4 * scale)
        jax.tree.map(close, ours[0].mu, expected[0].mu)
    skipped, _ = step_fn(state, FROZEN_PARAMS | {"text": FROZEN_PARAMS["text"] * np.nan}, _batch())
    jax.tree.map(np.testing.assert_array_equal, skipped.replace(step=state.step), state)


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
    keys = jax.random.split(jax.random.key(0), 3)
    sides = (
        Features(
            DiscriminatorOutput(
                logits=jax.random.normal(key, (B,)),
                feature=jax.random.normal(key, (B, 7)),
                regions=jax.random.normal(key, (B, 9, D)),
                sentence=jax.random.normal(keys[2], (B, 7)),
            )
        )
        for key in keys[:2]
    )
    context = Context(_inputs().captions, *sides)

    def losses(change):
        config = _config()
        change(config.losses[name])
        built = build_losses(config)
        d_loss, d_metrics = weighted_sum(built, "discriminator", context)
        g_loss, g_metrics = weighted_sum(built, "generator", context)
        return float(d_loss), float(g_loss), d_metrics | g_metrics

    d_full, g_full, metrics = losses(lambda loss: None)
    d_twice, g_twice, _ = losses(lambda loss: loss.update(weight=2.0))
    d_off, g_off, off_metrics = losses(lambda loss: loss.update(enabled=False))
    g_term = float(metrics[f"g_{name}_loss"])
    d_term = float(metrics.get(f"d_{name}_loss", 0.0))
    np.testing.assert_allclose((d_twice - d_full, g_twice - g_full), (d_term, g_term), rtol=1e-4)
    np.testing.assert_allclose((d_full - d_off, g_full - g_off), (d_term, g_term), rtol=1e-4)
    assert f"g_{name}_loss" not in off_metrics


def _encode_image(params, images):
    return images.mean(axis=1).reshape(images.shape[0], -1)


def _all_losses():
    config = _config()
    config.losses.image_pretrained.enabled = True
    return config


def test_the_frozen_image_network_contrasts_real_with_generated_images(networks, state):
    inputs, model = _inputs(), _model(networks, _all_losses(), _encode_image)
    metrics = jax.jit(lambda: steps.joint_gradients(model, state, inputs).metrics)()
    fake, _ = networks.generate(state.g_params, state.g_batch_stats, inputs.captions, inputs.z)
    expected = feature_contrast(_encode_image(None, inputs.real), _encode_image(None, fake), 0.1)
    np.testing.assert_allclose(metrics["g_image_pretrained_loss"], expected.loss, rtol=1e-4)


@pytest.mark.parametrize(
    ("group_size", "num_parts", "remat"),
    [
        (2, 4, "blocks"),
        pytest.param(2, 2, "convolutions", marks=pytest.mark.slow),
        pytest.param(4, 2, "generator", marks=pytest.mark.slow),
    ],
)
def test_microbatches_and_remat_equal_the_plain_step_with_the_same_batch_norm_groups(
    state, group_size, num_parts, remat
):
    adam = optax.adam(1e-3)
    generator = Generator(SIZE, 2, 4, 8, batch_norm_group_size=group_size)
    plain = Networks(generator, Discriminator(SIZE, 2, D, 8), adam, adam)
    recomputed = Networks(
        generator.clone(remat=remat), plain.discriminator.clone(remat=remat), adam, adam
    )
    config = _all_losses()
    config.batch_norm_group_size, config.contrastive_group_size = group_size, 4
    config.num_microbatches = num_parts
    inputs = _inputs()

    @partial(jax.jit, static_argnums=(0, 1))
    def gradients(module, networks):
        model = _model(networks, config, _encode_image)
        joint = module.joint_gradients(model, state, inputs)
        return joint._asdict(), module.discriminator_gradients(model, state, inputs)

    whole, in_parts = gradients(steps, plain), gradients(microbatching, recomputed)

    def close(path, ours, expected):
        atol = 1e-5 * max(1.0, float(jnp.max(jnp.abs(expected))))
        np.testing.assert_allclose(ours, expected, atol=atol, rtol=1e-4, err_msg=str(path))

    jax.tree_util.tree_map_with_path(close, in_parts, whole)


def test_noise_does_not_depend_on_the_number_of_microbatches(networks):
    batch = {name: value[0] for name, value in _batch().items()}
    noise = []
    for num_parts in (1, 4):
        config = _config()
        config.num_microbatches = num_parts
        noise.append(_model(networks, config).inputs(batch, jax.random.key(5)).z)
    np.testing.assert_array_equal(*noise)
