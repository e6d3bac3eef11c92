#!/usr/bin/env python
"""Convert published weights, once, to the safetensors that the package reads.

python scripts/convert_weights.py resnet50 resnet_pretrained.npy
python scripts/convert_weights.py resnet50 resnet50.pth --out mine.safetensors
python scripts/convert_weights.py clip clip-vit-base-patch32/pytorch_model.bin

Needs neither PyTorch nor TensorFlow, and runs nothing that a file holds. The
result keeps the original's sha256: scores are verified and recorded by it.
Exit status: 0 done, 2 a mistake (named).
"""

import argparse
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import safetensors.numpy
from weight_formats.h5_files import read_h5
from weight_formats.numpy_files import read_array_tree
from weight_formats.torch_files import read_torch

from xmcgan.errors import WeightsError, did_you_mean, run_cli
from xmcgan.pretrained import resnet, vgg
from xmcgan.pretrained.efficientnet_lite import SCALES, EfficientNetLite, Scale, block_specs
from xmcgan.pretrained.inception import STEM, InceptionV3, Unit, Variant
from xmcgan.pretrained.inception import block_specs as inception_blocks
from xmcgan.pretrained.params import Params, Tensors, check_params, flatten
from xmcgan.pretrained.weights import content_sha256, read_safetensors
from xmcgan.utils.download import sha256_of
from xmcgan.utils.files import atomic_file


def read_keras(path: Path) -> dict[str, np.ndarray]:
    """Return arrays as LAYER/NAME from "LAYER/LAYER/NAME:0", or without the ":0" of Keras 2."""
    return {
        "/".join(name.removesuffix(":0").split("/")[-2:]): array
        for name, array in read_h5(path).items()
    }


READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".pth": read_torch,
    ".pt": read_torch,
    ".bin": read_torch,
    ".npy": read_array_tree,
    ".h5": read_keras,
    ".safetensors": lambda path: read_safetensors(path)[0],
}


class Naming(NamedTuple):
    """Names of a convolution `conv` and its batch norm `norm` in one kind of file."""

    kernel: str
    scale: str
    bias: str
    mean: str
    variance: str


TORCH = Naming(
    "{conv}.weight", "{norm}.weight", "{norm}.bias", "{norm}.running_mean", "{norm}.running_var"
)
FLAX = Naming(
    "params/{conv}/kernel",
    "params/{norm}/scale",
    "params/{norm}/bias",
    "batch_stats/{norm}/mean",
    "batch_stats/{norm}/var",
)
KERAS = Naming(
    "{conv}/kernel",
    "{norm}/gamma",
    "{norm}/beta",
    "{norm}/moving_mean",
    "{norm}/moving_variance",
)


def fold(
    tensors: Tensors, naming: Naming, conv: str, norm: str, epsilon: float, dtype: type = np.float32
) -> dict[str, np.ndarray]:
    """Take a convolution with its batch norm, folded into kernel (h, w, in, out) and bias.

    Exact algebra: with running statistics, batch norm is x * s + (bias - mean * s),
    s = scale / sqrt(variance + epsilon), and x * s is the convolution with kernel * s.
    """
    kernel, scale, bias, mean, variance = (
        tensors.take(pattern.format(conv=conv, norm=norm)).astype(dtype) for pattern in naming
    )
    if naming is TORCH:
        kernel = kernel.transpose(2, 3, 1, 0)
    if not kernel.shape[-1:] == scale.shape == bias.shape == mean.shape == variance.shape:
        raise WeightsError(
            f"{tensors.path} does not fit the network: wrong shape of {conv} or {norm}: "
            f"kernel {kernel.shape}, norm {scale.shape}"
        )
    factor = scale / np.sqrt(variance + np.float32(epsilon))
    folded = {"kernel": np.ascontiguousarray(kernel * factor), "bias": bias - mean * factor}
    return {name: value.astype(np.float32, copy=False) for name, value in folded.items()}


def efficientnet_params(tensors: Tensors, scale: Scale) -> Params:
    """Return the parameters of an EfficientNet-Lite in PyTorch's naming."""

    def folded(conv: str, norm: str) -> dict[str, np.ndarray]:
        return fold(tensors, TORCH, conv, norm, epsilon=1e-3)

    params: Params = {
        "stem": folded("_conv_stem", "_bn0"),
        "head": folded("_conv_head", "_bn1"),
        "logits": tensors.dense("_fc"),
    }
    for index, spec in enumerate(block_specs(scale)):
        block = f"_blocks.{index}"
        params[f"block_{index}"] = {
            "depthwise": folded(f"{block}._depthwise_conv", f"{block}._bn1"),
            "project": folded(f"{block}._project_conv", f"{block}._bn2"),
        }
        if spec.expansion > 1:
            expand = folded(f"{block}._expand_conv", f"{block}._bn0")
            params[f"block_{index}"]["expand"] = expand
    return params


