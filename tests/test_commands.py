"""Command lines: their results, and that a user's mistake is one line and no traceback."""

import json

import numpy as np
import pytest
from PIL import Image

from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel

GENERATE = "scripts/generate.py"


def test_generate_writes_images_a_grid_and_a_manifest(run, tiny_workdir, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a blue star\n\nthe green square\n")
    out = tmp_path / "out"
    flags = ("--workdir", tiny_workdir, "--caption", "a red circle", "--captions-file", captions)
    status, output, _ = run(GENERATE, *flags, "--num", 3, "--seed", 5, "--out", out)
    assert status == 0
    assert "9 images" in output
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["step"] == 6
    assert manifest["weights"] == "ema"
    shown = [entry["caption"] for entry in manifest["images"]][::3]
    assert shown == ["a red circle", "a blue star", "the green square"]
    for entry in manifest["images"]:
        assert Image.open(out / entry["file"]).size == (32, 32)
    assert Image.open(out / "grid.png").width > 3 * 32


def test_generate_draws_with_a_model_folder(run, tiny_workdir, tmp_path):
    model = TrainedModel.from_workdir(tiny_workdir)
    info = {"steps": 6, "images_seen": 48}
    folder = save_model(tmp_path / "tiny", model.variables, model.config, info, "")
    flags = ("--caption", "a red circle", "--num", 2)
    sources = {"a": ("--model", folder), "b": ("--workdir", tiny_workdir)}
    drawn = {}
    for name, source in sources.items():
        assert run(GENERATE, *source, *flags, "--out", tmp_path / name)[0] == 0
        drawn[name] = np.asarray(Image.open(tmp_path / name / "0000_01.png")).astype(int)
    np.testing.assert_allclose(drawn["a"], drawn["b"], atol=2)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["model"], manifest["step"], manifest["weights"]) == ("tiny", 6, "ema")
    for flag in (["--step", 6], ["--raw"]):
        status, _, errors = run(GENERATE, *sources["a"], *flags, "--out", tmp_path, *flag)
        assert status == 2
        assert flag[0] in errors
    both = (*sources["a"], *sources["b"])
    assert run(GENERATE, *both, *flags, "--out", tmp_path)[0] == 2


def test_generated_images_follow_the_seed_and_not_their_number(run, tiny_workdir, tmp_path):
    def draw(name: str, *flags: object) -> list[np.ndarray]:
        out = tmp_path / name
        command = ("--workdir", tiny_workdir, "--caption", "a red circle", "--out", out)
        assert run(GENERATE, *command, *flags)[0] == 0
        return [np.asarray(Image.open(path)) for path in sorted(out.glob("0*.png"))]

    two, five, other = draw("a", "--num", 2), draw("b", "--num", 5), draw("c", "--seed", 1)
    np.testing.assert_array_equal(two, five[:2])
    assert np.any(two[0] != other[0])
    assert np.any(two[0] != draw("d", "--raw")[0])
    still = draw("e", "--truncation", 0, "--num", 2)
    np.testing.assert_array_equal(still[0], still[1])


