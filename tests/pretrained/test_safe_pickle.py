"""Pickled weights are read without running what they ask for."""

import os
import pickle

import numpy as np
import pytest
from flax.core import freeze
from torch_writer import Tensor, save_archive, save_legacy
from weight_formats.numpy_files import read_array_tree
from weight_formats.torch_files import read_torch

from xmcgan.errors import WeightsError

SAVERS = (save_legacy, save_archive)


class MakesFile:
    """Make a file when unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_npy(path, tree):
    np.save(path, np.array(tree, dtype=object), allow_pickle=True)
    return path


def test_npy_dictionary_of_arrays_is_read(tmp_path):
    rng = np.random.default_rng(0)
    kernel, half = rng.normal(size=(2, 3)).astype(np.float32), np.ones(3, np.float16)
    tree = {"params": {"a": {"kernel": np.asfortranarray(kernel)}, "half": half, "s": half[0]}}
    found = read_array_tree(save_npy(tmp_path / "a.npy", tree))
    assert set(found) == {"params/a/kernel", "params/half", "params/s"}
    np.testing.assert_array_equal(found["params/a/kernel"], kernel)
    assert found["params/half"].dtype == np.float32
    assert found["params/s"] == 1


@pytest.mark.parametrize("package", ["numpy.core", "numpy._core"])
def test_npy_files_of_old_and_new_numpy_are_read(tmp_path, package):
    file = save_npy(tmp_path / "a.npy", {"a": np.arange(3.0)})
    # The short protocol 0 to 3 names carry no length: they can be swapped in place.
    with file.open("wb") as out:
        array = np.array({"a": np.arange(3.0)}, dtype=object)
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(out, header)
        body = pickle.dumps(array, protocol=3)
        out.write(body.replace(b"numpy._core.", package.encode() + b"."))
    np.testing.assert_array_equal(read_array_tree(file)["a"], np.arange(3.0))


def test_frozen_dictionaries_of_flax_are_read(tmp_path):
    file = save_npy(tmp_path / "a.npy", {"params": freeze({"a": {"b": np.arange(3.0)}})})
    np.testing.assert_array_equal(read_array_tree(file)["params/a/b"], np.arange(3.0))


def test_malicious_npy_is_named_and_not_run(tmp_path):
    file = save_npy(tmp_path / "a.npy", {"params": MakesFile(tmp_path / "made")})
    with pytest.raises(WeightsError, match=r"a\.npy asks for the Python object posix\.mkdir"):
        read_array_tree(file)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("save", SAVERS)
def test_malicious_pth_is_named_and_not_run(tmp_path, save):
    file = save(tmp_path / "a.pth", {"weight": MakesFile(tmp_path / "made")})
    with pytest.raises(WeightsError, match=r"a\.pth asks for the Python object posix\.mkdir"):
        read_torch(file)
    assert not (tmp_path / "made").exists()


def test_pickle_that_changes_an_allowed_global_is_refused(tmp_path):
    body = b"\x80\x02cnumpy\nndarray\n}U\x01aK\x01sb."  # BUILD on the global itself
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(body)
    with pytest.raises(WeightsError, match="changes what it imports"):
        read_array_tree(tmp_path / "a.npy")


def test_npy_of_plain_numbers_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(WeightsError, match="array of numbers"):
        read_array_tree(tmp_path / "a.npy")


@pytest.mark.parametrize("save", SAVERS)
def test_pth_tensors_are_read_with_their_views(tmp_path, save):
    values = np.arange(6, dtype=np.float32)
    state = {
        "plain": Tensor(values.reshape(2, 3)),
        "transposed": Tensor(values, shape=(3, 2), strides=(1, 3)),
        "part": Tensor(values, offset=4, shape=(2,), strides=(1,)),
        "half": Tensor(values.astype(np.float16)),
        "counter": Tensor(np.array(7, np.int64)),
    }
    found = read_torch(save(tmp_path / "a.pth", state))
    np.testing.assert_array_equal(found["plain"], values.reshape(2, 3))
    np.testing.assert_array_equal(found["transposed"], values.reshape(2, 3).T)
    np.testing.assert_array_equal(found["part"], [4, 5])
    assert found["half"].dtype == np.float32
    assert found["counter"] == 7


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (7,), (1,)), (3, (2, 2), (3, 1)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2,), (99,))],
)
def test_view_beyond_its_storage_is_refused(tmp_path, offset, shape, strides):
    tensor = Tensor(np.zeros(6, np.float32), offset, shape, strides)
    with pytest.raises(WeightsError, match=r"impossible shape|beyond its storage"):
        read_torch(save_legacy(tmp_path / "a.pth", {"a": tensor}))


@pytest.mark.parametrize("save", SAVERS)
@pytest.mark.parametrize("kept", [0, 1, 40, 200, -1, -5, -30])
def test_cut_pth_is_named(tmp_path, save, kept):
    file = save(tmp_path / "a.pth", {"a": Tensor(np.arange(20, dtype=np.float32))})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"a\.pth"):
        read_torch(file)


def test_cut_npy_is_named(tmp_path):
    file = save_npy(tmp_path / "a.npy", {"a": np.arange(20)})
    content = file.read_bytes()
    for kept in range(0, len(content), 7):
        file.write_bytes(content[:kept])
        with pytest.raises(WeightsError, match=r"a\.npy"):
            read_array_tree(file)
