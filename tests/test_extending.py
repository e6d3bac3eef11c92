"""The examples of docs/extending.md run as they stand, from a directory outside the repository."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_network
from PIL import Image
from tiny_clip import write_clip

from xmcgan import train as program
from xmcgan.config import apply_override, load_config
from xmcgan.errors import ConfigError, EvaluationError
from xmcgan.evaluation.evaluator import Options
from xmcgan.evaluation.watch import EvaluationJob
from xmcgan.losses.context import Context
from xmcgan.training.checkpoint import committed_steps
from xmcgan.training.command_line import parse_args
from xmcgan.utils.registry import find

PAGE = (Path(__file__).resolve().parents[1] / "docs/extending.md").read_text("utf-8")
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines())
    for block in re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", PAGE, re.MULTILINE)
]
FILES = {
    match[1]: block.split("\npython ")[0]
    for block in BLOCKS
    if (match := re.match(r"# (\w+\.py)\n", block.lstrip()))
}
COMMANDS = {
    line.split("--workdir runs/")[1].split()[0]: shlex.split(line)[3:]
    for line in PAGE.splitlines()
    if line.startswith("    python -m xmcgan.train ")
}


@pytest.fixture
def run(tiny_config, tmp_path, monkeypatch):
    """A function that trains by a command of the page, but as little as `tiny_config` does."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    for split in ("train", "test"):
        (tmp_path / "birds" / split).mkdir(parents=True)
        for number in range(8):
            pixels = np.full((16, 16, 3), 20 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"birds/{split}/a_red_star_{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tiny_config.d_steps, tiny_config.num_train_steps = 1, 3

    def run(name: str, *more: str) -> Path:
        args, overrides = parse_args([*COMMANDS[name], *more])
        load_config(args.config)
        for override in overrides:
            apply_override(tiny_config, override)
        assert program.train(tiny_config, args.workdir) == 0
        return args.workdir

    return run


def logs(workdir: Path) -> dict:
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_page_has_one_example_of_each_kind():
    kinds = {
        "my_losses.py",
        "my_matching.py",
        "my_clip.py",
        "my_networks.py",
        "my_metrics.py",
        "my_pictures.py",
    }
    assert set(FILES) == kinds | {"my_config.py"}
    assert set(COMMANDS) == {"r1", "matching", "clip", "plain", "birds", "all"}


def test_a_config_file_sets_all_four_kinds(run, tiny_config):
    own = load_config("my_config.py")
    assert own.generator.depth == 2
    with tiny_config.unlocked():  # its fields in a config that trains in seconds
        tiny_config.losses.r1, tiny_config.evaluation = own.losses.r1, own.evaluation
        tiny_config.generator.type, tiny_config.generator.depth = own.generator.type, 1
        tiny_config.data.name, tiny_config.data.fields = own.data.name, own.data.fields
    workdir = run("all")
    assert logs(workdir)["real_r1_gradient"] > 0
    EvaluationJob(workdir, Options(weights=("ema",), num_samples=4)).run()
    result = json.loads((workdir / "evaluation/results.jsonl").read_text().splitlines()[-1])
    assert set(result["scores"]) == {"colorfulness/real", "colorfulness/fake"}


class WithoutMetrics:
    def generator(self, context):
        return context.fake_images.mean()


class PerImage:
    def generator(self, context):
        return context.fake_images.mean(axis=(1, 2, 3)), {}


class Half(nn.Module):
    """Images of half the size that is asked for."""

    image_size: int
    z_dim: int = 64

    @nn.compact
    def __call__(self, words, word_mask, sentence, z, *, train):
        side = self.image_size // 2
        return nn.sigmoid(nn.Dense(side * side * 3)(z)).reshape(-1, side, side, 3)


class WithoutNames:
    paired = False

    def extract(self, images, captions):
        return images.mean(axis=(1, 2))

    def compute(self, real, fake):
        return {}


class PlainNumber(WithoutNames):
    def extract(self, images, captions):
        return {"values": images.mean(axis=(1, 2, 3))}

    def compute(self, real, fake):
        return {"mean": float(fake["values"].mean())}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "losses.own.type=test_extending:WithoutMetrics",
            r"losses\.own: generator\(context\) must",
        ),
        ("losses.own.type=test_extending:PerImage", r"losses\.own: generator\(context\) must"),
        ("generator.type=test_extending:Half", "the generator's images have shape"),
    ],
)
def test_what_does_not_fit_the_step_is_named(run, override, message):
    with pytest.raises(ConfigError, match=message):
        run("r1", "--config.losses.r1.enabled=false", f"--config.{override}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("WithoutNames", "must return a dict"), ("PlainNumber", "plainnumber: compute must return")],
)
def test_a_metric_that_does_not_fit_is_named(tiny_workdir, tmp_path, monkeypatch, name, message):
    tiny_network.install_detector(monkeypatch)
    workdir = Path(shutil.copytree(tiny_workdir, tmp_path / "run"))
    options = Options(metrics=[f"test_extending:{name}"], weights=("ema",), num_samples=4)
    with pytest.raises(EvaluationError, match=message):
        EvaluationJob(workdir, options).run()


