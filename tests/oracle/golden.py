"""Golden files: the official networks and losses on given inputs, their parameters and results.

`write_golden` computes one of any size with the literal formulation in float64. Names and shapes
are those of the official code's modules; `golden_name` maps the leaves of our trees to them.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from oracle import literal
from oracle.literal import Arrays, Network, under
from oracle.params import Sizes, draw_arrays

from xmcgan.errors import DataError


class Golden:
    """Fields of `meta`, and arrays by name; `source` is named in errors."""

    def __init__(self, meta: Mapping[str, Any], arrays: Arrays, source: object = "arrays") -> None:
        self.arrays, self.source = arrays, source
        self.meta = {name: int(meta[name]) for name in Sizes._fields}
        self.gamma = float(meta["gamma_for_g"])
        if min(*self.meta.values(), self.gamma) <= 0:
            raise ValueError("meta has sizes that are not positive")

    @classmethod
    def read(cls, path: Path) -> "Golden":
        """Read a file.

        Raises:
            DataError: It is missing, or no .npz file with a `meta`.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            return cls(json.loads(str(arrays.pop("meta"))), arrays, path)
        except FileNotFoundError:
            raise DataError(f"no golden file at {path}") from None
        except (KeyError, TypeError, ValueError, OSError, EOFError, BadZipFile) as error:
            raise DataError(f"{path} is not a golden file: {error}") from None

    def get(self, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
        """Return an array of a given shape; None leaves the size of an axis open.

        Raises:
            DataError: The file lacks the array, or it has another shape.
        """
        if name not in self.arrays:
            raise DataError(f"{self.source} lacks {name}")
        found = self.arrays[name].shape
        wanted = tuple(
            size if size is not None else actual for size, actual in zip(shape, found, strict=False)
        )
        if found != wanted or len(found) != len(shape):
            raise DataError(f"{self.source}: {name} has shape {found}, not {shape}")
        return self.arrays[name]

    def blocks(self, network: str) -> list[str]:
        """Return the official names of a network's blocks in the order of data."""
        size, cond_size = self.meta["image_size"], self.meta["cond_size"]
        if network == "discriminator":  # all but the last halve the size, down to 4 x 4
            rest = range(math.ceil(math.log2(size / 4)))
            return ["DiscOptimizedBlock_0", *(f"DiscBlock_{i}" for i in rest)]
        count, first_spatial = (math.ceil(math.log2(s / 4)) for s in (size, cond_size))
        return [
            f"GenBlock_{i}" if i < first_spatial else f"GenSpatialBlock_{i - first_spatial}"
            for i in range(count)
        ]

    def multipliers(self, network: str) -> tuple[int, ...]:
        """Return the widths of a network's blocks in multiples of its base width."""
        first, width = {
            "generator": ("Conv_0", self.meta["gf_dim"]),
            "discriminator": ("SpectralConv_0", self.meta["df_dim"]),
        }[network]
        biases = [f"{network}/params/{block}/{first}/bias" for block in self.blocks(network)]
        return tuple(self.get(name, (None,)).size // width for name in biases)

    def tree(self, prefix: str, network: str, like: Any) -> Any:
        """Return the arrays under `prefix/` as a tree of our names.

        Args:
            like: The same tree as arrays or shapes. Kernels of 1x1 convolutions are matrices in it.

        Raises:
            DataError: An array is missing, misshapen, or has no counterpart in `like`.
        """
        blocks, unknown = self.blocks(network), set(under(self.arrays, prefix))

        def take(path: Any, leaf: Any) -> np.ndarray:
            name = golden_name(jax.tree_util.keystr(path, simple=True, separator="/"), blocks)
            unknown.discard(name)
            is_matrix = len(leaf.shape) == 2 and "Norm_" in name and "/Conv_" in name
            shape = (1, 1, *leaf.shape) if is_matrix else leaf.shape
            return self.get(f"{prefix}/{name}", shape).reshape(leaf.shape)

        found = jax.tree_util.tree_map_with_path(take, like)
        if unknown:
            raise DataError(f"{self.source}: {prefix}/{min(unknown)} is no array of this network")
        return found

    def state(self, shapes: Any) -> dict[str, Any]:
        """Return fields of a training state; `shapes` has trees of theirs by the same names."""
        fields = {
            "g_params": ("generator/params", "generator"),
            "g_batch_stats": ("generator/batch_stats", "generator"),
            "d_params": ("discriminator/params", "discriminator"),
            "d_vectors": ("discriminator/spectral_norm_stats", "discriminator"),
        }
        return {
            field: self.tree(prefix, network, getattr(shapes, field))
            for field, (prefix, network) in fields.items()
        }


LAYERS = {
    "sentence": "Dense_0", "first_map": "Dense_1", "query": "Conv_0", "to_rgb": "Conv_1",
    "conv_1": "Conv_0", "conv_2": "Conv_1", "shortcut": "Conv_2",
}  # fmt: skip
SPECTRAL_LAYERS = {
    "logit": "SpectralDense_0", "sentence": "SpectralDense_1", "regions": "SpectralConv_0",
    "conv_1": "SpectralConv_0", "conv_2": "SpectralConv_1", "shortcut": "SpectralConv_2",
}  # fmt: skip


def golden_name(path: str, blocks: list[str]) -> str:
    """Return the official name of a leaf of our trees, such as `block_0/conv_1/kernel`.

    Args:
        blocks: Official names of the network's blocks, from its input to its output.
    """
    spectral = blocks[0].startswith("Disc")
    *layers, leaf = path.split("/")
    names = []
    norm, modulation = "LocalConditionalBatchNorm", "Conv"
    for layer in layers:
        kind, _, number = layer.rpartition("_")
        if kind == "block":
            names.append(blocks[int(number)])
            if names[0].startswith("GenBlock"):
                norm, modulation = "ConditionalBatchNorm", "Dense"
        elif layer == "last_norm":
            names.append(f"{norm}_0")
        elif kind == "norm":
            names.append(f"{norm}_{int(number) - 1}")
        elif layer == "norm":  # the running statistics inside a conditional norm
            names.append("BatchNorm_0")
        elif layer in ("gamma", "beta"):
            names.append(f"{modulation}_{('gamma', 'beta').index(layer)}")
        else:
            names.append((SPECTRAL_LAYERS if spectral else LAYERS)[layer])
    return "/".join([*names, "u0" if leaf == "u" else leaf])


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
    with jax.enable_x64(True):  # of the float32 inputs and parameters that the file holds
        arrays |= expect(meta, {name: value.astype(np.float64) for name, value in arrays.items()})
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

    def draw(*shape: int) -> np.ndarray:
        # What float32 can store, in the type in which the losses compute.
        return rng.normal(size=shape).astype(np.float32).astype(float)

    a, b = draw(2, 5, 12)
    regions, words = draw(5, 9, 12), draw(5, 6, 12)
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
