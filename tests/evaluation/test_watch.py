"""The evaluation job gives every checkpoint a whole result or none, whatever happens to it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_network

from xmcgan.errors import CheckpointError, ConfigError, EvaluationError
from xmcgan.evaluation import evaluator, metrics, watch
from xmcgan.evaluation.evaluator import Options
from xmcgan.evaluation.features import FeatureExtractor
from xmcgan.evaluation.metrics import retrieval
from xmcgan.evaluation.results import Result, ResultFile, write_report
from xmcgan.evaluation.watch import EvaluationJob
from xmcgan.shapes import alignment
from xmcgan.shapes.detector import Detector
from xmcgan.shapes.detector_training import TrainingRecipe, train_detector
from xmcgan.training.checkpoint import committed_steps, pin, pinned_steps
from xmcgan.utils.files import lock_workdir

NUM_SAMPLES = 20


@pytest.fixture(scope="session")
def detector() -> Detector:
    """Return a detector that has hardly been trained."""
    recipe = TrainingRecipe(32, num_scenes=4, num_epochs=1, batch_size=16, width=4)
    return Detector(recipe, train_detector(recipe))


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch, detector: Detector) -> None:
    tiny_network.install(monkeypatch)
    monkeypatch.setattr(alignment, "open_detector", lambda *args: detector)


@pytest.fixture
def workdir(tiny_workdir: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, with checkpoints of steps 3 and 6."""
    return Path(shutil.copytree(tiny_workdir, tmp_path / "workdir"))


def make_job(workdir: Path, **changes) -> EvaluationJob:
    settings = {"num_samples": NUM_SAMPLES, "resamples": 0, "cache_dir": workdir.parent / "cache"}
    return EvaluationJob(workdir, Options(**(settings | changes)))


def read(workdir: Path) -> list[Result]:
    return ResultFile(workdir / "evaluation").read()


def test_every_checkpoint_gets_a_result_of_each_kind_of_weights_once(workdir):
    assert make_job(workdir).run() == 4
    results = read(workdir)
    assert [(r.step, r.weights) for r in results] == [
        (3, "ema"), (3, "raw"), (6, "ema"), (6, "raw")
    ]  # fmt: skip
    names = set(results[0].scores)
    assert {"fd-effnet-lite2/fd", "fd-effnet-lite2/kid", "shapes/colors_real"} <= names
    assert {"fd-effnet-lite2/diversity", "fd-effnet-lite2/diversity_real"} <= names
    assert "fd-effnet-lite2/retrieval@1" not in names, "10 real images are too few"
    for result in results:
        # Of objects that were found: an image of a hardly trained generator may have none.
        assert {n for n in set(result.scores) ^ names if "placement" not in n} == set()
    assert results[0].scores["fd-effnet-lite2/fd"] != results[1].scores["fd-effnet-lite2/fd"]
    assert make_job(workdir).run() == 0
    assert len(read(workdir)) == 4

    best = min((r for r in results if r.weights == "ema"),
               key=lambda r: r.scores["fd-effnet-lite2/fd"].value)  # fmt: skip
    assert pinned_steps(workdir / "checkpoints") == {best.step}
    manifest = (workdir / "evaluation" / "captions.jsonl").read_text().splitlines()
    assert len(manifest) == NUM_SAMPLES + 1
    assert (workdir / "tensorboard" / "evaluation_ema").is_dir()


def test_scores_do_not_depend_on_the_batch_size(workdir):
    found = {}
    for batch_size in (8, 24):
        shutil.rmtree(workdir / "evaluation", ignore_errors=True)
        assert make_job(workdir, batch_size=batch_size, weights=("ema",)).run([6]) == 1
        (result,) = read(workdir)
        found[batch_size] = {name: score.value for name, score in result.scores.items()}
    assert found[8] == pytest.approx(found[24], rel=1e-5, abs=1e-5)


