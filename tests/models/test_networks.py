"""Sizes of both networks, and what their outputs may depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.models import discriminator, generator
from xmcgan.models.discriminator import Discriminator
from xmcgan.models.generator import Generator
from xmcgan.models.modulation import Whitening

SIZES = sorted(generator.WIDTH_MULTIPLIERS)


def _generator_inputs(batch=2, tokens=4, dim=6, z_dim=5):
    keys = jax.random.split(jax.random.key(0), 3)
    words = jax.random.normal(keys[0], (batch, tokens, dim))
    sentence, z = (jax.random.normal(k, (batch, n)) for k, n in ((keys[1], dim), (keys[2], z_dim)))
    mask = jnp.arange(tokens)[None] < jnp.array([[tokens - 1]] * batch)
    return words, mask, sentence, z


def _count(tree):
    return sum(np.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("size", "g_millions", "d_millions"), [(128, 78.5, 87.9), (256, 92.9, 99.4)]
)
def test_parameter_counts_are_the_official_ones(size, g_millions, d_millions):
    words, sentence = jnp.zeros((1, 17, 768)), jnp.zeros((1, 768))
    mask, z = jnp.ones((1, 17), bool), jnp.zeros((1, 128))
    g, d = Generator(size), Discriminator(size)
    g_shapes = jax.eval_shape(
        lambda: g.init(jax.random.key(0), words, mask, sentence, z, train=False)
    )
    images = jnp.zeros((1, size, size, 3))
    d_shapes = jax.eval_shape(lambda: d.init(jax.random.key(0), images, sentence))
    assert round(_count(g_shapes["params"]) / 1e6, 1) == g_millions
    assert round(_count(d_shapes["params"]) / 1e6, 1) == d_millions


@pytest.mark.parametrize("size", SIZES)
def test_every_size_gives_images_and_encodings_of_its_size(size):
    inputs = _generator_inputs()
    region_size = min(16, size // 4)
    g = Generator(size, 2, 5, region_size)
    d = Discriminator(size, 2, 6, region_size)
    images, _ = jax.eval_shape(lambda: g.init_with_output(jax.random.key(0), *inputs, train=False))
    assert images.shape == (2, size, size, 3)
    encoding, _ = jax.eval_shape(
        lambda: d.init_with_output(jax.random.key(0), jnp.zeros(images.shape), inputs[2])
    )
    assert encoding.logits.shape == (2,)
    assert encoding.regions.shape == (2, region_size**2, 6)
    assert encoding.feature.shape == encoding.sentence.shape


def test_both_networks_know_the_same_sizes_and_end_at_4x4():
    assert set(discriminator.WIDTH_MULTIPLIERS) == set(SIZES)
    for size in SIZES:
        assert size == 4 * 2 ** len(generator.WIDTH_MULTIPLIERS[size])
        assert size == 4 * 2 ** (len(discriminator.WIDTH_MULTIPLIERS[size]) - 1)


@pytest.fixture(scope="module")
def draw():
    """Return a function of the generator's inputs, and inputs."""
    inputs = _generator_inputs()
    network = Generator(32, 2, 5, 8)
    variables = jax.jit(lambda: network.init(jax.random.key(0), *inputs, train=False))()
    return jax.jit(lambda *inputs: network.apply(variables, *inputs, train=False)), inputs


def test_images_lie_in_the_unit_interval_and_are_float32(draw):
    draw_fn, inputs = draw
    images = draw_fn(*inputs)
    assert images.dtype == jnp.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_bfloat16_changes_images_by_its_rounding_only():
    inputs = _generator_inputs()

    def draw_in(dtype):
        network = Generator(32, 8, 5, 8, dtype=dtype)
        variables = network.init(jax.random.key(0), *inputs, train=False)
        return network.apply(variables, *inputs, train=False)

    low, full = jax.jit(lambda: (draw_in(jnp.bfloat16), draw_in(jnp.float32)))()
    assert low.dtype == jnp.float32
    assert float(jnp.linalg.norm(low - full) / jnp.linalg.norm(full)) < 0.05


