"""Results are whole lines: none is lost, none is half there."""

import dataclasses

import pytest

from xmcgan.errors import EvaluationError
from xmcgan.evaluation.results import Result, ResultFile, best_result, result_rows
from xmcgan.utils.statistics import Score


def make_result(step: int, fd: float, weights="ema", recipe="r") -> Result:
    scores = {
        "p/fd": Score(fd, fd - 1, fd + 1, "lower"),
        "p/recall": Score(fd, None, None, "higher", "a note"),
    }
    return Result(step, weights, recipe, f"digest {step}", scores, 12.5, 3.25)


def test_results_come_back_as_they_were(tmp_path):
    file = ResultFile(tmp_path)
    assert file.read() == []
    results = [make_result(10, 5.0), make_result(20, float("nan")), make_result(20, 3.0, "raw")]
    for result in results:
        file.append(result)
    assert [repr(result) for result in ResultFile(tmp_path).read()] == list(map(repr, results))


def test_a_line_that_was_cut_by_a_kill_is_as_if_it_had_not_been(tmp_path):
    file = ResultFile(tmp_path)
    for step in (1, 2):
        file.append(make_result(step, 1.0))
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (first + 1, first + 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [result.step for result in file.read()] == [1]
        file.append(make_result(3, 1.0))
        assert [result.step for result in file.read()] == [1, 3]


def test_a_line_that_is_no_result_is_named(tmp_path):
    file = ResultFile(tmp_path)
    file.append(make_result(1, 1.0))
    with (tmp_path / "results.jsonl").open("a") as lines:
        lines.write('{"step": 2}\n')
    with pytest.raises(EvaluationError, match="line 2"):
        file.read()


def test_a_recipe_is_known_by_its_content(tmp_path):
    file = ResultFile(tmp_path)
    name = file.write_recipe({"samples": 10, "measures": {"a": 1}})
    assert file.write_recipe({"measures": {"a": 1}, "samples": 10}) == name
    assert file.write_recipe({"measures": {"a": 1}, "samples": 11}) != name
    assert file.read_recipe(name) == {"samples": 10, "measures": {"a": 1}}
    with pytest.raises(EvaluationError, match=r"absent\.json"):
        file.read_recipe("absent")


def test_the_best_result_is_one_of_averaged_weights_and_of_the_last_recipe():
    results = [
        make_result(1, 1.0, recipe="old"),
        make_result(2, 5.0),
        make_result(3, 4.0),
        make_result(4, 2.0, weights="raw"),
        make_result(5, 6.0),
    ]
    best = best_result(results, "p/fd")
    assert best is not None
    assert best.step == 3
    higher = best_result(results, "p/recall")
    assert higher is not None
    assert higher.step == 5
    assert best_result(results, "p/kid") is None
    assert best_result([], "p/fd") is None
    assert dataclasses.replace(best, checkpoint="x").key != best.key


def test_the_table_marks_flattered_scores_alone():
    fair = Score(1.0)
    scores = {"a/fd": fair, "b/fd": dataclasses.replace(fair, flattered=True)}
    rows = result_rows([Result(1, "ema", "r", "c", scores, 1.0, 1.0)])
    assert [row[0] for row in rows if "flattered" in row[-1]] == ["b/fd"]
