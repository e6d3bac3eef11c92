"""Golden files of any size, with random parameters and the results of `literal`."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import literal
import numpy as np

Shapes = dict[str, tuple[int, ...]]
# In multiples of the base width. In the discriminator the stem comes first, and the last block
# keeps its size.
GENERATOR_MULTIPLIERS = {32: (16, 8, 4), 256: (16, 8, 8, 4, 2, 1)}
DISCRIMINATOR_MULTIPLIERS = {32: (4, 8, 16, 16), 256: (1, 2, 4, 8, 8, 16, 16)}


def write_golden(
    path: Path,
    *,
    image_size: int,
    gf_dim: int,
    df_dim: int,
    batch: int,
    max_tokens: int,
    embedding_dim: int,
    z_dim: int,
    gamma_for_g: float = 15,
    cond_size: int = 16,
    seed: int = 0,
) -> None:
    """Draw inputs and parameters, compute their results and write all to `path` (.npz)."""
    meta = {name: value for name, value in locals().items() if name not in ("path", "seed")}
    rng = np.random.default_rng(seed)
    arrays = draw_inputs(rng, meta)
    g_shapes, d_shapes = generator_shapes(meta), discriminator_shapes(meta)
    arrays |= literal.prefixed("generator/params", draw_params(rng, g_shapes))
    arrays |= literal.prefixed("generator/batch_stats", draw_batch_stats(rng, g_shapes))
    arrays |= literal.prefixed("discriminator/params", draw_params(rng, d_shapes))
    vectors = {
        name.replace("kernel", "u0"): rng.normal(0, 0.01, (1, shape[-1]))
        for name, shape in d_shapes.items()
        if name.endswith("kernel")
    }
    arrays |= literal.prefixed("discriminator/spectral_norm_stats", vectors)
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    arrays |= literal.expect(meta, arrays)
    arrays |= literal.prefixed("loss", small_losses(rng))
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    np.savez(path, meta=np.asarray(json.dumps(meta | {"dtype": "float32"})), **arrays)


def draw_inputs(rng: np.random.Generator, meta: dict[str, Any]) -> literal.Arrays:
    batch, tokens, dim = meta["batch"], meta["max_tokens"], meta["embedding_dim"]
    lengths = rng.integers(2, tokens, (batch, 1), endpoint=True)
    lengths[0] = tokens
    return {
        "input/image": rng.uniform(0, 1, (batch, meta["image_size"], meta["image_size"], 3)),
        "input/embedding": rng.normal(0, 1, (batch, tokens, dim)),
        "input/max_len": lengths,
        "input/sentence_embedding": rng.normal(0, 0.3, (batch, dim)),
        "input/z": rng.normal(0, 1, (batch, meta["z_dim"])),
    }


def draw_params(rng: np.random.Generator, shapes: Shapes) -> literal.Arrays:
    """Draw kernels as glorot normal does, and biases that are not zero."""

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return rng.normal(0, 0.1, shape)
        fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        return rng.normal(0, math.sqrt(2 / fans), shape)

    return {name: draw(shape) for name, shape in shapes.items()}


def draw_batch_stats(rng: np.random.Generator, g_shapes: Shapes) -> literal.Arrays:
    """Draw running statistics for each norm, of the size of its gamma's bias."""
    stats = {}
    for name, shape in g_shapes.items():
        if "BatchNorm" in name and name.endswith("_0/bias"):
            norm = name.rpartition("_0/bias")[0].rpartition("/")[0] + "/BatchNorm_0"
            stats[f"{norm}/mean"] = rng.normal(0, 0.1, shape)
            stats[f"{norm}/var"] = rng.uniform(0.5, 1.5, shape)
    return stats


