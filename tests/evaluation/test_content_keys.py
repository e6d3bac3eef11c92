"""Draws go with the images: neither order nor rounding changes them."""

import numpy as np
import pytest

from xmcgan.evaluation.content_keys import content_keys, draw, keyed_order, uniforms


def rows(n: int = 2000, d: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_keys_go_with_the_rows():
    values = rows()
    order = np.random.default_rng(1).permutation(len(values))
    np.testing.assert_array_equal(content_keys(values[order]), content_keys(values)[order])


def test_rounding_changes_hardly_any_key():
    values = rows(20_000)
    noise = 1e-6 * np.random.default_rng(1).standard_normal(values.shape)
    changed = content_keys(values) != content_keys((values + noise).astype(np.float32))
    assert np.mean(changed) < 5e-4


@pytest.mark.parametrize("d", [1, 2, 64])
def test_keys_differ_even_between_copies(d: int):
    values = np.repeat(rows(500, d), 3, axis=0)
    assert len(np.unique(content_keys(values))) == len(values)


def test_constant_rows_have_keys():
    assert len(np.unique(content_keys(np.full((50, 4), 2.5, np.float32)))) == 50


def test_copies_of_the_same_rows_get_the_same_set_of_keys_in_any_order():
    values = np.repeat(rows(50, 8), 4, axis=0)
    shuffled = np.random.default_rng(0).permutation(values)
    assert set(content_keys(values)) == set(content_keys(shuffled))


@pytest.mark.parametrize("d", [1, 64])
def test_every_row_is_drawn_equally_often(d: int):
    keys = content_keys(rows(200, d))
    drawn = np.zeros(200)
    for salt in range(2000):
        chosen = draw(keys, 50, salt)
        assert len(set(chosen)) == 50
        drawn[chosen] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4.
    assert np.abs(drawn - 500).max() < 5 * 19.4
    assert 15 < drawn.std() < 25


def test_neighbours_in_value_are_drawn_independently():
    keys = content_keys(np.linspace(0, 1, 400, dtype=np.float32)[:, None])
    together = np.mean([np.isin([10, 11], draw(keys, 100, salt)).all() for salt in range(4000)])
    assert together == pytest.approx(1 / 16, abs=5 * np.sqrt(1 / 16 / 4000))


def test_numbers_are_uniform_and_differ_by_salt():
    keys = content_keys(rows(20_000, 8))
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(950)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(20_000)
    assert first.min() >= 0
    assert first.max() < 1


def test_the_order_of_keys_is_a_shuffle():
    values = np.sort(rows(1000, 1), axis=0)
    order = keyed_order(content_keys(values))
    assert sorted(order) == list(range(1000))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.15
