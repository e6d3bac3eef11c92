"""How the sentences of a data set vary, for the generator that whitens them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from xmcgan.training.state import TrainState
from xmcgan.utils.mesh import put

MOST_CAPTIONS = 4096
_BATCH = 64

Tokenize = Callable[[Sequence[str]], tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]]


def with_whitening(
    state: TrainState, source: Any, tokenize: Tokenize, encode: Callable[..., Any], seed: int
) -> TrainState:
    """Set the statistics by which the generator whitens sentences; see `sentence_statistics`."""
    found = sentence_statistics(source, tokenize, encode, seed)
    old = state.g_batch_stats["whitening"]
    placed = {name: put(value, old[name].sharding) for name, value in found.items()}
    return state.replace(
        g_batch_stats=state.g_batch_stats | {"whitening": placed},
        ema_batch_stats=state.ema_batch_stats | {"whitening": jax.tree.map(jnp.copy, placed)},
    )


def sentence_statistics(
    source: Any, tokenize: Tokenize, encode: Callable[..., Any], seed: int
) -> dict[str, Float[np.ndarray, "..."]]:
    """Return what whitens the sentences of at most `MOST_CAPTIONS` captions of a data set."""
    rng = np.random.default_rng(seed)
    indices = rng.choice(len(source), min(MOST_CAPTIONS, len(source)), replace=False)
    captions = [str(rng.choice(source[int(index)].captions)) for index in indices]
    sentences = []
    for start in range(0, len(captions), _BATCH):
        part = captions[start : start + _BATCH]
        padded = part + part[-1:] * (_BATCH - len(part))  # one shape, compiled once
        sentences.append(np.asarray(encode(*tokenize(padded)))[: len(part)])
    return whitening(np.concatenate(sentences))


def whitening(sentences: Float[np.ndarray, "n e"]) -> dict[str, Float[np.ndarray, "..."]]:
    """Return the mean, and the symmetric matrix that makes all main directions vary alike.

    It is (C + c I)^(-1/2), with C the covariance and c the mean variance of a dimension: directions
    that vary more come to about unit variance, those that hardly vary stay small.
    """
    wide = sentences.astype(np.float64)
    mean = wide.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(wide, rowvar=False, bias=True))
    scales = 1 / np.sqrt(np.maximum(values, 0) + max(values.mean(), 1e-12))
    matrix = (vectors * scales) @ vectors.T
    return {"mean": mean.astype(np.float32), "matrix": matrix.astype(np.float32)}
