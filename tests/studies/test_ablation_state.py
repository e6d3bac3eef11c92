"""A run is trained or scored again exactly when what stands on the disk is not what is wanted."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import Cell
from xmcgan.studies.ablation.runs import Scoring, dry_run, finished_step
from xmcgan.training.checkpoint import checkpoint_digest
from xmcgan.utils.statistics import Score

SCORING = Scoring(20, "fd-effnet-lite0")
MEASURES = {"fd-effnet-lite0": {}, "shapes": {}}


@pytest.fixture
def cell(tiny_config, tiny_workdir, tmp_path) -> Cell:
    """Return a run of six steps that was planned as it was trained."""
    workdir = Path(shutil.copytree(tiny_workdir, tmp_path / "workdir"))
    return Cell("none", 0, workdir, "shapes:quickstart", (), tiny_config)


def changed(cell: Cell, **fields) -> Cell:
    config = cell.config.copy_and_resolve_references()
    config.update(fields)
    return dataclasses.replace(cell, config=config)


def add_result(cell: Cell, *, samples: int = 20, measures=MEASURES, **fields) -> None:
    file = ResultFile(cell.workdir / "evaluation")
    values = {
        "step": 6,
        "weights": "ema",
        "recipe": file.write_recipe({"samples": samples, "measures": measures}),
        "checkpoint": checkpoint_digest(cell.workdir / "checkpoints", 6),
        "scores": {"fd": Score(1.0, None, None, better="lower")},
        "time": 0.0,
        "seconds": 1.0,
    }
    file.append(Result(**(values | fields)))


def test_a_run_is_finished_at_its_planned_step_with_its_own_config(cell):
    assert finished_step(cell) == 6
    assert finished_step(changed(cell, num_train_steps=7)) is None
    assert finished_step(changed(cell, num_train_steps=5)) is None
    assert finished_step(changed(cell, seed=1)) is None
    assert finished_step(changed(cell, keep_checkpoints=9)) == 6  # changes no number
    # Counted in passes over the data, a run knows itself how long it was to be.
    assert finished_step(changed(cell, num_train_steps=0)) == 6
    shutil.rmtree(cell.workdir / "checkpoints" / "6")
    assert finished_step(cell) is None


def test_what_is_damaged_is_left_to_training(cell):
    record = cell.workdir / "checkpoints" / "6" / "record" / "record.json"
    record.write_text(record.read_text()[:-9])
    assert finished_step(cell) is None
    (cell.workdir / "config.json").write_text("{")
    assert finished_step(cell) is None


def test_a_dry_run_tells_a_finished_run_from_one_of_another_config(cell):
    assert "none, seed 0: trained" in dry_run([cell], SCORING)
    add_result(cell)
    assert "none, seed 0: done\nleft: 0 images" in dry_run([cell], SCORING)
    assert "none, seed 0: at step 6" in dry_run([changed(cell, num_train_steps=9)], SCORING)
    text = dry_run([changed(cell, batch_size=4)], SCORING)
    assert "none, seed 0: in the way: a run of another config" in text


def test_a_result_counts_where_it_is_of_this_checkpoint_and_this_measure(cell):
    add_result(cell, step=3)
    add_result(cell, weights="raw")
    add_result(cell, checkpoint="of another run")
    add_result(cell, samples=21)
    add_result(cell, measures={"fid-2015": {}})
    assert SCORING.find_result(cell) is None
    add_result(cell)
    add_result(cell, samples=22)  # a later one of another kind hides nothing
    assert SCORING.find_result(cell) is not None
    assert dataclasses.replace(SCORING, clip="clip").find_result(cell) is None
    assert SCORING.find_result(changed(cell, seed=1)) is None


def test_damaged_results_are_told_of_and_keep_no_other_from_the_table(cell):
    add_result(cell)
    with (cell.workdir / "evaluation" / "results.jsonl").open("a") as file:
        file.write("no result\n")
    with pytest.raises(EvaluationError, match="line 2 is not a result"):
        SCORING.find_result(cell)
    assert SCORING.find_results([cell]) == {}


def test_flags_ask_eval_fid_for_what_counts_afterwards(tmp_path):
    scoring = Scoring(50, "fid-2015", "inception.pth", "clip/")
    assert " ".join(scoring.flags(Path("run"), 9)) == (
        "--workdir run --step 9 --use ema --num-samples 50 --protocols fid-2015 "
        "--weights fid-2015=inception.pth --clip clip/"
    )


def test_a_protocol_that_flatters_some_rows_only_is_refused(cell):
    loss = {"enabled": True, "network": "efficientnet_lite0"}
    trained_on_it = changed(cell, losses={"image_pretrained": loss})
    with pytest.raises(EvaluationError, match="flatter"):
        SCORING.check([cell, trained_on_it])
