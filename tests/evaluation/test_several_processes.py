"""Several processes give the scores of one; process 0 writes, and a mistake of one ends all."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import processes
import pytest
import tiny_clip
import tiny_network
from eval_program import PROGRAM
from PIL import Image

from xmcgan.evaluation import evaluator, extraction
from xmcgan.training.checkpoint import pinned_steps


@pytest.fixture(autouse=True)
def leave_no_process_behind():
    yield
    processes.kill_started()


def evaluate(*arguments: object, own: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Run eval_fid.py in processes of two devices; return the status and output of each."""
    flags = processes.cluster_flags(len(own)) if len(own) > 1 else [[]]
    running = [
        processes.start(*arguments, *mine, *meeting, devices=2, program=PROGRAM)
        for mine, meeting in zip(own, flags, strict=True)
    ]
    return processes.finish(running, 400)


def write_images(directory: Path, seed: int, num: int = 7) -> Path:
    directory.mkdir()
    images = np.random.default_rng(seed).integers(1, 255 - 60 * seed, (num, 8, 8, 3), np.uint8)
    for index, image in enumerate(images):
        Image.fromarray(image).save(directory / f"{index}.png")
    return directory


def values(scores: dict) -> dict[str, float]:
    # CMMD is a thousand times a difference of kernels, which are near 1: rounding grows with it.
    scale = {"cmmd/cmmd": 1e-3}
    return {name: score["value"] * scale.get(name, 1) for name, score in scores.items()}


@pytest.mark.slow
def test_checkpoints_get_the_scores_of_one_process_and_one_line_each(tiny_workdir, tmp_path):
    lines, clip = {}, tiny_clip.write_clip(tmp_path / "clip")
    for name, own in (("one", ((),)), ("two", ((), ()))):
        workdir = Path(shutil.copytree(tiny_workdir, tmp_path / name))
        flags = ("--workdir", workdir, "--cache-dir", workdir / "cache", "--use", "ema")
        flags += ("--cmmd", clip, "--allow-unverified-weights", "--bootstrap", 5)
        # Seven images divide over no devices but one.
        outcomes = evaluate(*flags, "--num-samples", 7, "--watch", own=own)
        assert [status for status, _ in outcomes] == [0] * len(own), outcomes
        assert [f"devices {2 * len(own)}" in output for _, output in outcomes] == [True] * len(own)
        assert ["2 new results" in output for _, output in outcomes] == [True, False][: len(own)]
        results = (workdir / "evaluation" / "results.jsonl").read_text().splitlines()
        lines[name] = [json.loads(line) for line in results]
        events = (workdir / "tensorboard" / "evaluation_ema").iterdir()
        # Their names end in the number of the process that writes, and in 0.
        assert len({file.name.split(".")[-2] for file in events}) == 1
    for one, two in zip(lines["one"], lines["two"], strict=True):
        same = ("step", "weights", "recipe", "checkpoint")
        assert [one[name] for name in same] == [two[name] for name in same]
        assert values(two["scores"]) == pytest.approx(values(one["scores"]), rel=1e-5, abs=1e-5)
    assert [line["step"] for line in lines["two"]] == [3, 6]
    pins = [pinned_steps(tmp_path / name / "checkpoints") for name in lines]
    assert pins[0] == pins[1]
    assert len(pins[1]) == 1


@pytest.mark.slow
def test_folders_get_the_scores_of_one_process(tmp_path):
    sets = [write_images(tmp_path / name, seed) for seed, name in enumerate(("real", "fake"))]
    found = []
    for own in (((),), ((), ())):
        command = ("compare", *sets, "--protocol", "fd-effnet-lite0", "--json", "--batch-size", 4)
        (status, output), *others = evaluate(*command, own=own)
        assert status == 0, output
        for other, silence in others:
            assert other == 0, silence
            assert '"scores"' not in silence
        found.append(json.loads(output[output.index("\n{") : output.rindex("}") + 1]))
    assert values(found[1]["scores"]) == pytest.approx(values(found[0]["scores"]), rel=1e-5)
    assert found[1]["recipe"]["device"].startswith("4 x ")


@pytest.mark.slow
def test_processes_that_differ_are_refused_and_a_mistake_of_one_ends_all(tiny_workdir, tmp_path):
    workdir = Path(shutil.copytree(tiny_workdir, tmp_path / "workdir"))
    flags = ("--workdir", workdir, "--cache-dir", workdir / "cache")
    for own, said in (
        ((("--num-samples", 7), ("--num-samples", 8)), "captions_sha256: "),
        (((), ("--split", "test")), "process 1: "),
    ):
        (first, told), (second, silent) = evaluate(*flags, own=own)
        assert (first, second) == (2, 2), told + silent
        assert said in told
        assert "error" not in silent
    assert not (workdir / "evaluation").exists()


def test_process_0_alone_reads_and_writes_what_is_extracted_from_real_images(
    tiny_workdir, tmp_path, monkeypatch
):
    tiny_network.install(monkeypatch)
    tiny_network.install_detector(monkeypatch)
    options = evaluator.Options(num_samples=4, resamples=0, cache_dir=tmp_path, metrics=["fid"])
    evaluation = evaluator.Evaluator(tiny_workdir, options)
    metric = evaluation._metrics[0]

    def features(*, first: bool, known: bool) -> dict[str, np.ndarray]:
        """Return what a process gets after process 0 has said whether there is a file."""
        monkeypatch.setattr(extraction, "is_host0", lambda: first)
        monkeypatch.setattr(extraction, "broadcast_from_host0", lambda decide: known)
        return extraction.reference_arrays(metric, evaluation._all_real, tmp_path)

    made = features(first=False, known=False)["values"]
    assert not list(tmp_path.glob("*.npz"))
    features(first=True, known=False)
    (path,) = tmp_path.glob("*.npz")
    written = path.read_bytes()
    assert features(first=False, known=True) == {}
    np.testing.assert_array_equal(features(first=True, known=True)["values"], made)
    assert path.read_bytes() == written
