"""The page of a run says what its files say, whatever state the run is in."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmcgan.errors import ConfigError
from xmcgan.evaluation.results import Result, ResultFile
from xmcgan.studies.run_report import CURVES_FILE, write_report
from xmcgan.studies.training_curves import draw_curves, thinned
from xmcgan.train import train
from xmcgan.training.logging import read_curves
from xmcgan.utils.files import lock_workdir
from xmcgan.utils.provenance import RUN_FILE, commit, read_starts, record_end, record_start
from xmcgan.utils.statistics import Score


@pytest.fixture
def workdir(tiny_workdir: Path, tmp_path: Path) -> Path:
    """Return a copy of the files of a finished run that the page reads; few curves draw quickly."""
    copy = tmp_path / "my run"
    shutil.copytree(tiny_workdir, copy, ignore=shutil.ignore_patterns("checkpoints"))
    lines = (tiny_workdir / "metrics.jsonl").read_text().splitlines()
    kept = [{name: json.loads(line)[name] for name in ("step", "g_loss")} for line in lines]
    (copy / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    return copy


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_page_of_a_finished_run_shows_pictures_numbers_and_settings(workdir):
    page = write_report(workdir).read_text()
    assert "# Run my run" in page
    assert "Finished at step 6." in page
    assert "![newest samples](samples/step_00000006.png)" in page
    assert "[3](samples/step_00000003.png)" in page
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    row = next(line for line in page.splitlines() if line.startswith("| g_loss "))
    assert row.split(" | ")[3].rstrip(" |") == f"{last['g_loss']:.4g}"
    assert "| batch_size | 8 | 56 |" in page
    assert "Retrieval by chance is 0.125" in page
    assert Image.open(workdir / CURVES_FILE).width > 1000


def test_links_of_a_page_elsewhere_lead_to_the_files(workdir, tmp_path):
    page = write_report(workdir, tmp_path / "out" / "deep")
    for link in ("samples/step_00000006.png", "samples/step_00000003.png"):
        target = next(
            part.partition(")")[0]
            for part in page.read_text().split("](")
            if part.partition(")")[0].endswith(link)
        )
        assert (page.parent / target.replace("%20", " ")).samefile(workdir / link)


def test_nothing_else_in_the_workdir_changes(workdir):
    before = contents(workdir)
    write_report(workdir)
    after = contents(workdir)
    assert {path.name for path in after.keys() - before.keys()} == {"report.md", CURVES_FILE}
    assert all(after[path] == content for path, content in before.items())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("finished", "Finished at step 4."),
        ("SIGTERM", "Stopped by SIGTERM and saved at step 4 of 9."),
        ("killed", "Exited without recording a status; step 6 of 9 is logged."),
        ("going on", "Training as process"),
    ],
)
def test_the_page_says_how_far_the_run_is(workdir, how, said):
    record_start(workdir, 0, 9)
    if how in ("finished", "SIGTERM"):
        record_end(workdir, 4, how)
    with lock_workdir(workdir) if how == "going on" else contextlib.nullcontext():
        assert said in write_report(workdir).read_text()


def test_scores_stand_on_the_page_and_damaged_ones_are_said_to_be(workdir):
    (workdir / "evaluation").mkdir()
    scores = {"fd-x/fd": Score(12.5, 12.0, 13.0, "lower", "")}
    ResultFile(workdir / "evaluation").append(Result(6, "ema", "abc", "d", scores, 1.0, 1.0))
    assert "| fd-x/fd | 12.5 | 12 to 13 |" in write_report(workdir).read_text()
    (workdir / "evaluation" / "results.jsonl").write_text("{}\n")
    assert "results.jsonl line 1 is not a result" in write_report(workdir).read_text()


def test_a_run_without_any_log_has_a_page_too(workdir):
    for name in ("metrics.jsonl", RUN_FILE):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "samples")
    assert "Nothing is logged yet." in write_report(workdir).read_text()
    assert not (workdir / CURVES_FILE).exists()


def test_a_log_is_read_as_far_as_it_can_be(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "time": 5, "a": 2, "b": "NaN"}\nno json\n{"a": 3}\n[1]\n'
        '{"step": 2, "a": "Infinity", "note": "text", "b": 4}\n{"step": 3, "a"'
    )
    curves = read_curves(path)
    assert list(curves) == ["a", "b"]
    np.testing.assert_array_equal(curves["a"], [[1, 2], [2, np.nan]])
    np.testing.assert_array_equal(curves["b"], [[1, 2], [np.nan, 4]])


@pytest.mark.parametrize("count", [1, 400, 401, 1234])
def test_thinned_points_are_means_of_neighbors(count):
    rng = np.random.default_rng(count)
    steps, values = np.arange(count, dtype=float), rng.normal(size=count)
    size = -(-count // 400)
    groups = [slice(at, at + size) for at in range(0, count, size)]
    expected = [[np.mean(x[g]) for g in groups] for x in (steps, values)]
    np.testing.assert_allclose(thinned(steps, values), expected, rtol=1e-12, atol=1e-12)


def test_every_logged_curve_is_in_one_panel_and_a_new_name_gets_its_own(tiny_workdir):
    curves = read_curves(tiny_workdir / "metrics.jsonl")
    curves["new_name"] = curves["skipped_updates"] = (np.array([1.0, 2.0]), np.array([0.0, 0.0]))
    figure = draw_curves(curves, "", chance=0.1, resumed_at=[1])
    titles = [axis.get_title() for axis in figure.axes]
    assert "new_name" in titles
    assert "skipped updates" not in titles  # there were none
    drawn = sum(
        line.get_label() != "chance" and len(line.get_xdata()) != 2
        for axis in figure.axes
        for line in axis.get_lines()
    )
    assert drawn == len(curves) - 2
    by_title = {axis.get_title(): axis for axis in figure.axes}
    labels = by_title["losses of the generator"].get_legend_handles_labels()[1]
    assert labels == ["g loss", "hinge", "image discriminator", "sentence", "word"]


def test_every_start_is_recorded_with_what_it_ran_on(workdir):
    (start,) = read_starts(workdir)
    root = Path(__file__).parents[2]
    assert start["commit"] == commit(root)
    if start["commit"]:
        head = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        assert start["commit"].rstrip("+") == head.stdout.strip()
    assert start["packages"]["numpy"] == np.__version__
    assert (start["first_step"], start["num_train_steps"]) == (0, 6)
    assert start["end"]["how"] == "finished"
    record_start(workdir, 6, 9)
    assert [entry["first_step"] for entry in read_starts(workdir)] == [0, 6]
    assert "end" not in read_starts(workdir)[1]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"starts": [1]}', b'{"starts": [{"end": 1}]}'])
def test_a_damaged_record_of_starts_is_set_aside_and_stops_nothing(workdir, content, capsys):
    (workdir / RUN_FILE).write_bytes(content)
    assert read_starts(workdir) == []
    record_start(workdir, 0, 9)
    assert len(read_starts(workdir)) == 1
    assert "set aside" in capsys.readouterr().err
    (aside,) = workdir.glob(f"{RUN_FILE}.damaged-*")
    assert aside.read_bytes() == content


def test_the_page_of_a_resumed_run_shows_its_starts(tiny_workdir, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_workdir, workdir)
    tiny_config.num_train_steps = 7
    assert train(tiny_config, workdir) == 0
    page = write_report(workdir).read_text()
    assert "Finished at step 7." in page
    assert [start["first_step"] for start in read_starts(workdir)] == [0, 6]
    assert sum("finished, step" in line for line in page.splitlines()) == 2


def test_the_command_writes_the_page_elsewhere(run, workdir, tmp_path):
    before = contents(workdir)
    status, output, _ = run("scripts/report.py", "--workdir", workdir, "--out", tmp_path / "page")
    assert status == 0
    assert str(tmp_path / "page" / "report.md") in output
    assert contents(workdir) == before


def test_what_is_no_workdir_is_named(run, tmp_path):
    with pytest.raises(ConfigError, match="a workdir of a run"):
        write_report(tmp_path)
    status, _, errors = run("scripts/report.py", "--workdir", tmp_path / "none")
    assert status == 2
    assert errors.startswith("error: ")
