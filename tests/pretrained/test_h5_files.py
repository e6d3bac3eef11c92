"""HDF5 files of weights are read as they are, and nothing but plain numbers is taken from them."""

import h5py
import numpy as np
import pytest
from weight_formats.h5_files import read_h5

from xmcgan.errors import WeightsError

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_arrays_are_named_by_their_path_and_are_float32(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["conv2d/conv2d/kernel:0"] = KERNEL.astype(np.float16)
        file["conv2d/conv2d/bias:0"] = np.zeros(3, ">f8")
        file["step"] = 7
    found = read_h5(path)
    assert set(found) == {"conv2d/conv2d/kernel:0", "conv2d/conv2d/bias:0", "step"}
    np.testing.assert_array_equal(found["conv2d/conv2d/kernel:0"], KERNEL)
    assert found["conv2d/conv2d/kernel:0"].dtype == found["conv2d/conv2d/bias:0"].dtype == "f4"


def compressed(file, folder):
    file.create_dataset("kernel", data=np.zeros(1000), compression="gzip")


def filtered_to_the_same_size(file, folder):
    file.create_dataset("kernel", data=KERNEL, chunks=(2, 3), shuffle=True)


def never_written(file, folder):
    file.create_dataset("kernel", (10_000_000_000, 1000), np.float32)


def text(file, folder):
    file["kernel"] = np.bytes_("weights")


def from_another_file(file, folder):
    (folder / "raw.bin").write_bytes(KERNEL.tobytes())
    file.create_dataset(
        "kernel", (2, 3), np.float32, external=[(str(folder / "raw.bin"), 0, h5py.h5f.UNLIMITED)]
    )


def view_of_another_file(file, folder):
    layout = h5py.VirtualLayout((2, 3), np.float32)
    layout[:] = h5py.VirtualSource(folder / "other.h5", "kernel", (2, 3))
    file.create_virtual_dataset("kernel", layout)


@pytest.mark.parametrize(
    "write",
    [
        compressed,
        filtered_to_the_same_size,
        never_written,
        text,
        from_another_file,
        view_of_another_file,
    ],
)
def test_array_that_is_not_plain_numbers_in_the_file_is_refused(write, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["bias"] = np.zeros(3)
        write(file, tmp_path)
    with pytest.raises(WeightsError, match=r"a\.h5.*kernel is"):
        read_h5(path)


def test_links_to_other_files_are_not_followed(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel"] = KERNEL
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["bias"] = np.zeros(3)
        file["conv"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
    assert set(read_h5(tmp_path / "a.h5")) == {"bias"}


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["kernel"] = np.zeros(10_000)
    whole = path.read_bytes()
    for content in (b"", b"not HDF5", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.h5"):
            read_h5(path)


def test_file_without_arrays_is_refused(tmp_path):
    h5py.File(tmp_path / "a.h5", "w").close()
    with pytest.raises(WeightsError, match="no arrays"):
        read_h5(tmp_path / "a.h5")
