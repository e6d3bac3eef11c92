"""Write files as `torch.save` does, so that their reader can be tested without PyTorch."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

_STORAGES = {"<f4": "FloatStorage", "<f2": "HalfStorage", "<i8": "LongStorage"}


class Tensor:
    """Describe a tensor to write: numbers, and optionally another view of them."""

    def __init__(self, values, offset=0, shape=None, strides=None):
        self.values = np.ascontiguousarray(values)
        self.offset = offset
        self.shape = self.values.shape if shape is None else shape
        default = tuple(stride // self.values.itemsize for stride in self.values.strides)
        self.strides = default if strides is None else strides

    def __reduce__(self):
        arguments = (self.values, self.offset, self.shape, self.strides, False)
        return _global("torch._utils", "_rebuild_tensor_v2"), (
            *arguments,
            collections.OrderedDict(),
        )


def _global(module: str, name: str) -> Any:
    function = types.FunctionType((lambda: None).__code__, {}, name)
    function.__module__, function.__qualname__ = module, name
    setattr(sys.modules[module], name, function)
    return function


class _Pickler(pickle.Pickler):
    def __init__(self, file, view_metadata: tuple):
        super().__init__(file, protocol=2)
        self.storages: dict[str, np.ndarray] = {}
        self._view_metadata = view_metadata

    def persistent_id(self, obj):
        if not isinstance(obj, np.ndarray):
            return None
        key = str(len(self.storages))
        self.storages[key] = obj
        kind = _global("torch", _STORAGES[obj.dtype.str])
        return ("storage", kind, key, "cpu", obj.size, *self._view_metadata)


def _pickle(state: Any, view_metadata: tuple) -> tuple[bytes, dict[str, np.ndarray]]:
    modules = {name: types.ModuleType(name) for name in ("torch", "torch._utils")}
    with mock.patch.dict(sys.modules, modules):
        file = io.BytesIO()
        pickler = _Pickler(file, view_metadata)
        pickler.dump(state)
    return file.getvalue(), pickler.storages


def save_legacy(path: Path, state: Any) -> Path:
    """Write the format before PyTorch 1.6."""
    body, storages = _pickle(state, (None,))
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    with path.open("wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, info):
            pickle.dump(part, file, protocol=2)
        file.write(body)
        pickle.dump(list(storages), file, protocol=2)
        for values in storages.values():
            file.write(struct.pack("<q", values.size) + values.tobytes())
    return path


def save_archive(path: Path, state: Any) -> Path:
    """Write the zip format since PyTorch 1.6."""
    body, storages = _pickle(state, ())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
    return path