def resnet_params(tensors: Tensors, *, official: bool) -> Params:
    """Return the parameters of a ResNet-50 in the official XMC-GAN or in torchvision's naming."""
    naming = FLAX if official else TORCH

    def folded(conv: str, norm: str) -> dict[str, np.ndarray]:
        return fold(tensors, naming, conv, norm, epsilon=1e-5)

    if official:
        head = {name: tensors.take(f"params/head/{name}") for name in ("kernel", "bias")}
        params: Params = {"stem": folded("init_conv", "init_bn"), "head": head}
    else:
        params = {"stem": folded("conv1", "bn1"), "head": tensors.dense("fc")}
    for spec in resnet.block_specs():
        block = f"stage{spec.stage}/block{spec.index}/"
        shortcut = ("proj_conv", "proj_bn")
        if not official:
            block = f"layer{spec.stage}.{spec.index - 1}."
            shortcut = ("downsample.0", "downsample.1")
        convs = {f"conv{n}": (f"conv{n}", f"bn{n}") for n in (1, 2, 3)}
        if spec.index == 1:
            convs["shortcut"] = shortcut
        params[spec.name] = {
            name: folded(block + conv, block + norm) for name, (conv, norm) in convs.items()
        }
    return params


def vgg_params(tensors: Tensors, depths: Sequence[int]) -> Params:
    """Return the parameters of a VGG in torchvision's naming: the places in two sequences."""
    params: Params = {}
    place = 0
    for stage, depth in enumerate(depths, start=1):
        for index in range(1, depth + 1):
            layer = f"features.{place}"
            kernel, bias = tensors.take(f"{layer}.weight"), tensors.take(f"{layer}.bias")
            if kernel.ndim != 4:
                raise WeightsError(f"{tensors.path} does not fit the network: {layer} is no VGG's")
            kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
            params[f"conv{stage}_{index}"] = {"kernel": kernel, "bias": bias}
            place += 2  # its ReLU
        place += 1  # the pooling
    for place, name in ((0, "fc1"), (3, "fc2"), (6, "logits")):
        params[name] = tensors.dense(f"classifier.{place}")
    # PyTorch flattens the map of 7x7 positions channel by channel.
    kernel = params["fc1"]["kernel"]
    if len(kernel) % 49:
        raise WeightsError(f"{tensors.path} does not fit the network: classifier.0 is no VGG's")
    by_place = kernel.reshape(-1, 7, 7, kernel.shape[-1]).transpose(1, 2, 0, 3)
    params["fc1"]["kernel"] = by_place.reshape(kernel.shape)
    return params


def inception_units(variant: Variant) -> Iterator[tuple[str | None, Unit]]:
    """Yield all units with their block's name, in the order that keras.applications numbers."""
    yield from ((None, unit) for group in STEM for unit in group)
    for spec in inception_blocks(variant):
        for branch in spec.branches:
            yield from ((spec.name, unit) for step in branch for unit in step)
        if spec.pool_unit is not None:
            yield spec.name, spec.pool_unit


def inception_params(tensors: Tensors, variant: Variant) -> Params:
    """Return the parameters of an Inception-v3, from the file of 2015 or from that of Keras."""
    units = list(inception_units(variant))
    if variant == "2015":
        naming = TORCH
        prefixes = [unit.name if block is None else f"{block}.{unit.name}" for block, unit in units]
        names = [(f"{prefix}.conv", f"{prefix}.bn") for prefix in prefixes]
        head = {"kernel": np.ascontiguousarray(tensors.take("fc.weight").T)}
        tensors.take("fc.bias")  # the inception score of 2015 is defined without it
    else:
        naming = KERAS
        convs = _keras_layers(tensors, "conv2d", len(units))
        norms = _keras_layers(tensors, "batch_normalization", len(units))
        names = list(zip(convs, norms, strict=True))
        for norm, (_, unit) in zip(norms, units, strict=True):
            # Keras trained its batch norms without a scale: one.
            tensors.setdefault(f"{norm}/gamma", np.ones(unit.width, np.float32))
        head = {name: tensors.take(f"predictions/{name}") for name in ("kernel", "bias")}
    params: Params = {"logits": head}
    for (block, unit), (conv, norm) in zip(units, names, strict=True):
        # Folded in float64: features agree to 1e-5 with other programs.
        folded = fold(tensors, naming, conv, norm, epsilon=1e-3, dtype=np.float64)
        (params if block is None else params.setdefault(block, {}))[unit.name] = folded
    for spec in inception_blocks(variant):
        merged = [params[spec.name].pop(unit.name) for unit in spec.merged()]
        params[spec.name]["merged"] = {
            name: np.concatenate([unit[name] for unit in merged], axis=-1)
            for name in ("kernel", "bias")
        }
    return params