def test_a_caption_of_500_words_is_drawn_with_a_warning(run, tiny_workdir, tmp_path):
    flags = ["--workdir", tiny_workdir, "--num", 1, "--out", tmp_path]
    status, _, errors = run(GENERATE, *flags, "--caption", "red " * 499 + "end", "--caption", "red")
    assert status == 0
    assert errors.count("warning: the model reads") == 1
    assert "is cut after 'red'" in errors


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--caption", "x"], "config.json is missing"),
        (["--model", "emojy64", "--caption", "x"], "no model 'emojy64'"),
        (["--workdir", "WORKDIR"], "no captions"),
        (["--workdir", "WORKDIR", "--caption", " "], "--caption 1 is empty"),
        (["--workdir", "WORKDIR", "--caption", "x" * 2001], "2,001 characters"),
        (["--workdir", "WORKDIR", "--captions-file", "none.txt"], "none.txt"),
        (["--workdir", "WORKDIR", "--caption", "x", "--num", "0"], "--num"),
        (["--workdir", "WORKDIR", "--caption", "x", "--truncation", "-1"], "truncation is -1"),
        (["--workdir", "WORKDIR", "--caption", "x", "--step", "5"], "no checkpoint of step 5"),
        (["--workdir", "WORKDIR", "--caption", "x", "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_mistakes_in_generate_are_named(run, tiny_workdir, tmp_path, flags, hint):
    flags = [str(tiny_workdir) if flag == "WORKDIR" else flag for flag in flags]
    if not {"--workdir", "--model"} & {*flags}:
        flags += ["--workdir", str(tmp_path)]
    if "--out" not in flags:
        flags += ["--out", str(tmp_path / "out")]
    status, _, errors = run(GENERATE, *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--config", "shape"], "'shapes'"),
        (["--config", "shapes", "--confg.batch_size=8"], "unknown argument '--confg.batch_size=8'"),
        (["--config", "shapes", "--config.batch_sise=8"], "'batch_size'"),
        (["--config", "shapes", "--config.image_size", "100"], "image_size = 100"),
        (["--config", "folder:name=absent"], "prepare_data.py folder"),
        (["--config", "shapes", "--workdir", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_mistakes_in_train_are_named(run, monkeypatch, tmp_path, flags, hint):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run("xmcgan/train.py", *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors


def test_every_image_has_noise_of_its_own_unless_it_is_shared(run, tiny_workdir, tmp_path):
    found = {}
    flags = ("--caption", "a red circle", "--caption", "a red circle", "--num", 2)
    for name, more in (("own", ()), ("shared", ("--shared-noise",))):
        out = tmp_path / name
        assert run(GENERATE, "--workdir", tiny_workdir, *flags, "--out", out, *more)[0] == 0
        manifest = json.loads((out / "manifest.json").read_text())["images"]
        images = [np.asarray(Image.open(out / entry["file"])).tobytes() for entry in manifest]
        found[name] = len(set(images)), [entry["noise"] for entry in manifest]
    assert found == {"own": (4, [0, 1, 2, 3]), "shared": (2, [0, 1, 0, 1])}


def test_many_captions_become_shards_and_a_grid_of_the_first_ones(run, tiny_workdir, tmp_path):
    (tmp_path / "captions.txt").write_text("a red circle\n" * 1001)
    flags = ("--workdir", tiny_workdir, "--captions-file", tmp_path / "captions.txt", "--num", 1)
    status, output, _ = run(GENERATE, *flags, "--out", tmp_path / "out")
    assert status == 0
    assert "first 48" in output
    assert len(list((tmp_path / "out").glob("00[01]/*.png"))) == 1001
    assert Image.open(tmp_path / "out" / "grid.png").height < 4000
    assert run(GENERATE, *flags, "--out", tmp_path / "out.zip")[0] == 0
    assert (tmp_path / "out.zip").stat().st_size > 1001 * 1000


def test_seeds_are_noises_of_their_own_and_labels_name_them(run, tiny_workdir, tmp_path):
    flags = ("--workdir", tiny_workdir, "--caption", "a red circle")
    status, _, _ = run(GENERATE, *flags, "--seeds", "3,7-9", "--labels", "--out", tmp_path / "many")
    assert status == 0
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    assert manifest["seeds"] == [3, 7, 8, 9]
    for index, seed in ((0, 3), (3, 9)):
        out = tmp_path / f"one{seed}"
        assert run(GENERATE, *flags, "--seed", seed, "--num", 1, "--out", out)[0] == 0
        one = np.asarray(Image.open(out / "0000_00.png"))
        many = np.asarray(Image.open(tmp_path / "many" / f"0000_{index:02d}.png"))
        np.testing.assert_allclose(one.astype(int), many.astype(int), atol=1)
    plain = tmp_path / "plain"
    assert run(GENERATE, *flags, "--seeds", "3,7-9", "--out", plain)[0] == 0
    labeled = Image.open(tmp_path / "many" / "grid.png").height
    assert labeled > Image.open(plain / "grid.png").height


@pytest.mark.parametrize("seeds", ["", "x", "3-1", "1-x", "-4", "0-1000000"])
def test_what_is_no_seed_is_refused(run, tiny_workdir, tmp_path, seeds):
    flags = ("--workdir", tiny_workdir, "--caption", "a red circle", "--out", tmp_path / "out")
    status, _, errors = run(GENERATE, *flags, f"--seeds={seeds or ','}")
    assert status == 2
    assert "--seeds" in errors


def test_a_video_goes_from_caption_to_caption_or_from_noise_to_noise(run, tiny_workdir, tmp_path):
    flags = ("--workdir", tiny_workdir, "--caption", "a red circle", "--interpolate")
    flags = (*flags, "--frames", 3, "--out", tmp_path)
    two = ("--caption", "a blue star")
    for name, more, ways in (("a", two, 1), ("b", ("--num", 3), 2), ("c", ("--seeds", "1-2"), 1)):
        video = tmp_path / f"{name}.gif"
        status, output, _ = run(GENERATE, *flags, *more, "--video", video)
        assert status == 0
        num = 1 + 2 * ways
        assert f"{num} images" in output
        assert Image.open(video).n_frames == 2 * num - 2
    for wrong in (("--num", 1), (*two, "--video", tmp_path / "a.avi"), (*two, "--frames", 1)):
        assert run(GENERATE, *flags, *wrong)[0] == 2
