"""The table on the disk shows what the runs reached, and compares only what compares."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import special, stats

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.protocols import get_protocol
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.ablation.plan import Cell, combinations, plan_cells
from xmcgan.studies.ablation.report import compare_scores, students_interval, write_report
from xmcgan.utils.statistics import Estimate, Score

PROTOCOL = get_protocol("fd-effnet-lite0")
FD, COLORS = "fd-effnet-lite0/fd", "shapes/colors"
RECIPE = {
    "samples": 200,
    "data": {"data": "shapes", "split": "validation"},
    "text_encoder": {"weights": "minilm"},
    "measures": {"fd-effnet-lite0": {"weights_sha256": "12" * 32}, "shapes": {}},
}
# By row, a value a seed: distances and shares of colors.
REACHED = {
    "none": [(90.0, 0.10), (94.0, 0.12), (86.0, 0.11)],
    "sentence": [(60.0, 0.50), (63.0, 0.56), (57.0, 0.53)],
    "word": [(70.0, 0.45), (72.0, 0.40), (71.0, 0.41)],
    "sentence+word": [(50.0, 0.60), (55.0, 0.66), (45.0, 0.63)],
}


def make_result(cell: Cell, fd: float, colors: float, recipe: dict = RECIPE) -> Result:
    scores = {
        FD: Score(fd, fd - 1, fd + 1, better="lower"),
        COLORS: Score(colors, colors - 0.01, colors + 0.01, better="higher"),
        f"{COLORS}_real": Score(1.0, better="higher"),
        f"{COLORS}_shuffled": Score(0.2, better="higher"),
    }
    return Result(
        step=400,
        weights="ema",
        recipe=ResultFile(cell.workdir / "evaluation").write_recipe(recipe),
        checkpoint="ab",
        scores=scores,
        time=0.0,
        seconds=1.0,
    )


def make_table(out: Path, seeds: int = 3) -> tuple[list[Cell], dict[Path, Result]]:
    spec, grid = "shapes:quickstart", ("sentence", "word")
    cells = plan_cells(spec, combinations(grid), seeds=seeds, overrides=("batch_size=16",), out=out)
    return cells, {c.workdir: make_result(c, *REACHED[c.losses][c.seed]) for c in cells}


def rows_of(out: Path) -> dict[str, dict]:
    content = json.loads((out / "ablation.json").read_text())
    return {row["losses"]: row for row in content["rows"]}


def test_the_table_has_means_and_differences_with_their_intervals(tmp_path):
    cells, found = make_table(tmp_path)
    text = write_report(cells, found, PROTOCOL, [], tmp_path)
    row = rows_of(tmp_path)["sentence"]["scores"]
    values, baseline = ([value[0] for value in REACHED[name]] for name in ("sentence", "none"))
    assert row[FD]["values"] == values
    expected = stats.t.interval(0.95, 2, loc=60, scale=stats.sem(values))
    assert (row[FD]["mean"]["low"], row[FD]["mean"]["high"]) == pytest.approx(expected)
    expected = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    apart = row[FD]["difference"]
    assert apart["value"] == -30
    assert (apart["low"], apart["high"]) == pytest.approx((expected.low, expected.high))
    assert f"-30.00 ({expected.low:.2f} to {expected.high:.2f})" in text
    markdown = (tmp_path / "ablation.md").read_text()
    assert "| sentence | 3 | 60.00 (52.55 to 67.45) | 53.0 (45.5 to 60.5) |" in markdown
    assert "| shuffled captions |  | - | 20.0 |" in markdown
    assert rows_of(tmp_path)["none"]["scores"][FD]["difference"] is None


def test_the_table_says_how_it_was_made(tmp_path):
    cells, found = make_table(tmp_path)
    write_report(cells, found, PROTOCOL, [], tmp_path)
    markdown = (tmp_path / "ablation.md").read_text()
    for part in ("`--config shapes:quickstart --config.batch_size=16`", "400 steps of 16 images",
                 "6,400 images", "200 images of the averaged weights", "12" * 8, "commit",
                 "CPU cores", "Student's t over seeds"):  # fmt: skip
        assert part in markdown


def test_one_seed_has_the_intervals_of_the_images_and_says_so(tmp_path):
    cells, found = make_table(tmp_path, seeds=1)
    write_report(cells, found, PROTOCOL, [], tmp_path)
    markdown = (tmp_path / "ablation.md").read_text()
    assert "| word | 1 | 70.00 (69.00 to 71.00) |" in markdown
    assert "| word | -20.00 |" in markdown
    assert "With one seed nothing tells how much training varies" in markdown


def test_a_row_without_runs_keeps_its_place_and_failures_are_told(tmp_path):
    cells, found = make_table(tmp_path)
    lost = {c.workdir for c in cells if c.losses == "word" or (c.losses, c.seed) == ("none", 2)}
    left = {workdir: result for workdir, result in found.items() if workdir not in lost}
    write_report(cells, left, PROTOCOL, ["word, seed 0: training was killed"], tmp_path)
    markdown = (tmp_path / "ablation.md").read_text()
    assert "| word | 0 | - | - |" in markdown
    assert "| none | 2 | 92.00 (" in markdown
    assert "Failed: word, seed 0: training was killed" in markdown
    assert "No score yet: word, seed 0; word, seed 1" in markdown
    write_report(cells, {cells[-1].workdir: found[cells[-1].workdir]}, PROTOCOL, [], tmp_path)
    assert "| sentence + word | - | - |" in (tmp_path / "ablation.md").read_text()  # no baseline


def test_runs_that_were_scored_in_different_ways_are_not_compared(tmp_path):
    cells, found = make_table(tmp_path)
    found[cells[1].workdir] = make_result(cells[1], 1.0, 1.0, RECIPE | {"noise_seed": 1})
    with pytest.raises(EvaluationError, match="scored in different ways"):
        write_report(cells, found, PROTOCOL, [], tmp_path)


def test_the_picture_has_a_panel_a_score_and_a_mark_a_seed(tmp_path):
    cells, found = make_table(tmp_path)
    write_report(cells, found, PROTOCOL, [], tmp_path)
    with Image.open(tmp_path / "ablation.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    light_blue = np.abs(pixels - (0x9B, 0xBC, 0xF2)).sum(axis=-1) < 12
    assert light_blue[:, : pixels.shape[1] // 2].any()
    assert light_blue[:, pixels.shape[1] // 2 :].any()


def approx(*values: float) -> list:
    return [pytest.approx(value) for value in values]


def quantile(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t from the incomplete beta function."""
    x = special.betaincinv(freedom / 2, 0.5, 0.05)
    return math.sqrt(freedom * (1 / x - 1))


