"""What may go wrong in training: nonfinite gradients, collapse, full devices, signals to stop."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, UInt8
from ml_collections import ConfigDict
from rich.console import Console

from xmcgan.errors import AgreedError, CheckpointError, TrainingError
from xmcgan.training.checkpoint import Checkpointer
from xmcgan.training.logging import MetricWriter
from xmcgan.utils.distributed import all_gather_json, is_host0
from xmcgan.utils.files import atomic_file
from xmcgan.utils.mesh import fetch, put_shares, replicated, sample_sharding


def sample_diversity(
    samples: UInt8[np.ndarray, "b h w 3"],
    others: UInt8[np.ndarray, "b h w 3"],
    real: UInt8[np.ndarray, "b h w 3"],
) -> float:
    """Pixel distance of two samples per caption, relative to that of different real images."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a.astype(np.float32) - b).mean())

    return distance(samples, others) / distance(real, np.roll(real, 1, axis=0))


def diversity_warning(ratio: float) -> str:
    """Return a warning about a low `sample_diversity`, empty if it is healthy."""
    share = f"{ratio:.1%} of the distance between real images"
    text = f"samples of one caption are nearly alike ({share}): the noise changes little"
    return text if ratio < 0.05 else ""


class HealthWatch:
    """Warnings about metrics that look bad in three log lines in a row, once per episode."""

    def __init__(self) -> None:
        self._consecutive = [0, 0]

    def warnings(self, averages: dict[str, float]) -> list[str]:
        hinge = averages.get("d_hinge_loss", 1.0)
        fake, real = averages.get("fake_similarity", 0.0), averages.get("real_similarity", 0.0)
        signs = {
            f"the discriminator tells real from generated outright (its hinge loss is {hinge:.3f})"
            ": the generator learns little from it. Lower discriminator.learning_rate or width, "
            "or raise the generator's.": hinge < 0.05,
            f"generated images look alike (similarity {fake:.3f}, of real ones {real:.3f}): the "
            "samples may have collapsed. Look at the sample grids; an earlier checkpoint may be "
            "better.": 1 - fake < 0.1 * (1 - real),
        }
        counts = zip(self._consecutive, signs.values(), strict=True)
        self._consecutive = [count + 1 if is_bad else 0 for count, is_bad in counts]
        return [text for text, count in zip(signs, self._consecutive, strict=True) if count == 3]


class SkipCount:
    """Number of consecutive skipped steps, read one step late so that no step waits for it."""

    def __init__(self, max_consecutive: int, consecutive: int = 0) -> None:
        self._max, self._consecutive = max_consecutive, consecutive
        self._waiting: jax.Array | None = None

    def add(self, skipped: jax.Array) -> None:
        """Take the number of skipped updates of one step; wait for the step before."""
        self.consecutive()
        skipped.copy_to_host_async()
        self._waiting = skipped

    def limit_reached(self) -> bool:
        """Whether to abort; waits for the last step only if it decides."""
        return self._consecutive >= self._max and self.consecutive() >= self._max

    def consecutive(self) -> int:
        """Return the number of consecutive skipped steps, after waiting for the last one."""
        if self._waiting is not None:
            self._consecutive = self._consecutive + 1 if float(self._waiting) else 0
        self._waiting = None
        return self._consecutive


