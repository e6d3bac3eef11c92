"""A full device is a message with settings to change; any other error stays what it is."""

import jax
import pytest

from xmcgan.config import apply_override, default_config, validate
from xmcgan.errors import TrainingError
from xmcgan.training.memory import name_ways_to_save

FULL = "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes.\nmore"


def test_the_settings_that_it_names_can_be_taken():
    config = default_config()
    with (
        pytest.raises(TrainingError, match="8589934592 bytes") as caught,
        name_ways_to_save(config),
    ):
        raise jax.errors.JaxRuntimeError(FULL)
    named = [w.strip(",") for w in str(caught.value).split() if w.startswith("--config.")]
    assert len(named) == 3
    for flag in named:
        apply_override(config, flag.removeprefix("--config."))
    validate(config)
    assert (config.num_microbatches, config.batch_norm_group_size, config.remat) == (2, 28, True)


def test_an_odd_batch_is_not_told_to_split():
    config = default_config()
    config.batch_size = 7
    with pytest.raises(TrainingError) as caught, name_ways_to_save(config):
        raise jax.errors.JaxRuntimeError(FULL)
    assert "microbatches" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), name_ways_to_save(None):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