def test_a_generator_of_the_real_images_is_found_by_retrieval(workdir, monkeypatch):
    for module in (metrics, retrieval, evaluator):
        monkeypatch.setattr(module, "NUM_DISTRACTORS", 9)
    options = Options(
        metrics=("retrieval",), num_samples=60, split="train", weights=("ema",), resamples=0
    )
    evaluation = evaluator.Evaluator(workdir, dataclasses.replace(options, cache_dir=workdir))
    examples = {choice.caption: choice.example for choice in evaluation.manifest.choices}

    def draw(shift: int):
        def sample(_, captions, z):
            rows = [(examples[caption] + shift) % 40 for caption in captions]
            real = dataclasses.replace(evaluation._all_real, examples=rows)
            return np.concatenate([images for images, _ in real.batches()])

        monkeypatch.setattr(evaluation, "sampler", sample)
        scores = evaluation.score({}, "")
        assert next(iter(scores)) == "fd-effnet-lite2/retrieval@1", "it tells the best"
        return scores["fd-effnet-lite2/retrieval@1"].value

    assert draw(0) == 1
    assert draw(1) < 0.3


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["retrieval"], EvaluationError, "retrieval.* 10 real"),
        (["retreival"], ConfigError, "'retrieval'"),
        (["inception_score"], EvaluationError, "no metrics"),
        ([], EvaluationError, "no metrics"),
        (["absent:Metric"], ConfigError, "absent"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused(workdir, names, error, message):
    with pytest.raises(error, match=message):
        make_job(workdir, metrics=names)


def test_scores_are_flattered_where_training_used_the_network(workdir, capsys):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["losses"]["image_pretrained"] |= {"enabled": True, "network": "efficientnet_lite0"}
    path.write_text(json.dumps(config))
    protocols = ("fd-effnet-lite0", "fd-effnet-lite2")
    make_job(workdir, protocols=protocols, weights=("ema",)).run([6])
    (result,) = read(workdir)
    for name, score in result.scores.items():
        assert score.flattered == name.startswith("fd-effnet-lite0/")
    recipe = ResultFile(workdir / "evaluation").read_recipe(result.recipe)
    assert recipe["flattered"].keys() == {"fd-effnet-lite0"}
    assert "flattered" in capsys.readouterr().out
    shown = write_report(workdir).splitlines()
    marked = {line.split()[0] for line in shown if line.endswith("flattered")}
    assert marked == {name for name in result.scores if name.startswith("fd-effnet-lite0/")}


def test_other_samples_are_another_recipe(workdir):
    make_job(workdir, weights=("ema",)).run([6])
    make_job(workdir, weights=("ema",), num_samples=NUM_SAMPLES + 1, seed=1).run([6])
    assert len({result.recipe for result in read(workdir)}) == 2


def test_a_job_that_dies_leaves_no_partial_result_and_its_pins(workdir, monkeypatch):
    extract, calls = FeatureExtractor.__call__, []

    def dying(self, images):
        calls.append(len(images))
        # The real images, step 3 averaged with four samples of each caption, and then
        if len(calls) == 6:
            raise KeyboardInterrupt
        return extract(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        make_job(workdir).run()
    assert [(r.step, r.weights) for r in read(workdir)] == [(3, "ema")]
    assert pinned_steps(workdir / "checkpoints", "evaluation") == {3, 6}
    assert make_job(workdir).run() == 3
    assert [(r.step, r.weights) for r in read(workdir)] == [
        (3, "ema"), (3, "raw"), (6, "ema"), (6, "raw")
    ]  # fmt: skip
    assert pinned_steps(workdir / "checkpoints", "evaluation") == set()


def test_watching_takes_checkpoints_as_they_appear_and_ends_with_the_run(workdir, monkeypatch):
    last = (workdir / "checkpoints" / "6").rename(workdir / "later")
    naps = []

    def training_saves_the_last_step(seconds):
        naps.append(seconds)
        assert [r.step for r in read(workdir)] == [3]
        last.rename(workdir / "checkpoints" / "6")

    monkeypatch.setattr(watch.time, "sleep", training_saves_the_last_step)
    assert make_job(workdir, weights=("ema",)).run(watch=True) == 2
    assert len(naps) == 1
    assert [r.step for r in read(workdir)] == [3, 6]


def test_a_damaged_checkpoint_is_named_and_the_others_are_evaluated(workdir):
    for path in (workdir / "checkpoints" / "3" / "state").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"1 results were added(.|\n)*step 3 .* is damaged"):
        make_job(workdir, weights=("ema",)).run()
    assert [r.step for r in read(workdir)] == [6]


def test_a_checkpoint_of_another_course_is_evaluated_again(workdir):
    make_job(workdir, weights=("ema",)).run([3])
    shutil.rmtree(workdir / "checkpoints" / "3")
    shutil.copytree(workdir / "checkpoints" / "6", workdir / "checkpoints" / "3")
    record = workdir / "checkpoints" / "3" / "record" / "record.json"
    assert json.loads(record.read_text())["step"] == 6
    assert make_job(workdir, weights=("ema",)).run([3]) == 1


def test_pins_of_steps_that_are_gone_are_forgotten(workdir):
    pin(workdir / "checkpoints", 3, "evaluation")
    shutil.rmtree(workdir / "checkpoints" / "3")
    make_job(workdir, weights=("ema",)).run()
    assert pinned_steps(workdir / "checkpoints", "evaluation") == set()
    assert committed_steps(workdir / "checkpoints") == [6]


@pytest.mark.parametrize(
    ("changes", "steps", "error", "message"),
    [
        ({"num_samples": 1000}, None, EvaluationError, "1,000 samples were asked for"),
        ({"num_samples": 1}, None, EvaluationError, "at least 2"),
        ({"protocols": ("fid-2014",)}, None, EvaluationError, "did you mean 'fid-2015'"),
        ({"split": "test"}, None, Exception, "has no split 'test'"),
        ({"reference_split": "train"}, None, EvaluationError, "--allow-training-references"),
        ({}, [4], CheckpointError, "no checkpoint of step 4; it has 3, 6"),
    ],
)
def test_what_cannot_work_is_said_before_an_image_is_sampled(
    workdir, monkeypatch, changes, steps, error, message
):
    monkeypatch.setattr(evaluator.Evaluator, "score", lambda *args: pytest.fail("sampled images"))
    with pytest.raises(error, match=message):
        make_job(workdir, **changes).run(steps)
    assert read(workdir) == []


def test_two_jobs_on_one_workdir_are_one_too_many(workdir):
    with lock_workdir(workdir / "evaluation"), pytest.raises(CheckpointError, match="in use by"):
        make_job(workdir).run()


def test_real_images_are_looked_at_again_by_another_detector(workdir, detector, monkeypatch):
    make_job(workdir, weights=("ema",)).run([6])
    other = TrainingRecipe(32, num_scenes=4, num_epochs=1, batch_size=16, width=4, seed=1)
    changed = Detector(other, jax.tree.map(lambda x: 0 * x, detector.params))
    monkeypatch.setattr(alignment, "open_detector", lambda *args: changed)
    make_job(workdir, weights=("ema",)).run([6])
    first, second = read(workdir)
    assert first.recipe != second.recipe
    assert first.scores["shapes/colors_real"] != second.scores["shapes/colors_real"]


def test_the_report_shows_every_score_and_how_to_repeat_it(workdir):
    with pytest.raises(EvaluationError, match="no results yet"):
        write_report(workdir)
    make_job(workdir, resamples=5).run()
    text = write_report(workdir)
    results = read(workdir)
    for name in results[0].scores:
        assert f"\n{name} " in text
    directory = workdir / "evaluation"
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["recipe"]["data"]["num"] == NUM_SAMPLES
    assert len(manifest["scores"]) == 4
    assert "| fd-effnet-lite2/fd |" in (directory / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give --workdir DIR, or one of: report, compare"),
        ("--workdir absent", "is absent a workdir of a run?"),
        ("--workdir absent --step 3 --watch", "give one"),
        ("--workdir absent --weights fid-2015", "must be PROTOCOL=FILE"),
        ("--workdir absent --protocols fid-2014", "did you mean 'fid-2015'"),
        ("--workdir absent --num-samples 0", "--num-samples is 0: at least 1"),
        ("report --workdir absent", "has no results yet"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_error(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run("scripts/eval_fid.py", *arguments.split())
    assert status == 2
    assert errors.startswith("error: ")
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_the_command_scores_and_reports(run, workdir):
    flags = ["--workdir", workdir, "--num-samples", 10, "--use", "ema", "--bootstrap", 0]
    flags += ["--cache-dir", workdir.parent / "cache", "--step", 6]
    status, output, _ = run("scripts/eval_fid.py", *flags)
    assert status == 0
    assert "1 new results" in output
    status, output, _ = run("scripts/eval_fid.py", "report", "--workdir", workdir)
    assert status == 0
    assert "fd-effnet-lite2/fd" in output


OWN_METRIC = """
from xmcgan.utils.statistics import Score

class Darkness:
    paired = True

    def __init__(self, white=255):
        self.white = white

    def extract(self, images, captions):
        assert len(images) == len(captions)
        return {"dark": 1 - images.mean(axis=(1, 2, 3)) / self.white}

    def compute(self, real, fake):
        assert real["dark"].shape == fake["dark"].shape
        return {"error": Score(float(abs(real["dark"] - fake["dark"]).mean()))}
"""


@pytest.mark.parametrize("how", ["flag", "config"])
def test_a_metric_is_one_file_and_one_line(run, workdir, monkeypatch, how):
    monkeypatch.chdir(workdir)
    (workdir / "own_darkness.py").write_text(OWN_METRIC)
    flags = ["--workdir", workdir, "--num-samples", 10, "--use", "ema", "--bootstrap", 0]
    flags += ["--cache-dir", workdir.parent / "cache", "--step", 6]
    if how == "flag":
        flags += ["--metrics", "fid,own_darkness:Darkness"]
    else:
        config = json.loads((workdir / "config.json").read_text())
        config["evaluation"] = {
            "fid": {"type": "fid", "protocol": "fd-effnet-lite0"},
            "dark": {"type": "own_darkness:Darkness", "white": 510},
        }
        (workdir / "config.json").write_text(json.dumps(config))
    assert run("scripts/eval_fid.py", *flags)[0] == 0
    (result,) = read(workdir)
    own = {"flag": "darkness/error", "config": "dark/error"}[how]
    assert own in result.scores
    if how == "flag":
        assert next(iter(result.scores)) == "fd-effnet-lite2/fd", "it tells the best checkpoint"
    recipe = ResultFile(workdir / "evaluation").read_recipe(result.recipe)
    (settings,) = recipe["measures"][own.partition("/")[0]]["metrics"]
    assert settings["type"] == "own_darkness:Darkness"
    if how == "config":
        assert settings["white"] == 510
        assert set(result.scores) == {"fd-effnet-lite0/fd", own}


def test_saved_samples_are_the_images_that_were_scored(run, workdir):
    """`compare` gives them the very same distance."""
    flags = ["--workdir", workdir, "--num-samples", NUM_SAMPLES, "--use", "ema", "--bootstrap", 0]
    flags += ["--cache-dir", workdir.parent / "cache", "--step", 6]
    saved = workdir.parent / "samples"
    assert run("scripts/eval_fid.py", *flags)[0] == 0
    for path in (saved, saved.with_suffix(".zip")):
        status, output, _ = run("scripts/eval_fid.py", *flags, "--save-samples", path)
        assert "1 new results" in output, "a scored step without its samples is scored again"
        assert run("scripts/eval_fid.py", *flags, "--save-samples", path)[1].startswith("0 new")
    sets = saved / "step_6_ema", saved.with_name("samples_step_6_ema.zip")
    first, *others = read(workdir)
    (reference,) = (workdir.parent / "cache").glob("fd-effnet-lite2_*_all_*.npz")
    for fake in sets:
        command = ("compare", reference, fake, "--protocol", "fd-effnet-lite2", "--json")
        status, output, _ = run("scripts/eval_fid.py", *command, "--bootstrap", 0)
        assert status == 0
        value = json.loads(output[output.index("{") :])["scores"]["fd"]["value"]
        assert value == pytest.approx(first.scores["fd-effnet-lite2/fd"].value, rel=1e-9)
    for again in others:
        assert again.scores == first.scores
    entries = json.loads((sets[0] / "manifest.json").read_text())["images"]
    captions = (workdir / "evaluation" / "captions.jsonl").read_text().splitlines()[1:]
    assert [e["caption"] for e in entries] == [json.loads(line)["caption"] for line in captions]
    assert [e["noise"] for e in entries] == list(range(NUM_SAMPLES))


def test_sets_of_samples_are_not_scored_as_one(run, workdir):
    """Neither draws nor steps are mixed, and the grid is none of the images."""
    flags = ["--workdir", workdir, "--num-samples", 12, "--bootstrap", 0, "--draws", 2]
    flags += ["--cache-dir", workdir.parent / "cache", "--step", 6, "--use", "ema"]
    saved = workdir.parent / "samples"
    assert run("scripts/eval_fid.py", *flags, "--save-samples", saved)[0] == 0
    command = ("compare", saved / "step_6_ema" / "draw_0", "--protocol", "fd-effnet-lite2")
    other = saved / "step_6_ema" / "draw_1"
    assert run("scripts/eval_fid.py", *command, other, "--bootstrap", 0)[0] == 0
    for mixed in (saved, saved / "step_6_ema"):
        status, _, errors = run("scripts/eval_fid.py", *command, mixed)
        assert status == 2
        assert "draw_1" in errors
    (other / "grid.png").write_bytes(b"no image of the set")
    assert run("scripts/eval_fid.py", *command, other, "--bootstrap", 0)[0] == 0


def test_repeated_captions_are_scored_up_to_the_number_asked_for(workdir):
    settings = {"num_samples": 90, "repeat_captions": True, "weights": ("ema",)}
    make_job(workdir, **settings).run([6])
    (result,) = read(workdir)
    recipe = ResultFile(workdir / "evaluation").read_recipe(result.recipe)
    assert recipe["samples"] == recipe["data"]["num"] == 90 > recipe["data"]["distinct"]
    assert result.scores["fd-effnet-lite2/fd"].value > 0


def test_draws_have_captions_and_noise_of_their_own(workdir):
    single = []
    for seed in (0, 1):
        shutil.rmtree(workdir / "evaluation", ignore_errors=True)
        make_job(workdir, weights=("ema",), seed=seed).run([6])
        single.append(read(workdir)[-1].scores)
    shutil.rmtree(workdir / "evaluation")
    make_job(workdir, weights=("ema",), draws=2).run([6])
    (result,) = read(workdir)
    recipe = ResultFile(workdir / "evaluation").read_recipe(result.recipe)
    assert recipe["draws"] == 2
    assert len(set(recipe["data"]["captions_sha256"])) == 2
    for name in ("fd-effnet-lite2/fd", "fd-effnet-lite2/diversity"):
        values = [scores[name].value for scores in single]
        assert result.scores[name].value == pytest.approx(np.mean(values), rel=1e-6)
        assert f"{np.std(values, ddof=1):.3g} over 2 draws" in result.scores[name].note
        assert result.scores[name].low < np.mean(values) < result.scores[name].high


def test_every_and_newest_first_choose_the_checkpoints(workdir):
    assert make_job(workdir, weights=("ema",)).run() == 2
    for every, newest_first, steps in ((1, True, [6, 3]), (2, False, [6]), (4, False, [6])):
        shutil.rmtree(workdir / "evaluation")
        settings = Options(
            num_samples=NUM_SAMPLES, resamples=0, weights=("ema",), cache_dir=workdir / "cache"
        )
        EvaluationJob(workdir, settings, every=every, newest_first=newest_first).run()
        assert [result.step for result in read(workdir)] == steps


def test_references_follow_the_config(workdir):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    found = {}
    for name, changes in {
        "all": {},
        "mirrored": {"mirror_references": True},
        "few": {"num_references": 7},
        "raw statistics": {"raw_statistics": True},
    }.items():
        path.write_text(json.dumps(config | {"evaluation": config["evaluation"] | changes}))
        make_job(workdir, weights=("ema",), metrics=("fid",)).run([6])
        result = read(workdir)[-1]
        recipe = ResultFile(workdir / "evaluation").read_recipe(result.recipe)
        assert changes.items() <= recipe.items()
        assert recipe["references"] == changes.get("num_references", 10)
        found[name] = result.scores["fd-effnet-lite2/fd"].value
    assert len(set(found.values())) == 4


def test_scores_at_another_number_than_the_published_one_say_so(workdir):
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["evaluation"] |= {"num_samples": 30_000, "repeat_captions": True}
    path.write_text(json.dumps(config))
    settings = {"weights": ("ema",), "protocols": ("fid-2015",), "metrics": ("fid", "kid")}
    make_job(workdir, **settings).run([6])
    (result,) = read(workdir)
    assert "not comparable" in result.scores["fid-2015/fid"].note
    assert "not comparable" not in result.scores["fid-2015/kid"].note


def test_fields_of_the_evaluation_may_be_set_for_a_score_and_no_others(run, workdir):
    flags = ["--workdir", workdir, "--num-samples", 10, "--use", "ema", "--bootstrap", 0]
    flags += ["--cache-dir", workdir.parent / "cache", "--step", 6]
    field = "--config.evaluation.num_references"
    assert run("scripts/eval_fid.py", *flags, f"{field}=7")[0] == 0
    (result,) = read(workdir)
    assert ResultFile(workdir / "evaluation").read_recipe(result.recipe)["references"] == 7
    for wrong, named in (
        (f"{field}=11", "10 images"),
        (f"{field}=-1", "num_references"),
        ("--config.evaluation.draws=0", "draws"),
        ("--config.batch_size=3", "batch_size"),
        ("--config.evaluation.num_referenses=3", "num_references"),
    ):
        status, _, errors = run("scripts/eval_fid.py", *flags, wrong)
        assert status == 2
        assert named in errors


def test_a_protocol_of_precision_and_recall_alone_needs_no_choice_of_metrics(workdir):
    assert make_job(workdir, protocols=["pr-vgg16"], weights=["ema"]).run([6]) == 1
    (result,) = read(workdir)
    names = [name for name in result.scores if not name.startswith("shapes/")]
    assert names == [f"pr-vgg16/{n}" for n in ("precision", "recall", "density", "coverage")]
