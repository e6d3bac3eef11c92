"""The input benchmark: turns, ratios and cores as stated, from a command line."""

import json

import pytest
from benchmarks import timing
from benchmarks.input import STEP_GFLOP, cores_for_gpu
from official_samples import write_coco

from xmcgan.data.coco import Coco


def test_measures_take_turns_and_the_first_round_is_not_kept():
    calls: list[str] = []

    def measure(name: str, values: list[float]) -> float:
        calls.append(name)
        return values.pop(0)

    a, b = [9.0, 2.0, 6.0, 3.0], [1.0, 1.0, 2.0, 3.0]
    rates = timing.take_turns({"a": lambda: measure("a", a), "b": lambda: measure("b", b)}, 3)
    assert "".join(calls) == "abababab"
    assert rates == {"a": [2.0, 6.0, 3.0], "b": [1.0, 2.0, 3.0]}
    assert timing.median_ratio(rates, "a", "b") == 2.0


def test_cores_are_what_the_gpu_takes_over_what_a_core_gives():
    need = cores_for_gpu(200.0, 128, sustained_tflops=0.1 * STEP_GFLOP[128])
    assert need["consumed_per_second"] == pytest.approx(200.0)
    assert need["cores"] == pytest.approx(1.0)


def test_the_command_writes_a_table_and_json(run, tmp_path, vocab_file):
    source = write_coco(tmp_path / "coco", train=8)
    assert Coco.write(Coco.read([source]), tmp_path / "data")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "vocab.txt").write_bytes(vocab_file.read_bytes())
    (tmp_path / "text" / "config.json").write_text("{}")
    flags = ("--data-dir", tmp_path / "data", "--image-size", 128, "--num", 8, "--rounds", 1)
    flags += ("--workers", 0, "--text-weights", tmp_path / "text", "--json", tmp_path / "out.json")
    status, output, errors = run("scripts/benchmark.py", "input", *flags)
    assert status == 0, errors
    assert "cores that feed one GPU of 400 TFLOP/s" in output
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["command"] == "input"
    assert report["machine"]["cores"] >= 1
    (found,) = report["results"]["one core"]
    rounds = found["rounds"]
    assert found["ratio"] == pytest.approx(rounds["pipeline"][0] / rounds["bare loop"][0])
