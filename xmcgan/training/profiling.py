"""How fast a run is and what holds it up: throughput, waiting for data, share of peak, traces."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
from ml_collections import ConfigDict
from rich.console import Console

from xmcgan.utils import distributed
from xmcgan.utils.files import local_folder


def compile_step(
    console: Console, config: ConfigDict, step: Any, *inputs: Any
) -> tuple[Any, float]:
    """Compile a jitted training step; return it and its seconds at the chip's peak, or 0.

    0 as well with microbatches: their loop would be counted once.
    """
    from xmcgan.planning.targets import chip_of, flops_per_device

    start = time.monotonic()
    console.print("compiling the training step ...")
    compiled = step.lower(*inputs).compile()
    distributed.all_gather_json("compiled")  # a collective would not wait for the slowest
    console.print(f"compiled in {time.monotonic() - start:.0f} s")
    peak = chip_of(jax.local_devices()[0]).peak
    if not peak or config.num_microbatches > 1:
        return compiled, 0.0
    flops = flops_per_device(compiled, step.__wrapped__, inputs, jax.device_count())
    return compiled, flops / peak


class StepClock:
    """Training throughput, without sampling and checkpointing.

    Args:
        batch_size: Images per step.
        at_peak: Seconds of one step at the chip's peak of arithmetic; 0 if unknown.
    """

    def __init__(self, step: int, batch_size: int, at_peak: float = 0.0) -> None:
        self._batch_size, self._at_peak = batch_size, at_peak
        self._start, self._start_step, self._waited = time.monotonic(), step, 0.0

    def read_and_reset(self, step: int) -> dict[str, float]:
        """Images per second, and shares of the time since the last call.

        `data_wait_share`: the loop waited for its next batch, while the devices did at most the
        step before. `peak_share`: arithmetic at the chip's bfloat16 peak; absent if unknown.
        """
        now = time.monotonic()
        seconds, steps = now - self._start, step - self._start_step
        rates = {
            "images_per_second": steps * self._batch_size / seconds,
            "data_wait_share": self._waited / seconds,
        }
        if self._at_peak:
            rates["peak_share"] = self._at_peak * steps / seconds
        self._start, self._start_step, self._waited = now, step, 0.0
        return rates

    @contextlib.contextmanager
    def exclude(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self._start += time.monotonic() - start

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start


class Trace:
    """JAX's profiler around the steps of `profile.steps`, "100-105" or "100"; off if empty.

    The trace goes to `folder`/plugins/profile, where TensorBoard's profile plugin finds it.
    """

    def __init__(self, steps: str, folder: Path) -> None:
        first, _, last = steps.partition("-")
        self._steps = range(int(first), int(last or first) + 1) if steps else range(0)
        self._folder, self._is_active = folder, False
        self._copying = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_active:
            self._is_active = False
            jax.profiler.stop_trace()
            self._copying.close()

    def run(self, step: int, train_step: Callable[..., Any], *inputs: Any) -> Any:
        """Return `train_step(*inputs)`; waits for it only at the end of a trace."""
        if step not in self._steps:
            return train_step(*inputs)
        if not self._is_active:
            jax.profiler.start_trace(self._copying.enter_context(local_folder(self._folder)))
            self._is_active = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            results = train_step(*inputs)
        if step == self._steps[-1]:
            jax.block_until_ready(results)
            self.__exit__()
        return results
