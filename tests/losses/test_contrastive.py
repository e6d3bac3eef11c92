"""The contrastive losses against explicit loops, and the properties that they must have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmcgan.losses import contrastive
from xmcgan.losses.adversarial import hinge_discriminator, hinge_generator
from xmcgan.losses.contrastive import (
    feature_contrast,
    in_groups,
    symmetric_cross_entropy,
    word_region_contrast,
    word_region_scores,
)

GAMMAS = {"region_gamma": 5.0, "word_gamma": 5.0}


def _inputs(seed=0, b=3, r=6, t=5, d=8):
    rng = np.random.default_rng(seed)
    regions = rng.normal(size=(b, r, d)).astype(np.float32)
    words = rng.normal(size=(b, t, d)).astype(np.float32)
    mask = np.arange(t)[None] < rng.integers(2, t + 1, size=(b, 1))
    return jnp.asarray(regions), jnp.asarray(words), jnp.asarray(mask)


def _literal_scores(regions, words, mask):
    """Score by loops over images, captions and words, with the (t, d) contexts made."""
    regions, words, mask = (np.asarray(x, np.float64) for x in (regions, words, mask))
    scores = np.zeros((len(regions), len(words)))
    for i, image in enumerate(regions):
        image = image / np.linalg.norm(image, axis=-1, keepdims=True)
        for j, caption in enumerate(words):
            total = 0.0
            for word, real in zip(caption, mask[j], strict=True):
                if not real:
                    continue
                word = word / np.linalg.norm(word)
                weights = np.exp(5 * image @ word)
                context = weights / weights.sum() @ image
                total += np.exp(5 * word @ context / np.linalg.norm(context))
            scores[i, j] = np.log(total) / 5
    return scores


def test_word_scores_equal_explicit_loops():
    inputs = _inputs()
    np.testing.assert_allclose(
        word_region_scores(*inputs, **GAMMAS), _literal_scores(*inputs), rtol=1e-5
    )


@pytest.mark.parametrize("b", [1, 3])
def test_gradients_of_word_scores_equal_differences_of_the_explicit_loops(b):
    regions, words, mask = _inputs(b=b)
    weights = np.random.default_rng(1).normal(size=(b, b))

    def total(r, w):
        return jnp.sum(weights * word_region_scores(r, w, mask, **GAMMAS))

    grads = jax.grad(total, argnums=(0, 1))(regions, words)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        way = [rng.normal(size=x.shape) for x in (regions, words)]
        ahead, behind = (
            np.sum(weights * _literal_scores(regions + h * way[0], words + h * way[1], mask))
            for h in (1e-3, -1e-3)
        )
        slope = sum(np.sum(np.asarray(g, np.float64) * d) for g, d in zip(grads, way, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-3, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("b", [1, 3, 5])
def test_taking_captions_in_turns_changes_neither_scores_nor_gradients(monkeypatch, b):
    regions, words, mask = _inputs(b=b)

    def value_and_grads():
        def total(r, w):
            return jnp.sum(jnp.sin(word_region_scores(r, w, mask, **GAMMAS)))

        return jax.value_and_grad(total, argnums=(0, 1))(regions, words)

    at_once = value_and_grads()
    monkeypatch.setattr(contrastive, "MAX_ELEMENTS", 0)
    monkeypatch.setattr(contrastive, "CHUNK_ELEMENTS", 2 * b * 5 * 6)  # two captions a turn
    in_turns = value_and_grads()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), at_once, in_turns)


def test_word_loss_does_not_depend_on_padding():
    regions, words, mask = _inputs()
    padded = jnp.concatenate([words, 100 * jnp.ones((3, 4, 8))], axis=1)
    padded_mask = jnp.concatenate([mask, jnp.zeros((3, 4), bool)], axis=1)
    contrast = partial(word_region_contrast, **GAMMAS, score_gamma=50.0)
    short, long = contrast(regions, words, mask), contrast(regions, padded, padded_mask)
    np.testing.assert_allclose(short.loss, long.loss, rtol=1e-6)


def test_word_loss_does_not_depend_on_the_order_of_regions_or_pairs():
    regions, words, mask = _inputs()
    contrast = partial(word_region_contrast, **GAMMAS, score_gamma=50.0)
    order = jnp.array([2, 0, 1])
    expected = contrast(regions, words, mask).loss
    np.testing.assert_allclose(contrast(regions[:, ::-1], words, mask).loss, expected, rtol=1e-5)
    shuffled = contrast(regions[order], words[order], mask[order])
    np.testing.assert_allclose(shuffled.loss, expected, rtol=1e-5)


def test_cross_entropy_matches_explicit_sums():
    logits = np.random.default_rng(0).normal(size=(4, 4))
    loss, hits, entropy = 0.0, 0.0, 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            probs = np.exp(row) / np.exp(row).sum()
            loss -= np.log(probs[i]) / 4
            hits += (row.argmax() == i) / 8
            entropy -= np.sum(probs * np.log(probs)) / 8
    contrast = symmetric_cross_entropy(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(contrast, (loss, hits, entropy), rtol=1e-5)


def test_uninformative_features_give_the_loss_of_guessing():
    contrast = feature_contrast(jnp.ones((8, 5)), jnp.ones((8, 5)), 0.1)
    np.testing.assert_allclose(contrast.loss, 2 * np.log(8), rtol=1e-6)
    np.testing.assert_allclose(contrast.entropy, np.log(8), rtol=1e-6)


def test_perfect_features_are_retrieved():
    contrast = feature_contrast(jnp.eye(6), 7 * jnp.eye(6), 0.1)  # lengths do not matter
    assert contrast.accuracy == 1
    assert contrast.loss < 1e-3


def test_groups_see_no_negatives_of_other_groups():
    a, b = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 4)).astype(np.float32))
    contrast = partial(feature_contrast, temperature=0.1)
    halves = [contrast(a[i : i + 3], b[i : i + 3]).loss for i in (0, 3)]
    np.testing.assert_allclose(in_groups(contrast, 3, a, b).loss, np.mean(halves), rtol=1e-6)
    np.testing.assert_allclose(in_groups(contrast, 0, a, b).loss, contrast(a, b).loss)


def test_zero_features_give_finite_gradients():
    regions, words, mask = _inputs()
    zero = jnp.zeros_like(regions)
    loss = partial(word_region_contrast, **GAMMAS, score_gamma=50.0)
    grads = jax.grad(lambda r, w: loss(r, w, mask).loss, argnums=(0, 1))(zero, words)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in grads)


def test_hinge_losses_match_their_formulas():
    real, fake = np.array([2.0, 0.5, -1.0]), np.array([-2.0, 0.5, 1.0])
    expected = np.mean(np.maximum(0, 1 - real)) + np.mean(np.maximum(0, 1 + fake))
    np.testing.assert_allclose(hinge_discriminator(jnp.asarray(real), jnp.asarray(fake)), expected)
    np.testing.assert_allclose(hinge_generator(jnp.asarray(fake)), -fake.mean(), rtol=1e-6)
