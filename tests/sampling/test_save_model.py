"""Model cards say what the run recorded, and hold every section; those of the clone are whole."""

import json
import re

import pytest

from xmcgan.errors import WeightsError
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.pretrained.weights import SOURCES, resolve
from xmcgan.sampling.model_folder import MODELS_DIR, WEIGHTS, load_model
from xmcgan.sampling.sampler import sample_noise
from xmcgan.training.checkpoint import checkpoint_digest
from xmcgan.utils.provenance import RUN_FILE
from xmcgan.utils.statistics import Score

SAVE = "scripts/save_model.py"
SECTIONS = ("Data", "Training", "Scores", "What it cannot do", "License")
NOTES = """It draws tiny things.

## Data
Ten shapes.

## What it cannot do
Photographs.

## License
Apache-2.0.
"""
MODELS = sorted(path for path in MODELS_DIR.glob("*") if path.is_dir())


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text(NOTES)
    return path


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
    """Return the tiny run with an interruption and with scores of several checkpoints."""
    path = tmp_path / "workdir"
    path.mkdir()
    for file in tiny_workdir.iterdir():
        if file.name != RUN_FILE:
            (path / file.name).symlink_to(file)
    common = {"time": "2026-01-01T00:00:00+00:00", "python": "3.11", "jax_version": "1",
              "num_train_steps": 6, "device": "1 x cpu", "commit": "a" * 40}  # fmt: skip
    first = common | {"first_step": 0, "command": "python train.py --workdir /home/me/runs/w"}
    second = common | {"first_step": 3, "command": "python train.py --config.seed=1"}
    ends = [{"step": 3, "how": "SIGTERM"}, {"step": 6, "how": "finished"}]
    entries = [first | {"end": ends[0]}, second | {"end": ends[1]}]
    (path / RUN_FILE).write_text(json.dumps({"starts": entries}))
    (path / "evaluation").mkdir()
    file = ResultFile(path / "evaluation")
    data = {"data": "shapes/tiny", "split": "validation"}
    recipe = file.write_recipe({"samples": 320, "image_size": 32, "data": data})
    for step, weights, value in ((3, "ema", 33.5), (6, "raw", 44.5), (6, "ema", 66.5)):
        digest = checkpoint_digest(path / "checkpoints", step)
        scores = {"fd-effnet-lite2/fd": Score(value, 60.0, 70.0, "lower", "flattered")}
        file.append(Result(step, weights, recipe, digest, scores, 0.0, 0.0))
    return path


def sections_of(card: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", card, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_a_checkpoint_becomes_a_model_folder_whose_card_says_how_it_was_made(
    run, workdir, notes, tmp_path
):
    out = tmp_path / "models" / "tiny"
    flags = ("--notes", notes, "--machine", "half a core", "--out", out)
    status, output, _ = run(SAVE, "--workdir", workdir, *flags)
    assert status == 0
    assert all(name in output for name in (WEIGHTS, "config.json", "model.json", "README.md"))
    card = (out / "README.md").read_text()
    sections = sections_of(card)
    assert [*sections] == [*SECTIONS]
    assert "It draws tiny things." in card.partition("## ")[0]
    assert "Ten shapes." in sections["Data"]
    for said in ("| 6 |", "| 48 |", "half a core", "SIGTERM, step 3", "aaaaaaaaaa", "seed=1"):
        assert said in sections["Training"], said
    assert "--workdir w" in sections["Training"]
    assert "/home/me" not in card
    for said in ("66.5", "60 to 70", "flattered", "fd-effnet-lite2/fd", "320 images"):
        assert said in sections["Scores"], said
    assert not {"33.5", "44.5"} & set(re.findall(r"[\d.]+", sections["Scores"]))
    facts = json.loads((out / "model.json").read_text())
    assert (facts["steps"], facts["images_seen"], facts["starts"]) == (6, 48, 2)
    assert load_model(out).step == 6


def test_hours_are_those_of_the_logged_steps(run, workdir, notes, tmp_path):
    (workdir / "metrics.jsonl").unlink()
    lines = [{"step": step, "images_per_second": 0.01} for step in (2, 4, 6, 8)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(SAVE, "--workdir", workdir, "--notes", notes, "--out", tmp_path / "m")[0] == 0
    hours = json.loads((tmp_path / "m" / "model.json").read_text())["training_hours"]
    assert hours == pytest.approx(3 * 2 * 8 / 0.01 / 3600, abs=0.01)  # two steps of 8 images a line


@pytest.mark.parametrize("section", ["Data", "What it cannot do", "License"])
def test_notes_without_a_section_are_refused_by_its_name(run, notes, section):
    notes.write_text(NOTES.replace(f"## {section}\n", ""))
    status, _, errors = run(SAVE, "--workdir", "unread", "--notes", notes, "--out", "unwritten")
    assert (status, f"## {section}" in errors) == (2, True)


def test_notes_that_are_not_there_are_named(run, tmp_path):
    flags = ("--notes", tmp_path / "absent.md", "--out", "unwritten")
    status, _, errors = run(SAVE, "--workdir", "unread", *flags)
    assert (status, "absent.md" in errors) == (2, True)


@pytest.mark.parametrize("folder", MODELS, ids=lambda path: path.name)
def test_models_of_the_clone_are_small_whole_and_described(folder):
    assert (folder / WEIGHTS).stat().st_size <= 8e6
    sections = sections_of((folder / "README.md").read_text(encoding="utf-8"))
    assert [name for name in SECTIONS if not sections.get(name, "").strip()] == []
    assert "not evaluated" not in sections["Scores"]
    for name in ("README.md", "config.json", "model.json"):
        text = (folder / name).read_text(encoding="utf-8")
        assert re.findall(r"""["'\s=]/\w+/\S*""", text) == [], "a folder of a machine"
    facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert facts["name"] == folder.name
    assert facts["text_encoder"]["name"] in SOURCES  # anyone can fetch it
    try:
        resolve(facts["text_encoder"]["name"])
    except WeightsError:
        pytest.skip("loading it needs the text encoder: scripts/fetch_weights.py")
    model = load_model(folder.name)
    z = sample_noise(0, 2, model.config.generator.z_dim)
    assert model(["a red circle", "red heart"], z).std() > 1
