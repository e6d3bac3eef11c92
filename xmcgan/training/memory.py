"""What to do where the devices have too little memory: JAX says only how much was missing."""

import contextlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from xmcgan.errors import TrainingError


@contextlib.contextmanager
def name_ways_to_save(config: ConfigDict) -> Iterator[None]:
    """Turn JAX's error of a full device into one that names settings.

    Args:
        config: `batch_size` and `num_microbatches` are read.

    Raises:
        TrainingError: a device has too little memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parts = 2 * config.num_microbatches
        images = config.batch_size // parts
        smaller = (
            f"--config.num_microbatches={parts} --config.batch_norm_group_size={images}, "
            if images and config.batch_size % parts == 0
            else ""
        )
        raise TrainingError(
            f"the devices have too little memory for this step ({str(error).splitlines()[0]}). "
            f"Try {smaller}--config.remat=true, more devices or a smaller batch_size; "
            "docs/troubleshooting.md says what each of them changes."
        ) from error
