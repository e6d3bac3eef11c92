"""Work, memory and time of a step, of the word loss and of the Frechet distance."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from oracle import literal

from benchmarks.formulations import Formulation, draw_inputs, draw_parameters
from benchmarks.timing import Rates, median_ratio, medians, seconds, take_turns
from xmcgan.evaluation.metrics.fid import frechet_distance
from xmcgan.losses.contrastive import word_region_contrast

REGIONS = 256


class Costs(NamedTuple):
    """Costs of a compiled program.

    Attributes:
        flops: Operations, additions and multiplications each.
        temporary: Bytes that are held only while it runs.
        arguments: Bytes of its inputs: a step's state and batch. Its outputs reuse their memory.
    """

    flops: float
    temporary: int
    arguments: int


def costs(compiled: Any) -> Costs:
    """Read the compiler's analysis of the result of `jax.jit(f).lower(...).compile()`.

    XLA counts the program after its optimizations: what appears twice in the source and once in
    the program counts once, unused results count nothing. Of a convolution it counts products of
    a kernel's element and an input's element: padding and the zeros between the elements of a
    dilated operand do not count, so that a 4x4 convolution of stride 2 has 16 products per output,
    and so has its backward pass. The body of a loop counts once, however often it runs: the word
    loss of a batch so large that captions are processed in chunks, and microbatches, are
    undercounted.
    """
    memory = compiled.memory_analysis()
    flops = compiled.cost_analysis()["flops"]
    return Costs(flops, memory.temp_size_in_bytes, memory.argument_size_in_bytes)


def measure_costs(
    config: ConfigDict, word_dim: int, formulations: Sequence[Formulation]
) -> dict[str, Any]:
    """Compile one step of each formulation, compared with the first; nothing is run."""
    found = {each.name: costs(each.compile(config, word_dim)) for each in formulations}
    first = found[formulations[0].name]
    rows = [
        {
            "formulation": name,
            "gflop_per_image": cost.flops / config.batch_size / 1e9,
            "flops_share": cost.flops / first.flops,
            "temporary_bytes": cost.temporary,
            "temporary_share": cost.temporary / first.temporary,
            "argument_bytes": cost.arguments,
        }
        for name, cost in found.items()
    ]
    return describe(config) | {"rows": rows}


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the sizes that a figure depends on."""
    return {
        "image_size": config.image_size,
        "width": config.generator.width,
        "batch": config.batch_size,
        "backend": jax.default_backend(),
    }


def matmul_peak(dtype: str, rounds: int) -> float:
    """Measure the best rate of a large matrix product, in operations per second."""
    # Large enough for the machine to be at its best, small enough to take less than a minute.
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((n, n), 1 / n, dtype)
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / min(seconds(lambda: product(a, a)) for _ in range(rounds + 1))


class _Run:
    """The state of a formulation, passed from step to step of any batch."""

    def __init__(self, formulation: Formulation, arrays: Any) -> None:
        self.formulation = formulation
        self.state = jax.jit(formulation.init)(arrays)

    def prepare(self, inputs: Any) -> tuple[float, Callable[[], float]]:
        """Compile for a batch; return a step's operations, and a function that times one."""
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

    Returns:
        Sizes, peak of matrix products by dtype, seconds of each turn, and a row per batch and
        formulation, compared with the first formulation and with the first batch.
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
            key = f"{run.formulation.name}, batch {batch}"
            flops[key], steps[key] = run.prepare(inputs)
    times = take_turns(steps, rounds)
    peaks = {each.dtype: matmul_peak(each.dtype, rounds) for each in formulations}

    def row(each: Formulation, batch: int) -> dict[str, Any]:
        key = f"{each.name}, batch {batch}"
        time = medians(times)[key]
        growth = median_ratio(times, key, f"{each.name}, batch {batches[0]}")
        return {
            "formulation": each.name,
            "batch": batch,
            "seconds": time,
            "images_per_second": batch / time,
            "faster": median_ratio(times, f"{formulations[0].name}, batch {batch}", key),
            "gflop_per_image": flops[key] / batch / 1e9,
            "flops_per_second": flops[key] / time,
            "share_of_peak": flops[key] / time / peaks[each.dtype],
            "time_per_image_to_first_batch": growth * batches[0] / batch,
        }

    rows = [row(each, batch) for batch in batches for each in formulations]
    return describe(config) | {"matmul_peak": peaks, "rows": rows, "seconds": times}