def reached(values: dict[int, float], interval: bool = True) -> Any:
    """Return results whose score "fd" has these values by seed."""
    scores = {
        seed: Score(v, v - 1 if interval else None, v + 2 if interval else None, "lower")
        for seed, v in values.items()
    }
    return {s: SimpleNamespace(scores={"fd": score}) for s, score in scores.items()}


def mean(values: dict[int, float], interval: bool = True) -> Estimate:
    return compare_scores(reached(values, interval), {})["fd"]["mean"]


def difference(values: dict[int, float], baseline: dict[int, float]) -> Estimate | None:
    return compare_scores(reached(values), reached(baseline))["fd"]["difference"]


def test_the_mean_of_seeds_has_students_interval():
    values = [61.0, 64.5, 58.25]
    found = mean(dict(enumerate(values)))
    middle = sum(values) / 3
    spread = quantile(2) * math.sqrt(sum((value - middle) ** 2 for value in values) / 2 / 3)
    expected = approx(middle, middle - spread, middle + spread)
    assert dataclasses.astuple(found) == (*expected, "seeds")
    assert quantile(1) == pytest.approx(12.706, abs=1e-3)  # of the tables


def test_one_seed_has_the_interval_of_the_evaluation():
    assert mean({0: 5.0}) == Estimate(5.0, 4.0, 7.0, "images")
    assert mean({0: 5.0}, interval=False) == Estimate(5.0)
    assert compare_scores({}, {}) == {}


def test_a_difference_has_the_paired_interval():
    within = [2.0, 2.5, 1.5]  # seed 9 has no partner
    found = difference({0: 3.0, 1: 4.0, 2: 8.0}, {2: 6.5, 0: 1.0, 1: 1.5, 9: 100.0})
    assert found is not None
    low, high = stats.t.interval(0.95, 2, loc=2, scale=stats.sem(within))
    assert dataclasses.astuple(found) == (*approx(2, low, high), "seeds")


def test_single_seeds_and_seeds_without_any_spread_have_no_interval_of_seeds():
    assert difference({0: 3.0, 1: 5.0}, {1: 1.0}) == Estimate(4.0)
    assert difference({0: 3.0, 1: 4.0}, {0: 1.0, 1: 2.0}) == Estimate(2.0)
    assert difference({0: 3.0}, {1: 1.0}) is None
    assert mean({0: 0.0, 1: 0.0}) == Estimate(0.0)


def test_intervals_hold_the_true_difference_in_95_of_100_tables():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shared = rng.normal(0, 5, 4)  # what a seed does to all rows
        row, baseline = shared + rng.normal(5, 2, 4), shared + rng.normal(2, 1, 4)
        found = students_interval((row - baseline).tolist())
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low < 20
        held += found.low <= 3 <= found.high
    assert 0.92 <= held / 400 <= 0.98