def test_generated_images_do_not_depend_on_padding_or_on_neighbors(draw):
    draw_fn, (words, mask, sentence, z) = draw
    images = draw_fn(words, mask, sentence, z)
    other = words.at[:, -1].set(99.0)  # the mask says that nothing stands there
    longer = jnp.concatenate([other, other], axis=1)
    longer_mask = jnp.concatenate([mask, jnp.zeros_like(mask)], axis=1)
    np.testing.assert_allclose(draw_fn(longer, longer_mask, sentence, z), images, atol=1e-5)
    neighbors = [x.at[1].set(x[0]) for x in (words, mask, sentence, z)]
    np.testing.assert_allclose(draw_fn(*neighbors)[0], images[0], atol=1e-5)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_images_depend_on_words_sentence_and_noise(draw, index):
    draw_fn, inputs = draw
    changed = list(inputs)
    changed[index] = -changed[index]
    assert float(jnp.abs(draw_fn(*changed) - draw_fn(*inputs)).max()) > 1e-3


def test_the_logit_pairs_image_and_caption():
    network = Discriminator(32, 2, 6, 8)
    images = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    sentence = jax.random.normal(jax.random.key(2), (2, 6))

    @jax.jit
    def encode_both():
        encoding, variables = network.init_with_output(jax.random.key(0), images, sentence)
        return encoding, network.apply(variables, images, sentence[::-1])

    encoding, swapped = encode_both()
    # Dense_1(feature) + <feature, projected sentence>: only the second part sees the caption.
    paired = jnp.sum(encoding.feature * encoding.sentence, axis=-1)
    crossed = jnp.sum(encoding.feature * encoding.sentence[::-1], axis=-1)
    np.testing.assert_allclose(encoding.logits - paired, swapped.logits - crossed, rtol=1e-3)
    np.testing.assert_allclose(encoding.regions, swapped.regions, rtol=1e-6)


def test_the_first_map_can_see_the_sentence():
    words, mask, sentence, z = _generator_inputs()
    for network in (Generator(32, 2, 5, 8), Generator(32, 2, 5, 8, sentence_in_first_map=True)):
        shapes = jax.eval_shape(
            lambda network=network: network.init(
                jax.random.key(0), words, mask, sentence, z, train=False
            )
        )
        seen = z.shape[-1] + network.sentence_in_first_map * sentence.shape[-1]
        assert shapes["params"]["first_map"]["kernel"].shape == (seen, 16 * 2 * 4 * 4)


def test_a_whitened_sentence_is_centred_and_decorrelated_by_the_stored_statistics():
    sentence = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    stats = {"mean": np.arange(3.0), "matrix": np.array([[2.0, 1, 0], [1, 3, 0], [0, 0, 1]])}
    whitened = Whitening().apply({"batch_stats": stats}, sentence)
    np.testing.assert_allclose(whitened, (sentence - stats["mean"]) @ stats["matrix"], rtol=1e-5)


def test_the_generator_sees_the_whitened_sentence_alone():
    words, mask, sentence, z = _generator_inputs()
    # One block of an 8 px generator: enough to see the sentence, and quick to compile.
    network = Generator(
        8, 2, 5, 4, sentence_in_first_map=True, whiten_sentence=True, multipliers=(1,)
    )

    @jax.jit
    def draw(sentence, mean):
        inputs = words, mask, sentence, z
        variables = network.init(jax.random.key(0), *inputs, train=False)
        variables["batch_stats"]["whitening"]["mean"] = mean
        return network.apply(variables, *inputs, train=False)

    images = draw(sentence, jnp.zeros(sentence.shape[-1]))
    moved = draw(sentence + 3.0, jnp.full(sentence.shape[-1], 3.0))
    np.testing.assert_allclose(images, moved, atol=1e-5)
    assert float(jnp.abs(images - draw(sentence + 3.0, jnp.zeros(sentence.shape[-1]))).max()) > 1e-2
