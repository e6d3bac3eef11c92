"""The commands compare, features and stats: their results, and that mistakes leave no file."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_network
from PIL import Image

from xmcgan.evaluation import folder_commands
from xmcgan.evaluation.features import Features
from xmcgan.evaluation.frechet import frechet_distance
from xmcgan.evaluation.statistics import load_statistics

EVAL = "scripts/eval_fid.py"
LITE0 = ("--protocol", "fd-effnet-lite0")
IMAGE_SCORES = ["fd", "kid", "precision", "recall", "density", "coverage"]


@pytest.fixture(autouse=True)
def network(monkeypatch):
    tiny_network.install(monkeypatch)


def write_set(path: Path, num: int = 24, *, seed: int = 0, darker: int = 0) -> Path:
    """Write images as a directory, or as a zip where the path ends so."""
    images = np.random.default_rng(seed).integers(1, 256 - darker, (num, 8, 8, 3), dtype=np.uint8)
    # Means differ between images, or the tiny network would see noise only.
    images = images // np.arange(1, num + 1, dtype=np.uint8)[:, None, None, None] + 1
    files = {f"{index:03d}.png": image for index, image in enumerate(images)}
    if path.suffix != ".zip":
        path.mkdir()
        for name, image in files.items():
            Image.fromarray(image).save(path / name)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in files.items():
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            archive.writestr(name, png.getvalue())
    return path


@pytest.fixture
def sets(tmp_path) -> tuple[Path, Path]:
    return write_set(tmp_path / "real"), write_set(tmp_path / "fake.zip", seed=1, darker=99)


def compare_json(run, *arguments) -> dict:
    status, output, errors = run(EVAL, "compare", *arguments, *LITE0, "--json")
    assert status == 0, errors
    return json.loads(output)


def test_two_sets_of_images_get_every_score_with_an_interval_and_a_recipe(run, sets):
    result = compare_json(run, *sets, "--bootstrap", 5)
    assert list(result["scores"]) == IMAGE_SCORES
    for score in result["scores"].values():
        assert score["low"] <= score["value"] <= score["high"]
    recipe = result["recipe"]
    assert recipe["protocol"] == "fd-effnet-lite0"
    assert recipe["weights_sha256"] == tiny_network.SHA256
    assert recipe["weights_verified"] is True
    assert recipe["real"]["num_images"] == recipe["fake"]["num_images"] == 24
    assert recipe["real"]["images_sha256"] != recipe["fake"]["images_sha256"]
    assert recipe["real"]["preparation"] == "as stored"
    assert recipe["bootstrap"] == 5
    assert recipe["commit"] is None or len(recipe["commit"]) >= 40
    assert "compare" in recipe["command"]
    assert {"package_version", "jax_version", "device", "seed"} <= recipe.keys()


def test_the_table_shows_what_the_json_holds(run, sets):
    value = compare_json(run, *sets)["scores"]["fd"]["value"]
    status, output, _ = run(EVAL, "compare", *sets, *LITE0)
    assert status == 0
    lines = output.splitlines()
    assert lines[1].split()[:2] == ["fd", f"{value:.4f}"]
    assert [line.split()[0] for line in lines[1:7]] == IMAGE_SCORES
    assert tiny_network.SHA256 in output
    assert "24 images" in output


def test_statistics_in_the_place_of_images_give_the_same_distance(run, sets, tmp_path):
    files = []
    for path in sets:
        files.append(tmp_path / f"{path.stem}.npz")
        assert run(EVAL, "stats", path, *LITE0, "--out", files[-1])[0] == 0
    whole = compare_json(run, *sets)["scores"]["fd"]["value"]
    assert whole > 0.1
    for a, b in ((files[0], sets[1]), (sets[0], files[1]), files):
        result = compare_json(run, a, b)
        assert list(result["scores"]) == ["fd"]
        assert result["scores"]["fd"]["value"] == pytest.approx(whole, abs=1e-8)
        assert result["recipe"]["weights_sha256"] == tiny_network.SHA256
        assert result["recipe"]["real"]["num_images"] == 24


def test_stats_writes_what_the_distance_needs(run, sets, tmp_path):
    for path in sets:
        assert run(EVAL, "stats", path, *LITE0, "--out", tmp_path / f"{path.stem}.npz")[0] == 0
        assert run(EVAL, "features", path, *LITE0, "--out", tmp_path / f"{path.stem}.f.npz")[0] == 0
    real = load_statistics(tmp_path / "real.npz")
    features = np.load(tmp_path / "real.f.npz")["features"].astype(np.float64)
    np.testing.assert_allclose(real.mu, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(real.sigma, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-14)
    assert real.n == real.recipe["images"]["num_images"] == 24
    fake = load_statistics(tmp_path / "fake.npz")
    distance = frechet_distance(real.mu, real.sigma, fake.mu, fake.sigma)
    scores = compare_json(run, *sets)["scores"]
    assert scores["fd"]["value"] == pytest.approx(distance, abs=1e-8)


def test_features_are_written_in_the_order_of_names(run, sets, tmp_path):
    out = tmp_path / "f.npz"
    status, output, _ = run(EVAL, "features", sets[0], *LITE0, "--out", out, "--batch-size", 5)
    assert status == 0
    assert "24 images" in output
    with np.load(out) as stored:
        assert set(stored) == {"names", "features", "logits"}
        assert stored["names"].tolist() == [f"{index:03d}.png" for index in range(24)]
        assert stored["features"].dtype == stored["logits"].dtype == np.float32
        assert stored["features"].shape == (24, tiny_network.NUM_FEATURES)
        for index, name in enumerate(stored["names"]):
            mean = np.asarray(Image.open(sets[0] / str(name))).mean() / 255
            np.testing.assert_allclose(stored["features"][index].mean(), 2 * mean, atol=0.01)


def test_a_set_is_at_no_distance_from_itself(run, sets):
    scores = compare_json(run, sets[0], sets[0])["scores"]
    assert scores["fd"]["value"] < 1e-9
    assert scores["precision"]["value"] == scores["recall"]["value"] == 1


def test_few_images_are_warned_of_and_the_number_is_obeyed(run, sets):
    flags = (*sets, *LITE0, "--num-samples", 12, "--json")
    status, output, errors = run(EVAL, "compare", *flags)
    assert status == 0
    assert json.loads(output)["recipe"]["real"]["num_images"] == 12
    assert json.loads(output)["recipe"]["real"]["chosen"].startswith("12 of 24")
    assert "warning" in errors
    assert "12 images are no more than the 12 dimensions" in errors
    assert "no more than" not in run(EVAL, "compare", *sets, *LITE0)[2]


def test_statistics_of_other_programs_need_a_flag(run, sets, tmp_path):
    out = tmp_path / "ours.npz"
    assert run(EVAL, "stats", sets[0], *LITE0, "--out", out)[0] == 0
    with np.load(out) as ours:
        np.savez(tmp_path / "foreign.npz", mu=ours["mu"], sigma=ours["sigma"])
    flags = (tmp_path / "foreign.npz", sets[1])
    status, _, errors = run(EVAL, "compare", *flags, *LITE0)
    assert status == 2
    assert "--allow-foreign-statistics" in errors
    allowed = compare_json(run, *flags, "--allow-foreign-statistics")
    ours_value = compare_json(run, out, sets[1])["scores"]["fd"]["value"]
    assert allowed["scores"]["fd"]["value"] == pytest.approx(ours_value, abs=1e-9)
    assert allowed["recipe"]["real"]["num_images"] is None


def test_statistics_of_two_protocols_are_not_compared(run, sets, tmp_path):
    for name in ("fd-effnet-lite0", "fid-clean"):
        out = tmp_path / f"{name}.npz"
        assert run(EVAL, "stats", sets[0], "--protocol", name, "--out", out)[0] == 0
    for other in (sets[1], tmp_path / "fd-effnet-lite0.npz"):
        status, output, errors = run(EVAL, "compare", tmp_path / "fid-clean.npz", other, *LITE0)
        assert (status, output) == (2, "")
        assert "fid-clean, not by fd-effnet-lite0" in errors


def test_statistics_by_other_weights_are_not_compared(run, sets, tmp_path, monkeypatch):
    out = tmp_path / "s.npz"
    assert run(EVAL, "stats", sets[0], *LITE0, "--out", out)[0] == 0
    monkeypatch.setattr(tiny_network, "SHA256", "cd" * 32)
    tiny_network.install(monkeypatch)
    status, output, errors = run(EVAL, "compare", out, sets[1], *LITE0)
    assert (status, output) == (2, "")
    assert "weights_sha256: 'abab" in errors


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("features EMPTY --protocol fd-effnet-lite0 --out OUT", "no images"),
        ("features MISSING --protocol fd-effnet-lite0 --out OUT", "does not exist"),
        ("features REAL --protocol fd-effnet --out OUT", "did you mean 'fd-effnet-lite2'"),
        ("features BROKEN --protocol fd-effnet-lite0 --out MISSING/o.npz", "cannot write"),
        ("stats BROKEN --protocol fd-effnet-lite0 --out EMPTY", "cannot write"),
        ("stats REAL --protocol fd-effnet-lite0 --out OUT --num-samples 25", "25 images were"),
        ("stats REAL --protocol fd-effnet-lite0 --out OUT --num-samples 0", "--num-samples is 0"),
        ("stats REAL --protocol fd-effnet-lite0 --out OUT --batch-size 0", "--batch-size is 0"),
        ("stats MIXED --protocol fd-effnet-lite0 --out OUT", "several sizes"),
        ("stats BROKEN --protocol fd-effnet-lite0 --out OUT", "001.png"),
        ("stats BLACK --protocol fd-effnet-lite0 --out OUT", "image 2 "),
        ("compare REAL BROKEN --protocol fd-effnet-lite0", "001.png"),
        ("compare REAL REAL --protocol fd-effnet-lite0 --bootstrap 4", "at least 5 resamples"),
        ("compare REAL OTHER --protocol fd-effnet-lite0", "mu and sigma are missing"),
        ("compare REAL WIDE --protocol fd-effnet-lite0", "3 dimensions"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, tmp_path, sets, command, hint):
    for name in ("MIXED", "BROKEN", "BLACK"):
        write_set(tmp_path / name, 3)
    (tmp_path / "EMPTY").mkdir()
    Image.new("RGB", (8, 9)).save(tmp_path / "MIXED" / "001.png")
    (tmp_path / "BROKEN" / "001.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "BLACK" / "002.png")
    np.savez(tmp_path / "OTHER.npz", features=np.zeros((2, 3)))
    np.savez(tmp_path / "WIDE.npz", mu=np.zeros(3), sigma=np.eye(3))
    places = {"REAL": sets[0], "OUT": "out.npz", "OTHER": "OTHER.npz", "WIDE": "WIDE.npz"}

    def placed(word: str) -> str:
        head, _, tail = word.partition("/")
        return str(tmp_path / places.get(head, head) / tail) if head.isupper() else word

    before = sorted(tmp_path.rglob("*"))
    status, output, errors = run(EVAL, *map(placed, command.split()))
    assert (status, output) == (2, "")
    lines = [line for line in errors.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert hint in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_features_may_lack_logits(run, sets, tmp_path, monkeypatch):
    class Extractor:
        def __init__(self, *_, **__):
            self.recipe = {}

        def __call__(self, batches, expected):
            return Features(np.zeros((sum(len(b) for b in batches), 2), np.float32), None)

    monkeypatch.setattr(folder_commands, "FeatureExtractor", Extractor)
    assert run(EVAL, "features", sets[0], *LITE0, "--out", tmp_path / "f.npz")[0] == 0
    with np.load(tmp_path / "f.npz") as stored:
        assert set(stored) == {"names", "features"}
