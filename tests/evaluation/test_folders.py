"""The commands compare, features and stats: their results, and that mistakes leave no file."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_network
from PIL import Image

from xmcgan.errors import DataError, EvaluationError, UserError
from xmcgan.evaluation.features import check_writable, save_npz
from xmcgan.evaluation.folders import ImageFolder, Statistics, check_statistics
from xmcgan.evaluation.metrics.fid import frechet_distance
from xmcgan.evaluation.protocols import get_protocol

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
    real = Statistics.load(tmp_path / "real.npz")
    features = np.load(tmp_path / "real.f.npz")["features"].astype(np.float64)
    np.testing.assert_allclose(real.mu, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(real.sigma, np.cov(features, rowvar=False), rtol=1e-10, atol=1e-14)
    assert real.n == real.recipe["images"]["num_images"] == 24
    fake = Statistics.load(tmp_path / "fake.npz")
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
    assert "12 images are too few for 12 dimensions" in errors
    assert "too few" not in run(EVAL, "compare", *sets, *LITE0)[2]


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


def test_statistics_of_pytorch_fid_are_taken_as_fid_pytorch(run, sets, tmp_path):
    protocol, out = ("--protocol", "fid-pytorch"), tmp_path / "ours.npz"
    assert run(EVAL, "stats", sets[0], *protocol, "--out", out)[0] == 0
    with np.load(out) as ours:
        np.savez(tmp_path / "foreign.npz", mu=ours["mu"], sigma=ours["sigma"])
    flags = (EVAL, "compare", tmp_path / "foreign.npz", sets[1], *protocol)
    status, _, errors = run(*flags)
    assert status == 2
    assert "files of pytorch-fid are fid-pytorch" in errors
    status, output, _ = run(*flags, "--allow-foreign-statistics", "--json")
    assert status == 0
    result = json.loads(output)
    assert result["recipe"]["protocol"] == "fid-pytorch"
    assert list(result["scores"]) == ["fid"]


def test_pr_vgg16_gives_precision_and_recall_of_images_and_nothing_of_statistics(
    run, sets, tmp_path
):
    protocol = ("--protocol", "pr-vgg16")
    status, output, errors = run(EVAL, "compare", *sets, *protocol, "--json")
    assert status == 0
    assert list(json.loads(output)["scores"]) == ["precision", "recall", "density", "coverage"]
    assert "biased" not in errors
    status, _, errors = run(EVAL, "stats", sets[0], *protocol, "--out", tmp_path / "s.npz")
    assert status == 2
    assert "pr-vgg16 compares images with images" in errors
    np.savez(tmp_path / "s.npz", mu=np.zeros(12), sigma=np.eye(12))
    status, _, errors = run(EVAL, "compare", tmp_path / "s.npz", sets[1], *protocol)
    assert status == 2
    assert "pr-vgg16 compares images with images" in errors


def test_statistics_of_two_protocols_are_not_compared(run, sets, tmp_path):
    for name in ("fd-effnet-lite0", "fid-clean"):
        out = tmp_path / f"{name}.npz"
        assert run(EVAL, "stats", sets[0], "--protocol", name, "--out", out)[0] == 0
    for other in (sets[1], tmp_path / "fd-effnet-lite0.npz"):
        status, output, errors = run(EVAL, "compare", tmp_path / "fid-clean.npz", other, *LITE0)
        assert (status, output) == (2, "")
        assert "protocol: fid-clean -> fd-effnet-lite0" in errors


def test_statistics_by_other_weights_are_not_compared(run, sets, tmp_path, monkeypatch):
    out = tmp_path / "s.npz"
    assert run(EVAL, "stats", sets[0], *LITE0, "--out", out)[0] == 0
    monkeypatch.setattr(tiny_network, "SHA256", "cd" * 32)
    tiny_network.install(monkeypatch)
    status, output, errors = run(EVAL, "compare", out, sets[1], *LITE0)
    assert (status, output) == (2, "")
    assert "weights_sha256: abab" in errors


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
        ("compare REAL OTHER --protocol fd-effnet-lite0", "mu and sigma"),
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


def write_images(directory: Path, num: int, side: int = 8) -> np.ndarray:
    """Write 0.png, 1.png ... and return their pixels."""
    directory.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{index:03d}.png")
    return images


def as_zip(directory: Path) -> Path:
    path = directory.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(directory.iterdir(), reverse=True):
            archive.write(file, file.name)
    return path


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_pixels_come_whole_and_in_the_order_of_names(tmp_path, batch_size):
    images = write_images(tmp_path / "a", 11)
    for source in (tmp_path / "a", as_zip(tmp_path / "a")):
        folder = ImageFolder(source)
        assert folder.names == [f"{index:03d}.png" for index in range(11)]
        batches = list(folder.batches(batch_size))
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        np.testing.assert_array_equal(np.concatenate(batches), images)


def test_a_directory_and_its_zip_have_one_digest_that_every_byte_and_name_changes(tmp_path):
    write_images(tmp_path / "a", 3)
    digests = [ImageFolder(tmp_path / "a").digest(), ImageFolder(as_zip(tmp_path / "a")).digest()]
    assert digests[0] == digests[1]
    read = ImageFolder(tmp_path / "a")
    list(read.batches())
    assert read.digest() == digests[0]
    (tmp_path / "a" / "001.png").rename(tmp_path / "a" / "001b.png")
    renamed = ImageFolder(tmp_path / "a").digest()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "001b.png")
    assert len({digests[0], renamed, ImageFolder(tmp_path / "a").digest()}) == 3


def test_images_are_resized_as_for_training(tmp_path):
    Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)).save(tmp_path / "a.png")
    original = Image.open(tmp_path / "a.png")
    for resize, box in (("crop", (0, 1, 4, 5)), ("squash", None)):
        folder = ImageFolder(tmp_path, image_size=8, resize=resize)
        expected = original.resize((8, 8), Image.Resampling.BICUBIC, box=box)
        np.testing.assert_array_equal(next(folder.batches())[0], np.asarray(expected))
        assert folder.describe()["preparation"] == f"{resize} to 8, bicubic"


def test_a_choice_is_random_seeded_and_in_the_order_of_names(tmp_path):
    write_images(tmp_path, 30)
    taken = ImageFolder(tmp_path, num=10, seed=1)
    assert len(set(taken.names)) == 10
    assert taken.names == sorted(taken.names)
    assert taken.names == ImageFolder(tmp_path, num=10, seed=1).names
    assert taken.names != ImageFolder(tmp_path, num=10, seed=2).names
    assert taken.names != ImageFolder(tmp_path).names[:10]
    assert taken.describe()["chosen"] == "10 of 30 by numpy.random.default_rng(1)"
    with pytest.raises(EvaluationError, match=r"31 images were asked for, and .* has 30"):
        ImageFolder(tmp_path, num=31)


def test_the_recipe_says_which_images(tmp_path):
    write_images(tmp_path, 2)
    folder = ImageFolder(tmp_path)
    assert folder.describe() == {
        "source": str(tmp_path),
        "num_images": 2,
        "images_sha256": folder.digest(),
        "image_size": [8, 8],
        "preparation": "as stored",
    }


def test_images_of_several_sizes_are_an_error_that_names_two(tmp_path):
    write_images(tmp_path, 9)
    Image.new("RGB", (5, 7)).save(tmp_path / "006.png")
    with pytest.raises(EvaluationError, match=r"000\.png is 8 x 8, 006\.png is 5 x 7.*image-size"):
        list(ImageFolder(tmp_path).batches(4))
    assert len(np.concatenate(list(ImageFolder(tmp_path, image_size=8).batches(4)))) == 9


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_an_unreadable_image_is_named(tmp_path, content):
    write_images(tmp_path, 3)
    path = tmp_path / "001.png"
    path.write_bytes(path.read_bytes()[:-60] if content == "cut" else content)
    with pytest.raises(DataError, match=r"001\.png"):
        list(ImageFolder(tmp_path).batches())


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", png.getvalue())
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", png.getvalue())
    with pytest.raises(DataError, match=r"'a\.png'"):
        ImageFolder(tmp_path / "a.zip")


def test_a_set_without_images_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path, tmp_path / "b", tmp_path / "a.txt"):
        with pytest.raises(UserError, match=path.name):
            ImageFolder(path)


RECIPE = {
    "protocol": "fid-2015",
    "network": "inception-2015",
    "resize": "bilinear of TensorFlow 1, to 299",
    "scaling": "(x - 128) / 128",
    "weights_sha256": "ab" * 32,
    "images": {"num_images": 9},
}


def statistics() -> Statistics:
    values = np.random.default_rng(0).normal(size=(9, 4))
    return Statistics(values.mean(axis=0), np.cov(values, rowvar=False), 9, RECIPE)


def test_what_is_saved_is_loaded_with_its_recipe(tmp_path):
    made = statistics()
    made.save(tmp_path / "a.npz")
    found = Statistics.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.mu, made.mu)
    np.testing.assert_array_equal(found.sigma, made.sigma)
    assert (found.n, found.recipe) == (9, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_statistics_of_other_programs_have_no_recipe_and_no_number(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3, dtype=np.float32))
    found = Statistics.load(tmp_path / "a.npz")
    assert (found.n, found.recipe, found.sigma.dtype) == (None, {}, np.float64)


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"features": np.zeros((2, 2))}, "mu and sigma .*features"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"\(3,\) .*\(4, 4\)"),
        ({"mu": np.array([0, np.nan]), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "recipe": np.array("{")}, "recipe"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "recipe": np.array("3")}, "recipe"),
        ({"mu": np.array([{}], object), "sigma": np.eye(1)}, "cannot be read"),
    ],
)
def test_files_that_hold_no_statistics_are_refused(tmp_path, arrays, hint):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EvaluationError, match=hint):
        Statistics.load(tmp_path / "a.npz")


def test_damaged_and_absent_files_are_named(tmp_path):
    made = statistics()
    made.save(tmp_path / "whole.npz")
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
            Statistics.load(tmp_path / name)


@pytest.mark.parametrize("entry", ["protocol", "network", "resize", "scaling", "weights_sha256"])
def test_features_of_two_recipes_are_not_compared(entry):
    protocol = dataclasses.replace(get_protocol("fid-2015"), num_features=4)
    made = dataclasses.replace(statistics(), path=Path("a.npz"))
    check_statistics(made, protocol, RECIPE | {"images": {}}, False)
    with pytest.raises(EvaluationError, match=rf"a\.npz .*{entry}: .* -> other"):
        check_statistics(made, protocol, RECIPE | {entry: "other"}, False)


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
