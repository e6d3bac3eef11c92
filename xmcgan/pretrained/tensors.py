"""Named tensors from files, and the check that they are the ones a network needs."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from xmcgan.errors import WeightsError

Tensors = dict[str, np.ndarray]
_MOST_NAMES_SHOWN = 5
# Far above any network: a damaged size must not take minutes to be found out.
_MOST_LAYERS, _LARGEST_SIZE = 1_000, 1_000_000


def read_safetensors(path: Path) -> Tensors:
    """Return the tensors of a safetensors file, half precision upcast to float32.

    Raises:
        WeightsError: the file is cut, damaged or of another format.
    """
    try:
        tensors = safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    return {name: upcast(tensor) for name, tensor in tensors.items()}


def upcast(tensor: np.ndarray) -> np.ndarray:
    """Return floating-point values as float32, and others as they are."""
    # bfloat16 is an extension type, which NumPy files under kind "V".
    return tensor.astype(np.float32, copy=False) if tensor.dtype.kind in "fV" else tensor


def check_tensors(
    found: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    """Check that a file holds exactly the expected tensors.

    Args:
        found: the file's tensors, without those that are known and not needed.
        expected: the shape of every tensor that the network needs.
        path: the file, for the message.

    Raises:
        WeightsError: tensors are missing, extra, of another shape or not finite; it names them.
    """
    shared = [name for name in expected if name in found]
    misshapen = [
        f"{name} {found[name].shape} where {expected[name]} is expected"
        for name in shared
        if found[name].shape != expected[name]
    ]
    damaged = [name for name in shared if not _is_finite(found[name])]
    faults = [
        _list("missing", (name for name in expected if name not in found)),
        _list("not known to this network", (name for name in found if name not in expected)),
        _list("wrong shape", misshapen),
        _list("not finite numbers", damaged),
    ]
    if any(faults):
        raise WeightsError(f"{path} does not fit the network. " + " ".join(filter(None, faults)))


def positive_integer(value: Any, file: Path, field: str) -> int:
    """Return a size that a file states, checked.

    Raises:
        WeightsError: it is no whole number from 1 to 1,000 layers, or a million of all else.
    """
    most = _MOST_LAYERS if field.endswith("layers") else _LARGEST_SIZE
    if type(value) is not int or not 1 <= value <= most:
        raise WeightsError(
            f"{file}: {field} must be a positive integer up to {most:,}, not {value!r}"
        )
    return value


def positive_number(value: Any, file: Path, field: str) -> float:
    """Return a number that a file states, checked.

    Raises:
        WeightsError: it is no number above 0.
    """
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise WeightsError(f"{file}: {field} must be a number above 0, not {value!r}")
    return float(value)


def to_dense(tensors: Tensors, *names: str) -> dict[str, np.ndarray]:
    """Return the parameters of one dense layer that computes the named ones side by side.

    Args:
        tensors: `NAME.weight` (outputs, inputs) and `NAME.bias` of each.
        names: the layers, in the order of the outputs.
    """
    weight = np.concatenate([tensors[f"{name}.weight"] for name in names])
    bias = np.concatenate([tensors[f"{name}.bias"] for name in names])
    return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}


def to_norm(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    """Return the parameters of a layer norm from `NAME.weight` and `NAME.bias`."""
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _is_finite(tensor: np.ndarray) -> bool:
    return tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())


def _list(label: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f" and {len(names) - _MOST_NAMES_SHOWN} more" if len(names) > _MOST_NAMES_SHOWN else ""
    return f"{label}: {', '.join(names[:_MOST_NAMES_SHOWN])}{more}."