def measure_first_step(
    config: ConfigDict, word_dim: int, formulations: Sequence[Formulation], rounds: int
) -> dict[str, Any]:
    """Time tracing, compiling and running the first step, with no program cached."""
    arrays, inputs = draw_parameters(config, word_dim), draw_inputs(config, word_dim)

    def first_step(formulation: Formulation) -> float:
        state = jax.block_until_ready(jax.jit(formulation.init)(arrays))
        batch = jax.block_until_ready(jax.jit(formulation.place)(inputs))
        jax.clear_caches()
        return seconds(lambda: formulation.jit()(state, batch))

    with _no_compilation_cache():
        times = take_turns({each.name: partial(first_step, each) for each in formulations}, rounds)
    return describe(config) | {"rows": _time_rows(times, "share"), "seconds": times}


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it reads the setting once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _time_rows(times: Rates, comparison: str) -> list[dict[str, Any]]:
    """Return medians, and each one as a `share` of the first, or how much `faster` it is."""
    first = next(iter(times))
    rows = []
    for name, time in medians(times).items():
        pair = (name, first) if comparison == "share" else (first, name)
        rows.append({"formulation": name, "seconds": time, comparison: median_ratio(times, *pair)})
    return rows


def measure_words(
    *, batch: int, large_batch: int, tokens: int, word_dim: int, rounds: int
) -> dict[str, Any]:
    """Time the word loss with its gradient, and read its memory at `large_batch` as well.

    Ours goes through Gram matrices, the literal one through contexts.
    """

    def literal_loss(regions: Any, words: Any, length: Any) -> Any:
        return literal.word_loss(regions, words, length)["loss"]

    def our_loss(regions: Any, words: Any, length: Any) -> Any:
        mask = jnp.arange(words.shape[1]) < length
        gammas = {"region_gamma": 5.0, "word_gamma": 5.0, "score_gamma": 50.0}
        return word_region_contrast(regions, words, mask, **gammas).loss

    rng = np.random.default_rng(0)
    inputs = [
        jnp.asarray(rng.standard_normal((batch, REGIONS, word_dim), np.float32)),
        jnp.asarray(rng.standard_normal((batch, tokens, word_dim), np.float32)),
        jnp.asarray(rng.integers(3, tokens, (batch, 1), np.int32, endpoint=True)),
    ]
    large = [jax.ShapeDtypeStruct((large_batch, *array.shape[1:]), array.dtype) for array in inputs]
    losses = {
        name: jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        for name, loss in (("literal", literal_loss), ("ours", our_loss))
    }
    compiled = {name: loss.lower(*inputs).compile() for name, loss in losses.items()}
    times = take_turns(
        {name: partial(seconds, partial(loss, *inputs)) for name, loss in compiled.items()}, rounds
    )
    rows = _time_rows(times, "faster")
    for row, (name, loss) in zip(rows, losses.items(), strict=True):
        row["temporary_bytes"] = costs(compiled[name]).temporary
        row["temporary_bytes_large"] = costs(loss.lower(*large).compile()).temporary
    sizes = {"batch": batch, "large_batch": large_batch, "regions": REGIONS, "tokens": tokens}
    return sizes | {"word_dim": word_dim, "rows": rows, "seconds": times}


def literal_distance(mu_a: Any, sigma_a: Any, mu_b: Any, sigma_b: Any) -> float:
    """Compute |mu_a - mu_b|^2 + tr(S_a + S_b - 2 sqrt(S_a S_b)), as Heusel et al. published it."""
    root = scipy.linalg.sqrtm(sigma_a @ sigma_b)
    return float(np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * np.real(root)))


def measure_frechet(*, dimensions: int, rounds: int) -> dict[str, Any]:
    """Time the distance of two random Gaussians (Inception's have 2,048 dimensions).

    Ours solves two symmetric eigenproblems, the literal one takes the matrix root of the formula.
    """

    def gaussian(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        correlation = rng.standard_normal((dimensions, dimensions)) / np.sqrt(dimensions)
        features = rng.standard_normal((2 * dimensions, dimensions)) @ correlation
        return features.mean(axis=0), np.cov(features, rowvar=False)

    gaussians = [*gaussian(0), *gaussian(1)]
    distances = {"literal": literal_distance, "ours": frechet_distance}
    times = take_turns(
        {name: partial(seconds, partial(each, *gaussians)) for name, each in distances.items()},
        rounds,
    )
    rows = _time_rows(times, "faster")
    for row in rows:
        row["distance"] = distances[row["formulation"]](*gaussians)
    return {"dimensions": dimensions, "rows": rows, "seconds": times}
