"""Scores inside the training process: the separate job's files, and the same training."""

import json

import jax
import numpy as np
import pytest
import tiny
import tiny_network

from xmcgan.errors import ConfigError
from xmcgan.evaluation.evaluator import Options
from xmcgan.evaluation.results import ResultFile
from xmcgan.evaluation.watch import EvaluationJob
from xmcgan.studies.run_report import write_report
from xmcgan.train import train
from xmcgan.training.checkpoint import committed_steps, pinned_steps, restore_subtree
from xmcgan.utils.files import lock_workdir

METRIC = "tiny:Brightness"


@pytest.fixture
def scored(tiny_config, tmp_path_factory, monkeypatch):
    """A tiny config with scores of 4 samples every 3 steps, and data of its own to keep them."""
    tiny_network.install_detector(monkeypatch)
    tiny_config.data.data_dir = str(tiny.write_shapes(tmp_path_factory.mktemp("scored")))
    tiny_config.evaluation.every_steps = 3
    tiny_config.evaluation.training_metrics = METRIC
    tiny_config.evaluation.training_samples = 4
    return tiny_config


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _learned(workdir):
    clock = {"time", "images_per_second", "data_wait_share"}
    lines = [line for line in _lines(workdir) if "evaluation_seconds" not in line]
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def test_training_is_the_same_and_the_separate_job_finds_its_scores(scored, tiny_workdir, tmp_path):
    assert train(scored, tmp_path) == 0
    parts = ("g_params", "g_opt_state", "ema_params", "d_params", "rng")
    states = [restore_subtree(w / "checkpoints", 6, parts) for w in (tmp_path, tiny_workdir)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert _learned(tmp_path) == _learned(tiny_workdir)

    results = ResultFile(tmp_path / "evaluation").read()
    assert [(r.step, r.weights) for r in results] == [(3, "ema"), (6, "ema")]
    costs = {x["step"]: x["evaluation_seconds"] for x in _lines(tmp_path) if len(x) == 3}
    assert costs.keys() == {3, 6}
    assert min(costs.values()) > 0
    options = Options(metrics=[METRIC], num_samples=4, weights=("ema",))
    assert EvaluationJob(tmp_path, options).run() == 0  # nothing is scored twice

    page = write_report(tmp_path).read_text()
    assert "brightness/fake" in page
    assert "![scores](report_scores.png)" in page
    assert (tmp_path / "report_scores.png").stat().st_size > 0


def test_the_best_checkpoint_outlives_the_ones_that_are_kept(scored, tmp_path):
    scored.keep_checkpoints, scored.evaluation.every_steps = 1, 2  # not where checkpoints are due
    scored.num_train_steps = 8
    assert train(scored, tmp_path) == 0
    results = ResultFile(tmp_path / "evaluation").read()
    assert [r.step for r in results] == [2, 4, 6, 8]
    best = min(results, key=lambda r: r.scores["brightness/fake"].value).step
    assert pinned_steps(tmp_path / "checkpoints", "best") == {best}
    assert best in committed_steps(tmp_path / "checkpoints")


def test_a_separate_job_that_is_at_work_keeps_no_run_from_going_on(scored, tmp_path, capsys):
    with lock_workdir(tmp_path / "evaluation"):
        assert train(scored, tmp_path) == 0
    assert "training goes on without these scores" in capsys.readouterr().out
    assert ResultFile(tmp_path / "evaluation").read() == []


def test_a_metric_that_does_not_exist_ends_the_run_before_its_first_step(scored, tmp_path):
    scored.evaluation.training_metrics = "brightnes"
    with pytest.raises(ConfigError, match="brightnes"):
        train(scored, tmp_path)
    assert committed_steps(tmp_path / "checkpoints") == []
