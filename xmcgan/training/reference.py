"""Golden files of the official architecture: reading them and mapping their parameters to ours."""

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from xmcgan.errors import DataError
from xmcgan.training.golden_format import check_golden


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a golden file.

    Args:
        path: an .npz file of the golden format.

    Returns:
        Its `meta` and its arrays by name.

    Raises:
        DataError: no such file, not an .npz, or not of the format: an array is missing or of a
            wrong shape, say.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
    except FileNotFoundError:
        raise DataError(f"no golden file at {path}") from None
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is not a golden file: {error}") from None
    try:
        check_golden(meta, arrays)
    except DataError as error:
        raise DataError(f"{path} is not a complete golden file: {error}") from None
    return meta, arrays


def tree(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """Return the nested tree that stands under `prefix/` in a golden file."""
    start = prefix + "/"
    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        if name.startswith(start):
            *parents, leaf = name.removeprefix(start).split("/")
            branch = nested
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = array
    if not nested:
        raise DataError(f"the golden file has nothing under {prefix}/")
    return nested


def generator_multipliers(golden: dict[str, Any], width: int) -> tuple[int, ...]:
    """Read off a generator's parameters how wide each block is, in multiples of `width`."""
    blocks = _generator_blocks(golden)
    return tuple(block["Conv_0"]["bias"].size // width for _, block, _ in blocks)


def discriminator_multipliers(golden: dict[str, Any], width: int) -> tuple[int, ...]:
    """Read off a discriminator's parameters how wide each block is, in multiples of `width`."""
    blocks = _discriminator_blocks(golden)
    return tuple(block["SpectralConv_0"]["bias"].size // width for block in blocks)


def generator_params(golden: dict[str, Any]) -> Any:
    """Map a generator's parameters, or gradients of them, to our names."""
    return {
        "sentence": golden["Dense_0"],
        "first_map": golden["Dense_1"],
        "query": golden["Conv_0"],
        "to_rgb": golden["Conv_1"],
        "last_norm": _modulation(golden["LocalConditionalBatchNorm_0"]),
        **{
            ours: {
                "norm_1": _modulation(block[f"{norm}_0"]),
                "conv_1": block["Conv_0"],
                "norm_2": _modulation(block[f"{norm}_1"]),
                "conv_2": block["Conv_1"],
                "shortcut": block["Conv_2"],
            }
            for ours, block, norm in _generator_blocks(golden)
        },
    }


def generator_stats(golden: dict[str, Any]) -> Any:
    """Map a generator's running batch-norm statistics to our names."""
    stats = {"last_norm": {"norm": golden["LocalConditionalBatchNorm_0"]["BatchNorm_0"]}}
    for ours, block, norm in _generator_blocks(golden):
        stats[ours] = {
            f"norm_{j + 1}": {"norm": block[f"{norm}_{j}"]["BatchNorm_0"]} for j in range(2)
        }
    return stats


def discriminator_tree(golden: dict[str, Any]) -> Any:
    """Map a discriminator's parameters, gradients or spectral-norm vectors to our names."""
    layers = {"SpectralConv_0": "conv_1", "SpectralConv_1": "conv_2", "SpectralConv_2": "shortcut"}
    mapped: dict[str, Any] = {
        f"block_{i}": {layers[name]: _layer(layer) for name, layer in block.items()}
        for i, block in enumerate(_discriminator_blocks(golden))
    }
    mapped["logit"] = _layer(golden["SpectralDense_0"])
    mapped["sentence"] = _layer(golden["SpectralDense_1"])
    mapped["regions"] = _layer(golden["SpectralConv_0"])
    return mapped


def _generator_blocks(golden: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """List (our name, golden block, golden name of its norms), from 4x4 up."""
    kinds = (("GenBlock", "ConditionalBatchNorm"), ("GenSpatialBlock", "LocalConditionalBatchNorm"))
    blocks = [(block, norm) for kind, norm in kinds for block in _numbered(golden, kind)]
    return [(f"block_{index}", block, norm) for index, (block, norm) in enumerate(blocks)]


def _discriminator_blocks(golden: dict[str, Any]) -> list[dict[str, Any]]:
    """List the golden blocks, the stem first."""
    return [golden["DiscOptimizedBlock_0"], *_numbered(golden, "DiscBlock")]


def _numbered(golden: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """List `name_0`, `name_1`, ... in order."""
    count = sum(key.rpartition("_")[0] == name for key in golden)
    return [golden[f"{name}_{index}"] for index in range(count)]


def _modulation(golden: dict[str, Any]) -> dict[str, Any]:
    """Map gamma and beta: Dense layers, or conv1x1 whose kernels become matrices."""
    kind = "Dense" if "Dense_0" in golden else "Conv"
    return {
        ours: {
            "kernel": golden[f"{kind}_{j}"]["kernel"].reshape(
                -1, golden[f"{kind}_{j}"]["bias"].size
            ),
            "bias": golden[f"{kind}_{j}"]["bias"],
        }
        for j, ours in enumerate(("gamma", "beta"))
    }


def _layer(golden: dict[str, Any]) -> dict[str, Any]:
    return {"u": golden["u0"]} if "u0" in golden else golden
