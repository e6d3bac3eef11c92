"""Statistics: what is stored comes back, and what was made otherwise is refused."""

import numpy as np
import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.npz_files import check_writable, save_npz
from xmcgan.evaluation.statistics import (
    check_comparable,
    compute_statistics,
    load_statistics,
    save_statistics,
)

RECIPE = {
    "protocol": "fid-2015",
    "network": "inception-2015",
    "resize": "bilinear of TensorFlow 1, to 299",
    "scaling": "(x - 128) / 128",
    "weights_sha256": "ab" * 32,
    "images": {"num_images": 9},
}


def values(num: int = 9) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num, 4)).astype(np.float32)


def test_statistics_are_those_of_numpy_in_float64():
    found = compute_statistics(Features(values(), None), RECIPE)
    exact = values().astype(np.float64)
    assert found.sigma.dtype == np.float64
    np.testing.assert_allclose(found.mu, exact.mean(axis=0), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(found.sigma, np.cov(exact, rowvar=False), rtol=1e-12, atol=1e-15)
    assert found.n == 9


def test_what_is_saved_is_loaded_with_its_recipe(tmp_path):
    made = compute_statistics(Features(values(), None), RECIPE)
    save_statistics(tmp_path / "a.npz", made)
    found = load_statistics(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.mu, made.mu)
    np.testing.assert_array_equal(found.sigma, made.sigma)
    assert (found.n, found.recipe) == (9, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_statistics_of_other_programs_have_no_recipe_and_no_number(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3, dtype=np.float32))
    found = load_statistics(tmp_path / "a.npz")
    assert (found.n, found.recipe, found.sigma.dtype) == (None, {}, np.float64)


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"features": np.zeros((2, 2))}, "mu and sigma are missing .it has: features"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not fit"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "recipe": np.array("{")}, "recipe is damaged"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "recipe": np.array("3")}, "no|not a JSON object"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "cannot be read"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(tmp_path, arrays, hint):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EvaluationError, match=hint):
        load_statistics(tmp_path / "a.npz")


def test_damaged_and_absent_files_are_named(tmp_path):
    made = compute_statistics(Features(values(), None), RECIPE)
    save_statistics(tmp_path / "whole.npz", made)
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = {"cut.npz": whole[:200], "empty.npz": b"", "text.npz": b"text"}
    flipped = bytearray(whole)
    flipped[whole.index(made.sigma.tobytes()) + 5] ^= 1
    contents["flipped.npz"] = bytes(flipped)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in (*contents, "one.npz", "absent.npz"):
        with pytest.raises(EvaluationError, match=name):
            load_statistics(tmp_path / name)


@pytest.mark.parametrize("entry", ["protocol", "network", "resize", "scaling", "weights_sha256"])
def test_features_of_two_recipes_are_not_compared(entry):
    with pytest.raises(EvaluationError, match=f"{entry}: .* and 'other'"):
        check_comparable(RECIPE, RECIPE | {entry: "other"})


def test_sets_may_differ_in_their_images():
    check_comparable(RECIPE, RECIPE | {"images": {"num_images": 10}, "commit": "abc"})


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_npz(path, {"a": np.zeros(3)})
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(EvaluationError, match="No space left"):
        save_npz(path, {"a": np.ones(3)})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    check_writable(tmp_path / "a.npz")
    for path in (tmp_path, tmp_path / "absent" / "a.npz", "/dev/null/a.npz"):
        with pytest.raises(EvaluationError, match="cannot write"):
            check_writable(type(tmp_path)(path))
    assert list(tmp_path.iterdir()) == []