def small_losses(rng: np.random.Generator) -> literal.Arrays:
    """Compute the two contrastive losses on small arrays."""
    a, b = rng.normal(size=(2, 5, 12)).astype(np.float32)
    regions, words = rng.normal(size=(5, 9, 12)), rng.normal(size=(5, 6, 12))
    regions, words = regions.astype(np.float32), words.astype(np.float32)
    length = np.array([[6], [2], [4], [3], [5]])
    with jax.default_matmul_precision("highest"):
        contrast = jax.jit(literal.contrastive)(a, b)
        word = jax.jit(literal.word_loss)(regions, words, length)
        grads = jax.grad(lambda r, w: literal.word_loss(r, w, length)["loss"], argnums=(0, 1))
        grad_regions, grad_words = jax.jit(grads)(regions, words)
    given = {"contrastive/a": a, "contrastive/b": b}
    given |= {"word/regions": regions, "word/words": words, "word/length": length}
    given |= {"word/grad_regions": grad_regions, "word/grad_words": grad_words}
    return given | literal.prefixed("contrastive", contrast) | literal.prefixed("word", word)


def generator_shapes(meta: dict[str, Any]) -> Shapes:
    dim, z, gf = meta["embedding_dim"], meta["z_dim"], meta["gf_dim"]
    size, channels = 4, 16 * gf
    layers: Shapes = {"Dense_0": (dim, z), "Dense_1": (z, 4 * 4 * channels)}
    spatial = 0
    for index, multiplier in enumerate(GENERATOR_MULTIPLIERS[meta["image_size"]]):
        if size < meta["cond_size"]:
            name, norm, modulation = f"GenBlock_{index}", "ConditionalBatchNorm", "Dense"
            kernel: tuple[int, ...] = (2 * z,)
        else:
            if size == meta["cond_size"]:
                layers["Conv_0"] = (1, 1, channels, dim)
            name, norm, modulation = (
                f"GenSpatialBlock_{spatial}",
                "LocalConditionalBatchNorm",
                "Conv",
            )
            kernel = (1, 1, dim + 2 * z)
            spatial += 1
        out = multiplier * gf
        for j, width in enumerate((channels, out)):
            layers[f"{name}/{norm}_{j}/{modulation}_0"] = (*kernel, width)
            layers[f"{name}/{norm}_{j}/{modulation}_1"] = (*kernel, width)
        layers[f"{name}/Conv_0"] = (3, 3, channels, out)
        layers[f"{name}/Conv_1"] = (3, 3, out, out)
        layers[f"{name}/Conv_2"] = (1, 1, channels, out)
        size, channels = 2 * size, out
    for j in range(2):
        layers[f"LocalConditionalBatchNorm_0/Conv_{j}"] = (1, 1, dim + 2 * z, channels)
    layers["Conv_1"] = (3, 3, channels, 3)
    return with_biases(layers)


def discriminator_shapes(meta: dict[str, Any]) -> Shapes:
    size, channels, layers = meta["image_size"], 3, {}
    multipliers = DISCRIMINATOR_MULTIPLIERS[size]
    for index, multiplier in enumerate(multipliers):
        name = f"DiscBlock_{index - 1}" if index else "DiscOptimizedBlock_0"
        downsample, out = index < len(multipliers) - 1, multiplier * meta["df_dim"]
        layers[f"{name}/SpectralConv_0"] = (3, 3, channels, out)
        layers[f"{name}/SpectralConv_1"] = (3, 3, out, out)
        if downsample or channels != out:
            layers[f"{name}/SpectralConv_2"] = (1, 1, channels, out)
        size, channels = size // 2 if downsample else size, out
        if size == meta["cond_size"]:
            layers["SpectralConv_0"] = (1, 1, channels, meta["embedding_dim"])
    layers["SpectralDense_0"] = (channels, 1)
    layers["SpectralDense_1"] = (meta["embedding_dim"], channels)
    return with_biases(layers)


def with_biases(layers: Shapes) -> Shapes:
    kernels = {f"{name}/kernel": shape for name, shape in layers.items()}
    return kernels | {f"{name}/bias": shape[-1:] for name, shape in layers.items()}
