"""The wheel has all that its commands need, and they run outside the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from xmcgan.utils.commands import COMMANDS
from xmcgan.utils.files import FILES

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("assets", "configs", "scripts", "tests/oracle", "xmcgan")
MAIN = "from xmcgan.utils.commands import main; main()"


def test_every_script_has_a_command_and_every_command_a_script():
    scripts = {path.stem for path in ROOT.glob("scripts/*.py")} - {"run_exported"}
    assert {script for script in COMMANDS.values() if script} == scripts


def test_an_unknown_command_is_named_with_the_nearest():
    run = subprocess.run([sys.executable, "-c", MAIN, "trian"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: unknown command 'trian'; did you mean 'train'?\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return a folder with the unpacked wheel, built from a copy of the clone."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install -r requirements-dev.txt")
    clone = tmp_path_factory.mktemp("clone")
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, clone / folder)
    for name in ("setup.py", "pyproject.toml", "README.md", *ROOT.glob("requirements*.txt")):
        shutil.copy(ROOT / name, clone)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(pip, cwd=clone, check=True)
    (wheel,) = clone.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(clone / "site")
    return clone / "site"


@pytest.fixture
def command(installed, tmp_path):
    """Return a function that runs the console command in an empty folder, and gives its output."""

    def run(*arguments: object) -> str:
        path = os.pathsep.join([str(installed), os.environ["PYTHONPATH"]])
        done = subprocess.run(
            [sys.executable, "-P", "-c", MAIN, *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_says_its_extras_and_types(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    for extra in ("cuda", "tpu", "gcs", "demo", "wandb", "dev"):
        assert f"Provides-Extra: {extra}\n" in metadata.read_text("utf-8")
    assert (installed / "xmcgan" / "py.typed").is_file()
    assert (installed / "xmcgan" / "_files" / "assets" / "emoji_64.zip").is_file()


@pytest.mark.slow
def test_an_installed_command_speaks_of_itself(command):
    assert FILES == ROOT
    for name in COMMANDS:
        assert name in command("--help")
        text = command(name, "--help")
        assert "scripts/" not in text
        assert "requirements" not in text


@pytest.mark.slow
def test_training_sampling_and_scoring_run_outside_the_clone(command, tiny_root, tmp_path):
    fields = {
        "text.weights": tiny_root / "bert", "text.max_tokens": 8, "num_train_steps": 2,
        "batch_size": 8, "generator.width": 2, "discriminator.width": 2, "num_samples": 4,
    }  # fmt: skip
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    # The embedded emoji come out of the wheel; shapes are drawn.
    command("prepare", "emoji")
    flags += ["--config.data.name=emoji"]
    output = command("train", "--config", "shapes:quickstart", *flags, "--workdir", "run")
    assert "finished: 2 steps" in output
    assert "xmcgan report --workdir run" in output
    command("generate", "--workdir", "run", "--caption", "a star", "--num", 6, "--out", "a")
    command("generate", "--workdir", "run", "--caption", "a dog", "--num", 6, "--out", "b")
    assert (tmp_path / "a" / "0000_05.png").is_file()
    if not (ROOT / "weights" / "efficientnet_lite2").is_dir():
        pytest.skip("scoring and emoji64 need scripts/fetch_weights.py")
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    scores = command("evaluate", "compare", "a", "b", "--protocol", "fd-effnet-lite2")
    assert "fd-effnet-lite2" in scores
    command("generate", "--model", "emoji64", "--caption", "red heart", "--num", 1, "--out", "c")
    assert (tmp_path / "c" / "grid.png").is_file()