def _keras_layers(tensors: Tensors, prefix: str, expected: int) -> list[str]:
    """Return the layers of one kind in the order of their creation, which their numbers tell.

    The first number depends on what else had been created before.
    """
    layers = {name.split("/")[0] for name in tensors}
    numbers = {
        name: int(match[1] or 0)
        for name in layers
        if (match := re.fullmatch(rf"{prefix}(?:_(\d+))?", name))
    }
    if len(numbers) != expected:
        raise WeightsError(
            f"{tensors.path} does not fit the network: it has {len(numbers)} layers named "
            f"{prefix}_N where {expected} are expected"
        )
    return sorted(numbers, key=numbers.__getitem__)


class Network(NamedTuple):
    """How a network is converted: the module that must fit, and its parameters from a file's."""

    module: nn.Module
    to_params: Callable[[Tensors], Params]


def find_network(name: str, suffix: str) -> Network | None:
    """Return how a network is converted from a kind of file; None keeps tensors as they are."""
    if name in ("bert", "clip"):  # which are read in their publishers' own naming
        return None
    if name == "resnet50":
        official = suffix == ".npy"
        module = resnet.ResNet50(official)
        return Network(module, lambda tensors: resnet_params(tensors, official=official))
    if scale := SCALES.get(name):
        module = EfficientNetLite(scale=scale)
        return Network(module, lambda tensors: efficientnet_params(tensors, scale))
    if name in vgg.DEPTHS:
        depths = vgg.DEPTHS[name]
        return Network(vgg.VGG(depths), lambda tensors: vgg_params(tensors, depths))
    variant: Variant = "2015" if name == "inception-2015" else "keras"
    return Network(InceptionV3(variant), lambda tensors: inception_params(tensors, variant))


# Endings of the files that each network can be converted from.
TORCH_FILES = (".pth", ".pt", ".bin", ".safetensors")
NETWORKS = {
    "bert": TORCH_FILES,
    "clip": TORCH_FILES,
    "efficientnet_lite0": TORCH_FILES,
    "efficientnet_lite2": TORCH_FILES,
    "inception-2015": TORCH_FILES,
    "inception-keras": (".h5",),
    "resnet50": (".npy", *TORCH_FILES),
    "vgg16": TORCH_FILES,
    "vgg19": TORCH_FILES,
}


def convert(name: str, source: Path, out: Path | None = None) -> Path:
    """Convert a file of weights, and return the file that was written, whole or not at all.

    Args:
        name: A key of `NETWORKS`.
        source: The published file.
        out: The file to write; by default beside the source, ending in .safetensors.

    Raises:
        WeightsError: Unknown network or format; or the file is missing, damaged, unsafe or of
            another network.
    """
    if name not in NETWORKS:
        hint = did_you_mean(name, NETWORKS)
        raise WeightsError(f"no network is called {name!r} (known: {', '.join(NETWORKS)}){hint}")
    if not source.is_file():
        raise WeightsError(f"no weights at {source}: there is no such file")
    if source.suffix not in NETWORKS[name]:
        raise WeightsError(f"{source}: {name} is read from files in {', '.join(NETWORKS[name])}")
    tensors = READERS[source.suffix](source)
    network = find_network(name, source.suffix)
    if network is not None:
        # PyTorch keeps step counters beside running statistics.
        counter = ".num_batches_tracked"
        named = Tensors(source, {n: t for n, t in tensors.items() if not n.endswith(counter)})
        tensors = flatten(network.to_params(named))
        images = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
        check_params(tensors, network.module, images, path=source, left_over=named)
    metadata = {
        "network": name,
        "variant": "official" if source.suffix == ".npy" else "",
        "source_name": source.name,
        "source_sha256": sha256_of(source),
        "source_md5": md5_of(source),
    }
    metadata["content_sha256"] = content_sha256(tensors, metadata)
    default = f"{source.stem}{'-converted' if source.suffix == '.safetensors' else ''}.safetensors"
    out = out or source.with_name(default)
    with atomic_file(out) as file:
        file.write(safetensors.numpy.save(tensors, metadata))
    return out


def md5_of(path: Path) -> str:
    """Return the only digest by which Keras publishes its files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join(NETWORKS)
    parser.add_argument("network", metavar="NETWORK", help=f"what the file holds: {known}")
    parser.add_argument("file", type=Path, metavar="FILE", help="the published file")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: FILE with the ending .safetensors"
    )
    return parser.parse_args()


def main() -> None:
    """Convert one file."""
    arguments = parse_arguments()
    out = convert(arguments.network, arguments.file.expanduser(), arguments.out)
    print(f"{arguments.network}: converted to {out}")


if __name__ == "__main__":
    run_cli(main)
