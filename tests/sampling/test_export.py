"""An exported model draws what `generate.py` draws, in a process that cannot import the package."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmcgan.sampling.export import export_model
from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel

ROOT = Path(__file__).resolve().parents[2]
FILES = ("sampler.jax_export", "weights.npz", "tokenizer.json", "manifest.json")
# The last two are cut to the model's eight tokens, and name a token that text must not become.
CAPTIONS = ("a red circle", "the blue star", "a red circle on the left " * 3, "a [SEP] [PAD] star")
# As where the package was never installed.
WITHOUT_PACKAGE = (
    "import runpy, sys; sys.modules['xmcgan'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.fixture(scope="module")
def exported(tiny_workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported")
    export_model(TrainedModel.from_workdir(tiny_workdir), out)
    shutil.copy(ROOT / "scripts" / "run_exported.py", out)
    return out


def read_images(directory: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(directory.glob("0*.png"))])


def assert_same_images(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.std() > 1  # not all of one gray
    np.testing.assert_allclose(ours.astype(int), theirs.astype(int), atol=1)


@pytest.fixture
def generated(run, tiny_workdir, tmp_path):
    """Return a function that gives what generate.py draws for the captions."""

    def draw(*flags: str) -> np.ndarray:
        command = [flag for caption in CAPTIONS for flag in ("--caption", caption)]
        command += ["--num", "1", "--seed", "5", "--out", str(tmp_path / "generated"), *flags]
        assert run("scripts/generate.py", "--workdir", tiny_workdir, *command)[0] == 0
        return read_images(tmp_path / "generated")

    return draw


def run_exported(folder: Path, *arguments: object, monkeypatch: pytest.MonkeyPatch) -> None:
    program = str(folder / "run_exported.py")
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    runpy.run_path(program, run_name="__main__")


def test_it_draws_the_images_of_generate_without_the_package(exported, generated, tmp_path):
    moved = Path(shutil.copytree(exported, tmp_path / "elsewhere"))
    command: Sequence[object] = (
        sys.executable, "-c", WITHOUT_PACKAGE, moved / "run_exported.py", *CAPTIONS,
        "--seed", 5, "--out", tmp_path / "drawn",
    )  # fmt: skip
    subprocess.run([*map(str, command)], cwd=tmp_path, check=True, timeout=300)
    assert_same_images(read_images(tmp_path / "drawn"), generated())


def test_the_program_in_the_readme_draws(exported, tmp_path):
    program = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(program.strip().replace("\n\n", "\n").split("\n")) <= 10
    (tmp_path / "exported").symlink_to(exported)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-c", WITHOUT_PACKAGE, "program.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    image = np.asarray(Image.open(tmp_path / "red_circle.png"))
    assert image.ndim == 3
    assert image.std() > 1


def test_a_fixed_batch_and_raw_weights_draw_the_same_as_well(
    run, tiny_workdir, generated, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    flags = ("--workdir", tiny_workdir, "--out", out, "--batch-size", 3, "--raw")
    status, output, _ = run("scripts/export.py", *flags)
    assert status == 0
    assert all(name in output for name in (*FILES, "run_exported.py"))
    assert json.loads((out / "manifest.json").read_text())["batch_size"] == 3
    arguments = (*CAPTIONS, "--seed", 5, "--out", tmp_path / "drawn")
    run_exported(out, *arguments, monkeypatch=monkeypatch)
    assert_same_images(read_images(tmp_path / "drawn"), generated("--raw"))


def test_another_process_writes_the_same_bytes_and_no_path_of_the_machine(
    exported, tiny_workdir, tmp_path
):
    command = [sys.executable, ROOT / "scripts" / "export.py", "--workdir", tiny_workdir]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    command = [*map(str, command), "--out", str(tmp_path / "again")]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=300)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name
    program = (exported / "sampler.jax_export").read_bytes()
    for path in (ROOT, Path(sys.prefix), Path.home()):
        assert str(path).encode() not in program


def test_a_model_folder_is_exported_too(run, exported, tiny_workdir, tmp_path):
    model = TrainedModel.from_workdir(tiny_workdir)
    info = {"steps": 6, "images_seen": 48}
    folder = save_model(tmp_path / "tiny", model.variables, model.config, info, "")
    status, *_ = run("scripts/export.py", "--model", folder, "--out", tmp_path / "out")
    assert status == 0
    ours, theirs = (
        json.loads((path / "manifest.json").read_text()) for path in (tmp_path / "out", exported)
    )
    assert (ours["model"], ours["step"], ours["weights"]) == ("tiny", 6, "ema")
    assert ours["arguments"] == theirs["arguments"]


def test_the_manifest_says_what_was_exported(exported, tiny_workdir):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert (manifest["step"], manifest["weights"], manifest["batch_size"]) == (6, "ema", None)
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert manifest["config"] == json.loads((tiny_workdir / "config.json").read_text())
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("sampler.jax_export", truncate, "sampler.jax_export is damaged"),
        ("weights.npz", truncate, "weights.npz is damaged"),
        ("tokenizer.json", Path.unlink, "tokenizer.json: No such file"),
        ("manifest.json", Path.unlink, "manifest.json: No such file"),
        ("manifest.json", truncate, "manifest.json is damaged"),
    ],
)
def test_damaged_and_missing_files_are_named(exported, tmp_path, monkeypatch, name, harm, message):
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    harm(folder / name)
    with pytest.raises(SystemExit, match=message):
        run_exported(folder, "a red circle", "--out", tmp_path, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir", "absent", "--out", "x"], "is absent a workdir of a run?"),
        (["--workdir", "WORKDIR", "--out", "x", "--batch-size", "0"], "--batch-size is 0"),
        (["--workdir", "WORKDIR", "--out", "/dev/null/x"], "cannot write to --out /dev/null/x"),
    ],
)
def test_mistakes_are_named(run, monkeypatch, tiny_workdir, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    flags = [str(tiny_workdir) if flag == "WORKDIR" else flag for flag in flags]
    status, _, errors = run("scripts/export.py", *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