def test_loss(run):
    found = logs(run("r1"))
    assert found["real_r1_gradient"] > 0
    # Means over steps, of a square and of its root.
    assert found["d_r1_loss"] >= 5 / 2 * found["real_r1_gradient"] ** 2


def test_a_loss_that_reads_pixels_is_refused_with_microbatches(run):
    with pytest.raises(ConfigError, match=r"losses\.r1"):
        run("r1", "--config.num_microbatches=2", "--config.batch_norm_group_size=4")


def test_wrong_captions_count_as_generated_images(run):
    found = logs(run("matching"))
    assert 0 < found["real_matching_share"] <= 1  # of captions that are not alike
    assert found["d_matching_loss"] > 0
    parts = found["d_hinge_loss"] + found["d_sentence_loss"] + found["d_word_loss"]
    assert found["d_loss"] == pytest.approx(parts + 0.5 * found["d_matching_loss"], rel=1e-4)


def test_a_clip_by_path_guides_the_generator(run, tiny_root, tmp_path):
    folder = write_clip(tmp_path / "any_clip")
    fields = {"path": folder, "vocab": tiny_root / "bert/vocab.txt"}
    workdir = run("clip", *(f"--config.losses.clip.{n}={value}" for n, value in fields.items()))
    found = logs(workdir)
    assert found["g_clip_loss"] == pytest.approx(1 - found["fake_clip_similarity"])
    guidance = find("my_clip:Guidance", {}, "loss")(**fields)
    ids = np.array([[2, 5, 7, 10, 3, 0], [2, 6, 8, 11, 3, 0]])  # as vocab.txt of tiny.py counts
    expected = guidance.clip.tokenizer(["a red circle", "the green square"])
    np.testing.assert_array_equal(guidance.tokens(ids), expected)

    def similarity(images):
        context = Context(None, None, None, fake_images=images, token_ids=ids)
        return guidance.generator(context._replace(params=guidance.params))[0]

    images = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    gradient = jax.grad(similarity)(images)
    assert similarity(images - 0.1 * gradient / np.linalg.norm(gradient)) < similarity(images)


def test_generator_trains_samples_and_resumes(run):
    workdir = run("plain")
    assert (workdir / "samples/step_00000003.png").exists()
    assert run("plain", "--config.num_train_steps=4") == workdir
    assert committed_steps(workdir / "checkpoints") == [3, 4]


def test_data_set_and_metric(run):
    workdir = run("birds")
    assert np.isfinite(logs(workdir)["d_loss"])
    options = Options(metrics=["my_metrics:Colorfulness"], weights=("ema",), num_samples=4)
    EvaluationJob(workdir, options).run()
    result = json.loads((workdir / "evaluation/results.jsonl").read_text().splitlines()[-1])
    scores = result["scores"]
    assert scores["colorfulness/real"]["value"] == pytest.approx(0)  # the birds are gray
    assert scores["colorfulness/fake"]["value"] > 0
