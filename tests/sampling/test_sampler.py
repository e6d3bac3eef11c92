"""Noise and trained models: what stays the same, and what truncation does."""

import itertools
import shutil

import jax
import numpy as np
import pytest
import scipy.stats

from xmcgan.config import read_config, save_config
from xmcgan.errors import CheckpointError, UserError, WeightsError
from xmcgan.sampling.sampler import TrainedModel, sample_noise


@pytest.fixture(scope="module")
def model(tiny_workdir):
    return TrainedModel.from_workdir(tiny_workdir)


def test_noise_of_a_row_depends_on_seed_and_row_alone():
    keys = [jax.random.fold_in(jax.random.key(3), row) for row in range(4)]
    expected = np.stack([jax.random.normal(key, (6,)) for key in keys])
    np.testing.assert_array_equal(sample_noise(3, 4, 6), expected)
    np.testing.assert_array_equal(sample_noise(3, 2, 6), expected[:2])


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_truncated_noise_is_a_normal_distribution_cut_off_at_the_threshold(threshold):
    noise = sample_noise(0, 200, 100, threshold).ravel()
    assert np.abs(noise).max() <= threshold
    cut = scipy.stats.truncnorm(-threshold, threshold)
    assert scipy.stats.kstest(noise, cut.cdf).pvalue > 0.01


def test_a_lower_threshold_moves_the_noise_of_a_seed_towards_zero():
    levels = [sample_noise(1, 3, 50, threshold) for threshold in (0.0, 0.5, 1.0, 3.0)]
    levels.append(sample_noise(1, 3, 50))
    assert not levels[0].any()
    for lower, higher in itertools.pairwise(levels):
        assert (np.abs(lower) < np.abs(higher)).all()
        assert (lower * higher >= 0).all()


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(UserError, match="truncation is"):
        sample_noise(0, 1, 4, threshold)


def test_truncation_to_zero_gives_one_image_whatever_the_seed(model):
    z_dim = model.config.generator.z_dim
    z = np.concatenate([sample_noise(seed, 2, z_dim, 0.0) for seed in (0, 7)])
    images = model(["a red circle"] * 4, z)
    assert (images == images[0]).all()
    assert (model(["a red circle"] * 2, sample_noise(0, 2, z_dim)) != images[0]).any()


def test_other_weights_of_a_run_draw_what_a_model_loaded_with_them_draws(model, tiny_workdir):
    assert model.steps == [3, 6]
    inputs = (["a blue star"], sample_noise(0, 1, model.config.generator.z_dim))
    drawn = {}
    for step, raw in ((3, False), (6, False), (6, True)):
        drawn[step, raw] = model.using(step, raw=raw)(*inputs)
    loaded = TrainedModel.from_workdir(tiny_workdir, 3)
    np.testing.assert_array_equal(drawn[3, False], loaded(*inputs))
    np.testing.assert_array_equal(drawn[6, False], model(*inputs))
    assert (drawn[6, True] != drawn[6, False]).any()
    assert (drawn[3, False] != drawn[6, False]).any()
    assert model.step == 6
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        model.using(5)


@pytest.mark.parametrize(
    ("changes", "array"),
    [({"generator.width": 3}, "block_0/norm_1"), ({"region_size": 16}, "block_1/norm_1")],
)
def test_weights_of_another_architecture_are_named_by_array(tiny_workdir, tmp_path, changes, array):
    workdir = shutil.copytree(tiny_workdir, tmp_path / "workdir")
    config = read_config(workdir / "config.json")
    config.update_from_flattened_dict(changes)
    save_config(config, workdir / "config.json")
    with pytest.raises(WeightsError, match=array):
        TrainedModel.from_workdir(workdir)
