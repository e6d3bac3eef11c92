"""Read the arrays of an HDF5 file of weights, as Keras writes them, without Keras."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from weight_formats.safe_pickle import wrap_read_errors
from xmcgan.errors import WeightsError
from xmcgan.pretrained.weights import upcast

_NUMBER_KINDS = "biuf"


def read_h5(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an HDF5 file, floats as float32, under the names that it stores.

    A name is the path of groups to the array, such as "conv2d_1/conv2d_1/kernel:0". Links are not
    followed, so that a file cannot bring in another one.

    Raises:
        WeightsError: the file is damaged or of another format, or an array is not plain numbers.
    """
    tensors: dict[str, np.ndarray] = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            tensors[name] = upcast(_read_plain(name, entry))

    with wrap_read_errors(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    if not tensors:
        raise WeightsError(f"{path} holds no arrays")
    return tensors


def _read_plain(name: str, dataset: h5py.Dataset) -> np.ndarray:
    """Return an array whose values are in the file itself.

    Anything else is refused: numbers of another file, numbers that were never written (they would
    read as zeros), and filters, which HDF5 may load as code from a plugin.
    """
    # A view of other files stores nothing here, so that its size is wrong as well.
    is_whole = dataset.id.get_storage_size() == dataset.nbytes and dataset.external is None
    if dataset.dtype.kind not in _NUMBER_KINDS or not is_whole:
        raise ValueError(f"{name} is not stored as plain numbers")
    if dataset.id.get_create_plist().get_nfilters():
        raise ValueError(f"{name} is stored through a filter")
    return dataset[()]
