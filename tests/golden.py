"""Golden files of any size, with random parameters and the results of `literal`."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmcgan.benchmarks import literal
from xmcgan.benchmarks.literal import Arrays, Network, under
from xmcgan.benchmarks.literal_params import Sizes, draw_arrays


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
    arrays |= draw_arrays(rng, Sizes(**{name: meta[name] for name in Sizes._fields}))
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    arrays |= expect(meta, arrays)
    arrays |= prefixed("loss", small_losses(rng))
    arrays = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
    np.savez(path, meta=np.asarray(json.dumps(meta | {"dtype": "float32"})), **arrays)


def draw_inputs(rng: np.random.Generator, meta: dict[str, Any]) -> Arrays:
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


def small_losses(rng: np.random.Generator) -> Arrays:
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
    return given | prefixed("contrastive", contrast) | prefixed("word", word)


@partial(jax.jit, static_argnums=(1, 2))
def networks_and_gradients(arrays: Arrays, gamma: float, cond_size: int) -> Arrays:
    """Return everything under `expect/` from `input/`, `generator/` and `discriminator/`."""
    inputs, g_stats = under(arrays, "input"), under(arrays, "generator/batch_stats")
    d_stats = under(arrays, "discriminator/spectral_norm_stats")

    def run(g_params: Arrays, d_params: Arrays) -> tuple[Arrays, Network, Network]:
        g, d = Network(g_params, g_stats, {}, True), Network(d_params, d_stats, {}, True)
        return literal.losses(g, d, inputs, gamma, cond_size), g, d

    g_params, d_params = under(arrays, "generator/params"), under(arrays, "discriminator/params")
    d_grad = jax.grad(lambda params: run(g_params, params)[0]["d_loss"])(d_params)
    g_grad = jax.grad(lambda params: run(params, d_params)[0]["g_loss"])(g_params)
    found, g, d = run(g_params, d_params)
    still = Network(g_params, g_stats, {}, False)
    expected = {
        "step/d_loss": found.pop("d_loss"),
        "step/g_loss": found.pop("g_loss"),
        "generator_train/image": found.pop("fake"),
        "generator_eval/image": literal.generator(still, inputs, gamma),
    }
    contrasts = {name.replace("accuracy", "acc"): value for name, value in found.items()}
    expected |= prefixed("discriminator_train", contrasts)
    expected |= prefixed("generator_train/batch_stats", g.new_stats)
    expected |= prefixed("discriminator_train/spectral_norm_stats", d.new_stats)
    return expected | prefixed("step/d_grad", d_grad) | prefixed("step/g_grad", g_grad)


def prefixed(prefix: str, arrays: Arrays) -> Arrays:
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def expect(meta: dict[str, Any], arrays: Mapping[str, Any]) -> Arrays:
    """Return what a golden file of these inputs and parameters has under `expect/`."""
    given = ("input/", "generator/", "discriminator/")
    arrays = {name: value for name, value in arrays.items() if name.startswith(given)}
    with jax.default_matmul_precision("highest"):
        expected = networks_and_gradients(arrays, meta["gamma_for_g"], meta["cond_size"])
    return prefixed("expect", jax.device_get(expected))
