"""Read a nested dictionary of arrays from a .npy object array, without unpickling code."""

from pathlib import Path
from typing import Any

import numpy as np

from weight_formats.safe_pickle import Placeholder, SafeUnpickler, wrap_read_errors
from xmcgan.errors import WeightsError
from xmcgan.pretrained.weights import upcast

_NUMBER_KINDS = "biuf"


def read_array_tree(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a dictionary that `numpy.save` wrote, names joined by "/".

    Raises:
        WeightsError: the file is damaged, holds something else, or names Python objects that a
            dictionary of arrays does not need.
    """
    with wrap_read_errors(path), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
        if dtype != np.dtype(object) or shape != ():
            raise WeightsError(f"{path} holds an array of numbers, not a dictionary of arrays")
        array = SafeUnpickler(file, _ALLOWED, path).load()
        return _flatten(array.item(), path)


def _flatten(tree: Any, path: Path, prefix: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, _Array):
        return {prefix: upcast(tree.to_numpy())}
    if not isinstance(tree, dict):
        raise WeightsError(f"{path}: {prefix or 'the root'} is neither a dictionary nor an array")
    arrays: dict[str, np.ndarray] = {}
    for name, value in tree.items():
        arrays |= _flatten(value, path, f"{prefix}/{name}" if prefix else str(name))
    return arrays


class _Dtype:
    """A pickled `numpy.dtype` of numbers; 'O' only marks the outer array."""

    def __init__(self, code: str, *_: Any):
        self.code = code
        self.byte_order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def to_numpy(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in _NUMBER_KINDS:
            raise ValueError(f"arrays of type {self.code!r} are not weights")
        return dtype.newbyteorder(">" if self.byte_order == ">" else "<")


class _Array:
    """State of a pickled `numpy.ndarray`, from which NumPy builds a fresh array."""

    shape: tuple[int, ...]
    dtype: _Dtype
    is_fortran: bool
    data: Any

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.data = state

    def item(self) -> Any:
        (value,) = self.data
        return value

    def to_numpy(self) -> np.ndarray:
        flat = np.frombuffer(self.data, self.dtype.to_numpy())
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


def _scalar(dtype: _Dtype, data: bytes) -> _Array:
    array = _Array()
    array.__setstate__((1, (), dtype, False, data))
    return array


_MULTIARRAY = {
    "_reconstruct": Placeholder(lambda *_: _Array()),
    "scalar": Placeholder(_scalar),
}
# NumPy 2 renamed numpy.core; files of either age must open. A FrozenDict pickles as its dictionary.
_ALLOWED = {
    ("numpy", "ndarray"): Placeholder(_Array),
    ("numpy", "dtype"): Placeholder(_Dtype),
    ("flax.core.frozen_dict", "FrozenDict"): Placeholder(dict),
    **{
        (f"{package}.multiarray", name): placeholder
        for package in ("numpy.core", "numpy._core")
        for name, placeholder in _MULTIARRAY.items()
    },
}
