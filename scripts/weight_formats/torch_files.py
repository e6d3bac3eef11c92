"""Read the tensors of a PyTorch file without PyTorch, and without unpickling code."""

import collections
import dataclasses
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from weight_formats.safe_pickle import Placeholder, SafeUnpickler, wrap_read_errors
from xmcgan.errors import WeightsError
from xmcgan.pretrained.weights import upcast

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a .pth file that holds a state dictionary, floats as float32.

    Both formats of `torch.save` are read: the legacy one, and the zip archive of version 1.6.

    Raises:
        WeightsError: the file is damaged, holds something else, or names Python objects that
            tensors do not need.
    """
    with wrap_read_errors(path), path.open("rb") as file:
        is_archive = zipfile.is_zipfile(file)
        file.seek(0)
        state, storages = (_read_archive if is_archive else _read_legacy)(file, path)
        if not isinstance(state, dict):
            raise WeightsError(f"{path} does not hold a dictionary of tensors")
        return {str(name): _to_numpy(value, storages) for name, value in state.items()}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A block of numbers that follows the pickle."""

    key: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Placeholder(collections.OrderedDict),
    ("torch._utils", "_rebuild_tensor_v2"): Placeholder(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Placeholder(lambda data, *_: data),
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
}


def _storage_collector(found: dict[str, _Storage]) -> Callable[[Any], _Storage]:
    def persistent_load(identifier: Any) -> _Storage:
        kind, dtype, key, _, size, *view = identifier
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError(f"unknown kind of storage {kind!r}")
        return found.setdefault(key, _Storage(key, np.dtype(dtype), size))

    return persistent_load


def _read_legacy(file: IO[bytes], path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    found: dict[str, _Storage] = {}

    def load() -> Any:
        return SafeUnpickler(file, _ALLOWED, path, _storage_collector(found)).load()

    if load() != _LEGACY_MAGIC or load() != _LEGACY_PROTOCOL:
        raise WeightsError(f"{path} is not a PyTorch file")
    if not load()["little_endian"]:
        raise WeightsError(f"{path} was written on a big-endian machine")
    state = load()
    keys = load()
    storages = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        storages[key] = _read_storage(file, found[key], size)
    return state, storages


def _read_storage(file: IO[bytes], storage: _Storage, size: int) -> np.ndarray:
    num_bytes = size * storage.dtype.itemsize
    # Before reading: a damaged size could ask for any amount of memory.
    left = os.fstat(file.fileno()).st_size - file.tell()
    if size != storage.size or not 0 <= num_bytes <= left:
        raise ValueError(f"storage {storage.key} should have {storage.size} numbers")
    return np.frombuffer(file.read(num_bytes), storage.dtype)


def _read_archive(file: IO[bytes], path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    found: dict[str, _Storage] = {}
    with zipfile.ZipFile(file) as archive:
        (root,) = {name.split("/")[0] for name in archive.namelist() if name.endswith("/data.pkl")}
        with archive.open(f"{root}/data.pkl") as pickled:
            state = SafeUnpickler(pickled, _ALLOWED, path, _storage_collector(found)).load()
        storages = {}
        for key, storage in found.items():
            member = f"{root}/data/{key}"
            num_bytes = archive.getinfo(member).file_size
            if num_bytes != storage.size * storage.dtype.itemsize:
                raise ValueError(f"storage {key} should have {storage.size} numbers")
            storages[key] = np.frombuffer(archive.read(member), storage.dtype)
    return state, storages


def _to_numpy(tensor: Any, storages: dict[str, np.ndarray]) -> np.ndarray:
    """Return a copy of a tensor's values.

    The view is checked before it is taken: strides from a file could reach beyond the storage.
    """
    if not isinstance(tensor, _Tensor):
        raise ValueError("there is something other than a tensor in the state dictionary")
    values = storages[tensor.storage.key]
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or any(size < 0 for size in sizes):
        raise ValueError("a tensor has an impossible shape")
    if math.prod(tensor.shape) == 0:
        return np.zeros(tensor.shape, np.float32)
    last = tensor.offset + sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if last >= values.size:
        raise ValueError("a tensor reaches beyond its storage")
    view = np.lib.stride_tricks.as_strided(
        values[tensor.offset :],
        tensor.shape,
        [stride * values.itemsize for stride in tensor.strides],
        writeable=False,
    )
    return np.ascontiguousarray(upcast(view)).reshape(tensor.shape)
