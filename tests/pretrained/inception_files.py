"""Random weights of Inception-v3 by a recipe that needs no file, and files of them.

Each array is drawn on its own from its name, so that whoever builds the network elsewhere, in
whatever order, draws the same ones.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from convert_weights import inception_units
from torch_writer import Tensor, save_archive

from xmcgan.pretrained.inception import NUM_CLASSES, Unit, Variant, block_specs

NORM_2015 = ("weight", "bias", "running_mean", "running_var")
NORM_KERAS = ("beta:0", "moving_mean:0", "moving_variance:0")


def layers(variant: Variant) -> Iterator[tuple[str, Unit, tuple[int, int, int, int]]]:
    """Yield name, unit and kernel shape of all units in the order of their creation."""
    stem = [unit for block, unit in inception_units(variant) if block is None]
    inputs = 3
    for unit in stem:
        yield unit.name, unit, (*unit.kernel, inputs, unit.width)
        inputs = unit.width
    for spec in block_specs(variant):
        outputs = 0
        for branch in spec.branches:
            width = inputs
            for step in branch:
                for unit in step:
                    yield f"{spec.name}.{unit.name}", unit, (*unit.kernel, width, unit.width)
                width = sum(unit.width for unit in step)
            outputs += width
        if spec.pool_unit is None:
            outputs += inputs
        else:
            unit = spec.pool_unit
            yield f"{spec.name}.{unit.name}", unit, (1, 1, inputs, unit.width)
            outputs += unit.width
        inputs = outputs


def draw(name: str, shape: tuple[int, ...], fan_in: int | None = None) -> np.ndarray:
    """Return the array of a name: kernels keep the size of activations, norms are far from 0, 1.

    Args:
        name: the array's name; decides the seed, and by its last word the distribution.
        shape: as stored.
        fan_in: inputs of an output, for kernels.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if fan_in is not None:
        return (rng.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)
    low, high = -0.5, 0.5
    if name.endswith(("running_var", "moving_variance:0")):
        low, high = 0.5, 2
    elif name.endswith(".bn.weight"):
        low, high = 0.5, 1.5
    return rng.uniform(low, high, shape).astype(np.float32)


def images(size: int) -> np.ndarray:
    """Return two scaled images of large color patches; fine noise would give equal features."""
    patches = np.random.default_rng(7).uniform(-1, 1, (2, 15, 15, 3))
    large = patches.repeat(20, axis=1).repeat(20, axis=2)
    return large[:, :size, :size].astype(np.float32)


def tensors_2015() -> dict[str, np.ndarray]:
    """Return a state dictionary in the naming of the 2015 file."""
    tensors = {}
    for prefix, _, (height, width, inputs, outputs) in layers("2015"):
        name, shape = f"{prefix}.conv.weight", (outputs, inputs, height, width)
        tensors[name] = draw(name, shape, height * width * inputs)
        for part in NORM_2015:
            tensors[f"{prefix}.bn.{part}"] = draw(f"{prefix}.bn.{part}", (outputs,))
        tensors[f"{prefix}.bn.num_batches_tracked"] = np.array(1, np.int64)
    classes = NUM_CLASSES["2015"]
    tensors["fc.weight"] = draw("fc.weight", (classes, 2048), 2048)
    tensors["fc.bias"] = draw("fc.bias", (classes,))
    return tensors


def tensors_keras(first: int = 1) -> dict[str, np.ndarray]:
    """Return arrays in the naming of the Keras file.

    Args:
        first: where the file's numbering starts; the values do not depend on it.
    """
    tensors = {}
    for number, (_, _, shape) in enumerate(layers("keras"), start=1):
        conv, norm = (f"{kind}_{number}" for kind in ("conv2d", "batch_normalization"))
        stored = f"_{number + first - 1}" if number + first > 1 else ""
        kernel = draw(f"{conv}/kernel:0", shape, int(np.prod(shape[:-1])))
        tensors[f"conv2d{stored}/conv2d{stored}/kernel:0"] = kernel
        for part in NORM_KERAS:
            name = f"batch_normalization{stored}"
            tensors[f"{name}/{name}/{part}"] = draw(f"{norm}/{part}", shape[-1:])
    classes = NUM_CLASSES["keras"]
    for part, shape, fan_in in (("kernel", (2048, classes), 2048), ("bias", (classes,), None)):
        array = draw(f"predictions/{part}:0", shape, fan_in)
        tensors[f"predictions/predictions/{part}:0"] = array
    return tensors


def write_2015(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write a .pth file."""
    return save_archive(path, {name: Tensor(tensor) for name, tensor in tensors.items()})


def write_keras(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Write an .h5 file."""
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            file.create_dataset(name, data=tensor)
    return path


def write(variant: Variant, folder: Path) -> Path:
    """Write the random weights of a variant into a folder."""
    if variant == "2015":
        return write_2015(folder / "2015.pth", tensors_2015())
    return write_keras(folder / "keras.h5", tensors_keras())
