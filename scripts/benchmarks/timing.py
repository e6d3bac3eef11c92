"""Rates measured in turns, so that whatever else the machine does affects all of them alike."""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import jax

from xmcgan.utils.files import num_cores

Rates = dict[str, list[float]]


def take_turns(measures: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """Call each function once per round, and once before, which is not kept; return its values."""
    found: Rates = {name: [] for name in measures}
    for number in range(rounds + 1):
        for name, measure in measures.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def median_ratio(rates: Rates, name: str, other: str) -> float:
    """Median over rounds of the ratio of two measures."""
    return statistics.median(a / b for a, b in zip(rates[name], rates[other], strict=True))


def medians(rates: Rates) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rates.items()}


def seconds(work: Callable[[], Any]) -> float:
    """Time a function, until its arrays are ready."""
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread, and those that it starts, on one core."""
    if not hasattr(os, "sched_setaffinity"):  # macOS
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, and versions."""
    packages = ("grain", "jax", "numpy", "pillow", "scipy", "tensorflow-datasets", "tokenizers")
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": num_cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
    }
