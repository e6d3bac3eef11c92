"""Time of a training step beside the literal formulation's, and time to the first one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from xmcgan.benchmarks.costs import costs, describe, matmul_peak
from xmcgan.benchmarks.formulations import Formulation, draw_inputs, draw_parameters
from xmcgan.benchmarks.timing import Rates, median_ratio, medians, seconds, take_turns


class _Run:
    """Hold a formulation's state, and pass it from step to step, whatever their batch."""

    def __init__(self, formulation: Formulation, arrays: Any) -> None:
        self.formulation = formulation
        self.state = jax.jit(formulation.init)(arrays)

    def prepare(self, inputs: Any) -> tuple[float, Callable[[], float]]:
        """Compile for a batch; return the step's operations, and what takes and times a step."""
        batch = jax.block_until_ready(jax.jit(self.formulation.place)(inputs))
        compiled = self.formulation.jit().lower(self.state, batch).compile()

        def step() -> Any:
            self.state, metrics = compiled(self.state, batch)
            return self.state, metrics

        return costs(compiled).flops, partial(seconds, step)


def measure_step(
    config: ConfigDict,
    word_dim: int,
    formulations: Sequence[Formulation],
    batches: Sequence[int],
    rounds: int,
) -> dict[str, Any]:
    """Time one step of each formulation at each batch, all in turns.

    Args:
        config: of the sizes; `batches` take the place of its batch.
        word_dim: size of a word's feature.
        formulations: the first is what the others are compared with.
        batches: images of one generator update.
        rounds: turns of each.

    Returns:
        The sizes, the peak of matrix products by type, each turn's seconds, and a row a batch
        and formulation: seconds, images a second, how many times as fast as the first
        formulation, GFLOP an image, operations a second and their share of the peak, and the time
        an image relative to the first batch.
    """
    arrays = draw_parameters(config, word_dim)
    runs = [_Run(each, arrays) for each in formulations]
    flops: dict[str, float] = {}
    steps: dict[str, Callable[[], float]] = {}
    for batch in batches:
        with config.unlocked():
            config.batch_size = batch
        inputs = draw_inputs(config, word_dim)
        for run in runs:
            key = _key(run.formulation, batch)
            flops[key], steps[key] = run.prepare(inputs)
    times = take_turns(steps, rounds)
    peaks = {each.dtype: matmul_peak(each.dtype, rounds) for each in formulations}
    rows = [
        {
            "formulation": each.name,
            "batch": batch,
            "faster": median_ratio(times, _key(formulations[0], batch), _key(each, batch)),
            "time_per_image_to_first_batch": median_ratio(
                times, _key(each, batch), _key(each, batches[0])
            )
            * batches[0]
            / batch,
            **_rates(times, flops, _key(each, batch), batch, peaks[each.dtype]),
        }
        for batch in batches
        for each in formulations
    ]
    return describe(config) | {"matmul_peak": peaks, "rows": rows, "seconds": times}


def _key(formulation: Formulation, batch: int) -> str:
    return f"{formulation.name}, batch {batch}"


def _rates(
    times: Rates, flops: dict[str, float], key: str, batch: int, peak: float
) -> dict[str, float]:
    time = medians(times)[key]
    return {
        "seconds": time,
        "images_per_second": batch / time,
        "gflop_per_image": flops[key] / batch / 1e9,
        "flops_per_second": flops[key] / time,
        "share_of_peak": flops[key] / time / peak,
    }


def measure_first_step(
    config: ConfigDict, word_dim: int, formulations: Sequence[Formulation], rounds: int
) -> dict[str, Any]:
    """Time tracing, compiling and running the first step, with nothing of it compiled before.

    Args:
        config: of the sizes.
        word_dim: size of a word's feature.
        formulations: the first is what the others are compared with.
        rounds: turns of each.

    Returns:
        The sizes, each turn's seconds, and of each formulation its median and its share of the
        first one's.
    """
    arrays, inputs = draw_parameters(config, word_dim), draw_inputs(config, word_dim)
    first = formulations[0].name
    with _no_compilation_cache():
        times = take_turns(
            {each.name: partial(_first_step, each, arrays, inputs) for each in formulations},
            rounds,
        )
    rows = [
        {"formulation": name, "seconds": time, "share": median_ratio(times, name, first)}
        for name, time in medians(times).items()
    ]
    return describe(config) | {"rows": rows, "seconds": times}


def _first_step(formulation: Formulation, arrays: Any, inputs: Any) -> float:
    state = jax.block_until_ready(jax.jit(formulation.init)(arrays))
    batch = jax.block_until_ready(jax.jit(formulation.place)(inputs))
    jax.clear_caches()
    return seconds(lambda: formulation.jit()(state, batch))


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it looks at the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()
