"""Answers of raters: what counts, what is left out, and the numbers they give."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from raters import answer_file, by_quality, noise_first

from xmcgan.errors import DataError
from xmcgan.studies.human_eval.answers import read_answers, result_files
from xmcgan.studies.human_eval.report import krippendorff_alpha, rank_models

SCRIPT = "scripts/human_eval.py"


@pytest.fixture
def score(run, page, tmp_path):
    """Return a function that scores files and gives status, output, errors and report.json."""

    def command(*results, flags=()):
        out = tmp_path / "report"
        key = page[0].with_name("study.key.json")
        status, output, errors = run(
            SCRIPT, "score", "--key", key, "--results", *results, "--out", out, *flags
        )
        report = json.loads((out / "report.json").read_text()) if status == 0 else {}
        return status, output, errors, report

    return command


def test_raters_who_agree_give_the_whole_of_the_preference(score, page, tmp_path):
    files = [
        answer_file(tmp_path / f"r{n}.json", page[1], by_quality, rater=f"{n}" * 32)
        for n in range(3)
    ]
    status, output, errors, report = score(*files)
    assert status == 0, errors
    quality = report["questions"]["quality"]
    assert quality["models"]["ours"]["ranked_best"] == {
        "value": 1, "low": 1, "high": 1, "source": "captions"
    }  # fmt: skip
    assert quality["models"]["old"]["share_of_ranks"] == [0, 0, 1]
    assert quality["krippendorff_alpha_ordinal"] == 1
    assert report["questions"]["alignment"]["models"]["ours"]["mean_rank"]["value"] == 3
    assert quality["rankings"] == 12  # the checks are not among them
    assert "100.0 (100.0 to 100.0)" in output
    assert "| ours | 100.0 (100.0 to 100.0) |" in (tmp_path / "report/report.md").read_text()
    assert Image.open(tmp_path / "report/ranks.png").width > 800


def test_numbers_equal_those_counted_by_hand(page, tmp_path):
    """Rater one says ours < theirs < old everywhere, rater two the reverse on two captions."""
    _, key = page
    turned = [item for item, content in key.items.items() if not content.noise][:2]
    others = tuple(item for item in key.items if item not in turned)

    def reverse(question, model):
        return -by_quality(question, model)

    one = answer_file(tmp_path / "1.json", key, by_quality, rater="1" * 32)
    two = answer_file(tmp_path / "2.json", key, reverse, rater="2" * 32, skip=others)
    answers = [read_answers(path, key) for path in (one, two)]
    found = rank_models(answers, key, "quality", resamples=500, seed=0)
    ours = found.models["ours"]
    # Captions: two of one rater (1.0) and two of both (0.5).
    assert ours["ranked_best"].value == pytest.approx(0.75)
    assert found.preferred["ours", "old"].value == pytest.approx(0.75)
    assert ours["mean_rank"].value == pytest.approx((1 + 1 + 2 + 2) / 4)
    assert ours["share_of_ranks"] == pytest.approx([0.75, 0, 0.25])
    assert ours["ranked_best"].low == pytest.approx(0.5)
    assert ours["ranked_best"].high == pytest.approx(1.0)
    assert (found.captions, found.rankings) == (4, 6)
    assert (found.krippendorff_alpha_ordinal or 0) < 0


def test_an_inattentive_rater_is_left_out_and_named(score, page, tmp_path):
    good = answer_file(tmp_path / "good.json", page[1], by_quality, rater="1" * 32)
    bad = answer_file(tmp_path / "bad.json", page[1], noise_first, name="Bob", rater="2" * 32)
    status, _, _, report = score(good, bad)
    assert status == 0
    assert [rater["name"] for rater in report["raters"]] == ["Ann"]
    (note,) = report["inattentive"]
    assert note.startswith("Bob (222222): 0 of 4")
    assert score(good, bad, flags=("--min-checks", 0))[3]["inattentive"] == []


def test_skipping_the_checks_does_not_pass_them(score, page, tmp_path):
    checks = tuple(item for item, content in page[1].items.items() if content.noise)
    lazy = answer_file(tmp_path / "lazy.json", page[1], by_quality, skip=checks)
    status, _, errors, _ = score(lazy)
    assert status == 2
    assert "Ann (aaaaaa): 0 of 4" in errors


def test_a_rater_id_counts_once_and_the_first_file_stays(score, page, tmp_path):
    first = answer_file(tmp_path / "z.json", page[1], by_quality)
    (tmp_path / "copy.json").write_text(first.read_text())
    late = answer_file(
        tmp_path / "a.json", page[1], lambda q, m: 0.5, finished="2025-01-02T00:00:00.000Z"
    )
    _, _, _, report = score(first, tmp_path / "copy.json", late)
    assert len(report["raters"]) == 1
    assert report["raters"][0]["checksum"] == json.loads(first.read_text())["checksum"]
    assert len(report["sent_twice"]) == 2
    assert any(note.startswith("a.json: other, later") for note in report["sent_twice"])


def test_two_raters_of_one_name_both_count(score, page, tmp_path):
    files = [
        answer_file(tmp_path / f"{n}.json", page[1], by_quality, rater=n * 32) for n in ("3", "4")
    ]
    report = score(*files)[3]
    assert [rater["id"][:2] for rater in report["raters"]] == ["33", "44"]
    assert "Ann (333333), Ann (444444)" in (tmp_path / "report/report.md").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seconds": 3', '"seconds": 4'),
        ('"Ann"', '"Anne"'),
        ("xmcgan-ranking-1", "other"),
        ("{", ""),
    ],
)
def test_edited_files_are_named(score, page, tmp_path, old, new):
    path = answer_file(tmp_path / "r.json", page[1], by_quality)
    path.write_text(path.read_text().replace(old, new, 1))
    status, _, errors, _ = score(path)
    assert status == 2
    assert errors.startswith(f"error: {path} ")
    assert errors.count("\n") == 1


def test_results_of_another_page_are_named(score, page, tmp_path):
    other = dataclasses.replace(page[1], page="0" * 16)
    status, _, errors, _ = score(answer_file(tmp_path / "r.json", other, by_quality))
    assert status == 2
    assert "r.json" in errors
    assert "0" * 16 in errors
    assert page[1].page in errors


def test_a_ranking_that_is_no_order_of_the_images_is_refused(page, tmp_path):
    _, key = page
    item, content = next(iter(key.items.items()))
    fewer = dataclasses.replace(content, images=content.images[:2])
    broken = dataclasses.replace(key, items={**key.items, item: fewer})
    path = answer_file(tmp_path / "r.json", broken, by_quality)
    with pytest.raises(DataError, match=item):
        read_answers(path, key)


def test_a_folder_of_results_leaves_the_key_out(page, tmp_path):
    path = answer_file(tmp_path / "results" / "r.json", page[1], by_quality)
    (tmp_path / "results" / "study.key.json").write_text("{}")
    assert result_files([tmp_path / "results"]) == [path]
    with pytest.raises(DataError, match="absent"):
        result_files([tmp_path / "absent"])


def test_the_command_writes_a_page_and_says_what_to_keep(run, folders, tmp_path):
    images = [f"--images={name}={folder}" for name, folder in folders]
    out = tmp_path / "new" / "p.html"
    status, output, errors = run(SCRIPT, "create", *images, "--out", out)
    assert status == 0, errors
    assert "keep it to yourself" in output
    assert (tmp_path / "new" / "p.key.json").exists()


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--images", "a"], "must be NAME=DIR"),
        (["--images", "a=."], "models given: 1;"),
        (["--images", "a=x", "--images", "b=y"], "x does not exist"),
        (["--images", "a=x", "--num", "0"], "--num is 0"),
        (["--images", "a=x", "--image-size", "9999"], "--image-size is 9999"),
    ],
)
def test_mistakes_in_create_are_named(run, tmp_path, flags, hint):
    status, _, errors = run(SCRIPT, "create", *flags, "--out", tmp_path / "p.html")
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors


def test_too_many_captions_are_named(run, folders, tmp_path):
    images = [f"--images={name}={folder}" for name, folder in folders]
    status, _, errors = run(SCRIPT, "create", *images, "--out", tmp_path / "p.html", "--num", 7)
    assert status == 2
    assert "--num 7: the folders have 6 different captions" in errors


# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C: 0 stands for none.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


def test_alpha_equals_the_published_example():
    ratings = np.where(np.array(PUBLISHED) == 0, np.nan, PUBLISHED)
    assert round(krippendorff_alpha(ratings), 3) == 0.815


def test_alpha_is_one_for_agreement_and_negative_for_opposed_raters():
    ranks = np.array([1.0, 2, 3, 2, 1, 3])
    assert krippendorff_alpha(np.stack([ranks, ranks])) == 1
    assert krippendorff_alpha(np.stack([ranks, 4 - ranks])) < -0.5


def test_alpha_of_random_rankings_is_zero_on_average():
    rng = np.random.default_rng(0)
    alphas = []
    for _ in range(50):
        ranks = np.argsort(rng.random((3, 60, 4))).reshape(3, -1).astype(float)
        alphas.append(krippendorff_alpha(ranks))
    assert abs(np.mean(alphas)) < 0.02


def test_only_the_order_of_values_counts_for_ordinal_data():
    ratings = np.where(np.array(PUBLISHED) == 0, np.nan, PUBLISHED)
    same = krippendorff_alpha(10.0**ratings)
    assert same == pytest.approx(krippendorff_alpha(ratings))


@pytest.mark.parametrize("ratings", [[[1.0, 2, 3]], [[1.0, 1], [1, 1]], [[1, np.nan], [np.nan, 2]]])
def test_alpha_is_undefined_without_pairs_or_without_differences(ratings):
    assert np.isnan(krippendorff_alpha(np.array(ratings)))
