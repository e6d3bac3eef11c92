"""Parameters of the official architecture at any size: their names, their shapes, a first draw.

The names are those of a golden file, which `oracle.golden` maps to ours.
"""

import math
from typing import NamedTuple

import numpy as np

Shapes = dict[str, tuple[int, ...]]
# In multiples of the base width. In the discriminator the stem comes first, and the last block
# keeps its size.
GENERATOR_MULTIPLIERS = {
    32: (16, 8, 4),
    64: (16, 8, 4, 2),
    128: (16, 8, 4, 2, 1),
    256: (16, 8, 8, 4, 2, 1),
    512: (16, 8, 8, 4, 2, 1, 1),
}
DISCRIMINATOR_MULTIPLIERS = {
    32: (4, 8, 16, 16),
    64: (2, 4, 8, 16, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
    512: (1, 1, 2, 4, 8, 8, 16, 16),
}


class Sizes(NamedTuple):
    """The sizes that the parameters follow from, by a golden file's names.

    Attributes:
        image_size: height and width of the image in pixels, 32 to 512.
        gf_dim: the generator's base width.
        df_dim: the discriminator's.
        embedding_dim: size of a word's feature, and of a sentence's.
        z_dim: size of the noise.
        cond_size: side of the maps where regions meet words.
    """

    image_size: int
    gf_dim: int
    df_dim: int
    embedding_dim: int
    z_dim: int
    cond_size: int


def array_shapes(sizes: Sizes) -> Shapes:
    """List both networks' parameters, running statistics and spectral-norm vectors."""
    g_shapes, d_shapes = generator_shapes(sizes), discriminator_shapes(sizes)
    trees = {
        "generator/params": g_shapes,
        "generator/batch_stats": _running_statistics(g_shapes),
        "discriminator/params": d_shapes,
        "discriminator/spectral_norm_stats": _power_iteration_vectors(d_shapes),
    }
    return {f"{tree}/{name}": shape for tree in trees for name, shape in trees[tree].items()}


def draw_arrays(rng: np.random.Generator, sizes: Sizes) -> dict[str, np.ndarray]:
    """Draw everything that `array_shapes` lists, float32.

    Kernels are drawn as glorot normal does; biases and running statistics are not those of a
    fresh network, so that none of them can be left out unseen.
    """
    return {name: _draw(rng, name, shape) for name, shape in array_shapes(sizes).items()}


def generator_shapes(sizes: Sizes) -> Shapes:
    """List the generator's parameters."""
    dim, z, gf = sizes.embedding_dim, sizes.z_dim, sizes.gf_dim
    size, channels = 4, 16 * gf
    layers: Shapes = {"Dense_0": (dim, z), "Dense_1": (z, 4 * 4 * channels)}
    spatial = 0
    for index, multiplier in enumerate(GENERATOR_MULTIPLIERS[sizes.image_size]):
        if size < sizes.cond_size:
            name, norm, modulation = f"GenBlock_{index}", "ConditionalBatchNorm", "Dense"
            kernel: tuple[int, ...] = (2 * z,)
        else:
            if size == sizes.cond_size:
                layers["Conv_0"] = (1, 1, channels, dim)
            name, norm = f"GenSpatialBlock_{spatial}", "LocalConditionalBatchNorm"
            modulation, kernel = "Conv", (1, 1, dim + 2 * z)
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
    return _with_biases(layers)


def discriminator_shapes(sizes: Sizes) -> Shapes:
    """List the discriminator's parameters."""
    size, channels = sizes.image_size, 3
    layers: Shapes = {}
    multipliers = DISCRIMINATOR_MULTIPLIERS[size]
    for index, multiplier in enumerate(multipliers):
        name = f"DiscBlock_{index - 1}" if index else "DiscOptimizedBlock_0"
        downsample, out = index < len(multipliers) - 1, multiplier * sizes.df_dim
        layers[f"{name}/SpectralConv_0"] = (3, 3, channels, out)
        layers[f"{name}/SpectralConv_1"] = (3, 3, out, out)
        if downsample or channels != out:
            layers[f"{name}/SpectralConv_2"] = (1, 1, channels, out)
        size, channels = size // 2 if downsample else size, out
        if size == sizes.cond_size and "SpectralConv_0" not in layers:
            layers["SpectralConv_0"] = (1, 1, channels, sizes.embedding_dim)
    layers["SpectralDense_0"] = (channels, 1)
    layers["SpectralDense_1"] = (sizes.embedding_dim, channels)
    return _with_biases(layers)


def _with_biases(layers: Shapes) -> Shapes:
    kernels = {f"{name}/kernel": shape for name, shape in layers.items()}
    return kernels | {f"{name}/bias": shape[-1:] for name, shape in layers.items()}


def _running_statistics(g_shapes: Shapes) -> Shapes:
    """List mean and variance of each norm, of the size of its gamma's bias."""
    stats: Shapes = {}
    for name, shape in g_shapes.items():
        if "BatchNorm" in name and name.endswith("_0/bias"):
            norm = name.removesuffix("/bias").rpartition("/")[0] + "/BatchNorm_0"
            stats[f"{norm}/mean"] = stats[f"{norm}/var"] = shape
    return stats


def _power_iteration_vectors(d_shapes: Shapes) -> Shapes:
    kernels = {name: shape for name, shape in d_shapes.items() if name.endswith("/kernel")}
    return {name.replace("kernel", "u0"): (1, shape[-1]) for name, shape in kernels.items()}


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = name.rpartition("/")[2]
    if kind == "var":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    scale = {"bias": 0.1, "mean": 0.1, "u0": 0.01}.get(kind)
    if scale is None:
        fans = math.prod(shape[:-2]) * (shape[-2] + shape[-1])
        scale = math.sqrt(2 / fans)
    return rng.normal(0, scale, shape).astype(np.float32)
