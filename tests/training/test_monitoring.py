"""Signs of trouble: formulas, warnings, skipped steps, the first nonfinite value, full devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xmcgan.config import apply_override, default_config, validate
from xmcgan.errors import TrainingError
from xmcgan.training.monitoring import (
    HealthWatch,
    SkipCount,
    diversity_warning,
    explain_out_of_memory,
    find_first_nonfinite,
    sample_diversity,
)

RNG = np.random.default_rng(0)


def test_a_warning_comes_after_several_lines_and_once_an_episode():
    watch = HealthWatch()
    bad = {"d_hinge_loss": 0.01, "fake_similarity": 0.5, "real_similarity": 0.5}
    good = bad | {"d_hinge_loss": 1.0}
    found = [watch.warnings(x) for x in [bad, bad, bad, bad, good, bad, bad, bad]]
    assert [len(x) for x in found] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert "discriminator" in found[2][0]


def test_samples_that_look_alike_are_named_beside_real_ones():
    watch = HealthWatch()
    averages = {"d_hinge_loss": 1.0, "fake_similarity": 0.999, "real_similarity": 0.9}
    assert "look alike (similarity 0.999" in [watch.warnings(averages) for _ in range(3)][2][0]
    watch = HealthWatch()
    averages |= {"real_similarity": 0.998}  # so are the real ones
    assert [watch.warnings(averages) for _ in range(3)] == [[], [], []]


def test_diversity_is_the_distance_between_samples_beside_that_of_real_images():
    real = np.array([0, 100, 40, 20], np.uint8)[:, None, None, None] * np.ones(
        (4, 2, 2, 3), np.uint8
    )
    # From one image to the next: 20, 100, 60 and 20.
    assert sample_diversity(real, real, real) == 0
    assert sample_diversity(real, real + 5, real) == pytest.approx(5 / 50)
    assert sample_diversity(real + 5, real, real) == pytest.approx(5 / 50)


def test_samples_that_are_alike_are_warned_of():
    assert "alike" in diversity_warning(0.01)
    assert diversity_warning(0.3) == ""


def test_skipped_steps_are_counted_in_a_row_one_step_late():
    skips = SkipCount(max_consecutive=2)
    found = []
    for skipped in (0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0):
        skips.add(jax.numpy.array(skipped))
        found.append(skips.limit_reached())
    # The fourth step was fine again when the second bad one was seen.
    assert found == [False] * 6 + [True]
    assert SkipCount(2, skips.consecutive()).limit_reached()


class Root(nn.Module):
    """Layer norm of a dense layer, whose gradient is infinite where all its inputs are equal."""

    @nn.compact
    def __call__(self, x):
        return jnp.sqrt(nn.Dense(1, name="dense")(x))


def root_step(state, x):
    def loss(params):
        y = Root().apply(params, x)
        return jnp.mean(y) * state["scale"]

    value, grads = jax.value_and_grad(loss)(state["params"])
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    return state, {"g_word_loss": value, "g_loss": value + 1, "g_grad_norm": norm}


@pytest.mark.parametrize(
    ("kernel", "scale", "first"),
    [
        (1.0, 1.0, None),
        (np.nan, 1.0, "state params/params/dense/kernel"),
        (-1.0, 1.0, "layer Root"),  # the root of a negative number
        (1.0, 3e38, "g_word_loss"),
        (0.0, 1.0, "gradient by the output of layer Root/dense"),  # sqrt has slope inf at 0
    ],
)
def test_the_first_value_that_is_not_finite_is_named(kernel, scale, first):
    params = {"params": {"dense": {"kernel": jnp.full((2, 1), kernel), "bias": jnp.zeros(1)}}}
    state = {"params": params, "scale": jnp.float32(scale)}
    assert find_first_nonfinite(root_step, state, jnp.full((3, 2), 4.0)) == first


FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\nmore"


def test_the_settings_that_it_names_can_be_taken():
    config = default_config()
    with (
        pytest.raises(TrainingError, match="8589934592 bytes") as caught,
        explain_out_of_memory(config),
    ):
        raise jax.errors.JaxRuntimeError(FULL)
    named = [w.strip(",") for w in str(caught.value).split() if w.startswith("--config.")]
    assert len(named) == 3
    for flag in named:
        apply_override(config, flag.removeprefix("--config."))
    validate(config)
    assert (config.num_microbatches, config.batch_norm_group_size, config.remat) == (
        2,
        28,
        "convolutions",
    )


def test_an_odd_batch_is_not_told_to_split():
    config = default_config()
    config.batch_size = 7
    with pytest.raises(TrainingError) as caught, explain_out_of_memory(config):
        raise jax.errors.JaxRuntimeError(FULL)
    assert "microbatches" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), explain_out_of_memory(None):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
