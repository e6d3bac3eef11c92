"""The word loss and its gradient: ours through Gram matrices, the literal one through contexts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmcgan.benchmarks import literal
from xmcgan.benchmarks.costs import costs
from xmcgan.benchmarks.timing import median_ratio, medians, seconds, take_turns
from xmcgan.losses.contrastive import word_region_contrast

REGIONS = 256


def measure_words(
    *, batch: int, large_batch: int, tokens: int, word_dim: int, rounds: int
) -> dict[str, Any]:
    """Time the word loss with its gradient, and ask for its memory at a larger batch.

    Args:
        batch: captions and images of the timed loss.
        large_batch: of the one that is compiled only.
        tokens: length of a caption.
        word_dim: size of a word's feature.
        rounds: turns of each.

    Returns:
        The sizes, each turn's seconds, and of each formulation its median, how many times as
        fast as the literal one it is, and its temporary bytes at both batches.
    """
    losses = {"literal": jax.jit(_literal), "ours": jax.jit(_ours)}
    inputs = _draw(batch, tokens, word_dim)
    compiled = {name: loss.lower(*inputs).compile() for name, loss in losses.items()}
    large = [jax.ShapeDtypeStruct((large_batch, *array.shape[1:]), array.dtype) for array in inputs]
    times = take_turns(
        {name: partial(seconds, partial(loss, *inputs)) for name, loss in compiled.items()}, rounds
    )
    median = medians(times)
    rows = [
        {
            "formulation": name,
            "seconds": median[name],
            "faster": median_ratio(times, "literal", name),
            "temporary_bytes": costs(compiled[name]).temporary,
            "temporary_bytes_large": costs(loss.lower(*large).compile()).temporary,
        }
        for name, loss in losses.items()
    ]
    sizes = {"batch": batch, "large_batch": large_batch, "regions": REGIONS, "tokens": tokens}
    return sizes | {"word_dim": word_dim, "rows": rows, "seconds": times}


def _literal(regions: Any, words: Any, length: Any) -> Any:
    def loss_fn(regions: Any, words: Any) -> Any:
        return literal.word_loss(regions, words, length)["loss"]

    return jax.value_and_grad(loss_fn, argnums=(0, 1))(regions, words)


def _ours(regions: Any, words: Any, length: Any) -> Any:
    mask = jnp.arange(words.shape[1]) < length

    def loss_fn(regions: Any, words: Any) -> Any:
        contrast = word_region_contrast(
            regions, words, mask, region_gamma=5.0, word_gamma=5.0, score_gamma=50.0
        )
        return contrast.loss

    return jax.value_and_grad(loss_fn, argnums=(0, 1))(regions, words)


def _draw(batch: int, tokens: int, word_dim: int) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    regions = rng.standard_normal((batch, REGIONS, word_dim), np.float32)
    words = rng.standard_normal((batch, tokens, word_dim), np.float32)
    length = rng.integers(3, tokens, (batch, 1), np.int32, endpoint=True)
    return [jnp.asarray(array) for array in (regions, words, length)]
