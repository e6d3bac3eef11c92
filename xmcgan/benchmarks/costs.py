"""What a compiled step costs by the compiler's own count: work and memory, without running it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xmcgan.benchmarks.formulations import Formulation
from xmcgan.benchmarks.timing import seconds


class Costs(NamedTuple):
    """Hold the costs of a compiled program.

    Attributes:
        flops: operations, additions and multiplications each.
        temporary: bytes that are held only while it runs.
        arguments: bytes of what goes in: a step's state and batch. What comes out of a step takes
            the same place.
    """

    flops: float
    temporary: int
    arguments: int


def costs(compiled: Any) -> Costs:
    """Read the compiler's analysis of a compiled program.

    XLA counts the program after its optimisations: what is computed twice in the source and once
    in the program counts once, what nobody asks for counts nothing. Of a convolution it counts
    the products of a kernel's element and an input's element: padding and the zeros between
    the elements of a dilated operand do not count, so that a 4x4 convolution of stride 2 has 16
    products an output, and so has its backward pass. The body of a loop counts once, however often
    it runs: the word loss of a batch so large that captions are taken in turns, and
    microbatches, are undercounted.

    Args:
        compiled: of `jax.jit(f).lower(...).compile()`.
    """
    memory = compiled.memory_analysis()
    flops = compiled.cost_analysis()["flops"]
    return Costs(flops, memory.temp_size_in_bytes, memory.argument_size_in_bytes)


def measure_costs(
    config: ConfigDict, word_dim: int, formulations: Sequence[Formulation]
) -> dict[str, Any]:
    """Compile one step of each formulation from shapes alone, and read its costs.

    Args:
        config: of the sizes.
        word_dim: size of a word's feature.
        formulations: the first is what the others are compared with.

    Returns:
        The sizes, and of each formulation GFLOP an image of the generator's batch, bytes, and
        its share of the first one's.
    """
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
    """Measure the best rate of a large matrix product here.

    Args:
        dtype: of the matrices.
        rounds: how often to try.

    Returns:
        Operations a second.
    """
    # Large enough for the machine to be at its best, small enough for it to take no minute.
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((n, n), 1 / n, dtype)
    product = jax.jit(jnp.matmul)
    return 2 * n**3 / min(seconds(lambda: product(a, a)) for _ in range(rounds + 1))