def find_first_nonfinite(
    train_step: Callable[..., tuple[Any, dict[str, Array]]], state: Any, *inputs: Any
) -> str | None:
    """Name the first parameter, layer, loss or gradient of a step that is not finite.

    Runs `train_step(state, *inputs)` once more with a probe behind every Flax module, which tests
    its output on the way forward and the gradient by it on the way back.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not bool(jnp.isfinite(leaf).all()):
            return f"state {jax.tree_util.keystr(path, simple=True, separator='/')}"
    names: list[str] = []  # of the probes, in the order of tracing, which is that of the work
    failed: set[int] = set()

    def test(name: str, x: Array) -> None:
        def note(is_finite: Array, index: int = len(names)) -> None:
            if not is_finite:
                failed.add(index)

        names.append(name)
        jax.debug.callback(note, jnp.isfinite(x).all())

    def probe(name: str, x: Any) -> Any:
        @jax.custom_vjp
        def identity(x: Array) -> Array:
            return x

        def backward(_: None, gradient: Array) -> tuple[Array]:
            test(f"gradient by the output of layer {name}", gradient)
            return (gradient,)

        identity.defvjp(lambda x: (x, None), backward)
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            return x
        test(f"layer {name}", x)
        return identity(x)

    root = ""

    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal root
        path = context.module.path
        if not path:
            root = type(context.module).__name__
        outputs = call(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        return jax.tree.map(partial(probe, "/".join([root, *path])), outputs)

    with nn.intercept_methods(interceptor):
        # A new function, so that JAX traces it again.
        _, metrics = jax.jit(lambda *arguments: train_step(*arguments))(state, *inputs)
    jax.effects_barrier()
    found = [names[index] for index in sorted(failed)]
    layers = [name for name in found if name.startswith("layer")]
    # The longest first: the terms of a loss before their sum.
    bad = [n for n in sorted(metrics, key=len, reverse=True) if not bool(jnp.isfinite(metrics[n]))]
    losses = [name for name in bad if name.endswith("_loss")]
    # Callbacks run on the device of one process.
    return all_gather_json(next(iter([*layers, *losses, *found, *bad]), None))[0]


def nonfinite_error(
    train_step: Callable[..., tuple[Any, dict[str, Array]]],
    state: Any,
    frozen_params: Any,
    batch: dict[str, Array],
    folder: Path,
) -> TrainingError:
    """Error about a skipped step, repeated from the state before it; its batch goes to `folder`."""
    step = int(state.step) + 1
    path = folder / f"step_{step}.npz"
    arrays: dict[str, Any] = {name: fetch(value) for name, value in batch.items()}
    if is_host0():
        folder.mkdir(exist_ok=True)
        with atomic_file(path) as file:
            np.savez(file, **arrays)
    first = find_first_nonfinite(train_step, state, frozen_params, batch)
    return TrainingError(
        "too many steps in a row were skipped because a gradient was not finite "
        f"(stop_after_skipped_steps); first of all: {first}. The state is checkpoint {step}, the "
        f"last batch is in {path}. The same command resumes with the next batch; lower the "
        "learning rates, or try --config.dtype=float32."
    )


@contextlib.contextmanager
def explain_out_of_memory(config: ConfigDict) -> Iterator[None]:
    """Turn JAX's error of a full device into a TrainingError that names settings to change."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        parts = 2 * config.num_microbatches
        size = config.batch_size // parts
        smaller = ""
        if size and config.batch_size % parts == 0:
            smaller = f"--config.num_microbatches={parts} --config.batch_norm_group_size={size}, "
        raise TrainingError(
            f"the devices have too little memory for this step ({str(error).splitlines()[0]}). "
            f"Try {smaller}--config.remat=convolutions, more devices or a smaller batch_size; "
            "docs/troubleshooting.md says what each of them changes."
        ) from error


class Scores:
    """Scores of averaged weights inside the training process; off without `evaluation.every_steps`.

    The separate job's program and files: what one has scored the other does not repeat.
    """

    def __init__(self, config: ConfigDict, workdir: Path, num_steps: int) -> None:
        self._every, self._last, self._job = config.evaluation.every_steps, num_steps, None
        if self._every:
            from xmcgan.evaluation.watch import EvaluationJob  # half of the package

            self._job = EvaluationJob.in_training(workdir, config)

    def is_due(self, step: int) -> bool:
        return bool(self._every) and (step % self._every == 0 or step == self._last)

    def update(
        self, step: int, checkpointer: Checkpointer, writer: MetricWriter, console: Console
    ) -> None:
        """Score the step, if it is due, and older checkpoints that wait; log what it cost."""
        if not self._job or not self.is_due(step):
            return
        checkpointer.wait()
        start = time.monotonic()
        try:
            self._job.run()
        except (AgreedError, CheckpointError) as error:  # of another job, or a damaged checkpoint
            console.print(f"warning: training goes on without these scores: {error}")
        seconds = time.monotonic() - start
        console.print(f"scored in {seconds:.0f} s")
        writer.write_scalars(step, {"evaluation_seconds": seconds})


class StopSignal:
    """The first SIGINT or SIGTERM inside a `with` block, in `received`; a second acts at once."""

    received: signal.Signals | None = None

    def __enter__(self) -> Self:
        signals = (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._remember) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_status(self) -> int:
        """The shell's status of a process that the signal ended, 0 without one."""
        return 0 if self.received is None else 128 + self.received

    @property
    def outcome(self) -> str:
        """The signal's name, or "finished"."""
        return "finished" if self.received is None else self.received.name

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        again = "; once more stops at once, without saving"
        print(f"\n{self.received.name}: saving after this step{again}", file=sys.stderr, flush=True)


class StopVote:
    """Agreement of all processes to stop after the same step, whichever got the signal."""

    def __init__(self, stop: StopSignal, mesh: jax.sharding.Mesh) -> None:
        self._stop, self._sharding = stop, sample_sharding(mesh)
        self._highest = jax.jit(lambda votes: votes.max(), out_shardings=replicated(mesh))
        self._last: jax.Array | None = None

    def should_stop(self) -> bool:
        """Whether to stop now; every process asks before every step."""
        if jax.process_count() == 1:
            return self._stop.received is not None
        votes = np.full(jax.local_device_count(), self._stop.received or 0, np.int32)
        # The result of the step before is ready now: no step waits for it.
        last, self._last = self._last, self._highest(put_shares(votes, self._sharding))
        if last is not None and (number := int(last)):
            self._stop.received = signal.Signals(number)
            return True
        return False
