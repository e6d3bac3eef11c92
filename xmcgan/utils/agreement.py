"""What the processes of a run tell each other beside the arrays.

It goes through JAX's coordination service and not through the devices: a process that is late by
minutes, because it compiles or draws data, then holds up no collective.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
from orbax.checkpoint import multihost

from xmcgan.errors import AgreedError, UserError

JSON = Any

_HOUR_MS = 3_600_000  # only for the slow: JAX ends all processes soon after one is lost
_rounds = itertools.count()


def is_first() -> bool:
    """Return whether this process writes logs, samples and results."""
    return jax.process_index() == 0


def exchange(value: JSON) -> list[JSON]:
    """Return what every process gives, in their order; all of them must ask."""
    if jax.process_count() == 1:
        return [value]
    client: Any = multihost.get_jax_distributed_client()
    folder = f"xmcgan/{next(_rounds)}"
    client.key_value_set(f"{folder}/{jax.process_index():08d}", json.dumps(value))
    client.wait_at_barrier(folder, _HOUR_MS)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(folder))]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leave the block in all processes or in none: a mistake that one finds is raised in all.

    The block may not exchange anything between the processes.

    Raises:
        AgreedError: one of several processes raised a UserError, named with its number.
    """
    mistake = None
    try:
        yield
    except UserError as error:
        if jax.process_count() == 1:
            raise
        mistake = str(error)
    for process, found in enumerate(exchange(mistake)):
        if found is not None:
            raise AgreedError(f"process {process}: {found}")


def decided_by_first(decide: Callable[[], JSON]) -> JSON:
    """Return in all processes what process 0 decides; only there is it asked.

    Raises:
        AgreedError: process 0 of several raised a UserError.
    """
    with together():
        decision = decide() if is_first() else None
    return exchange(decision)[0]
