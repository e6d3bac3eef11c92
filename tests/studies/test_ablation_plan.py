"""Which runs a table has, and that what cannot be compared is refused."""

from pathlib import Path

import pytest

from xmcgan.config import LOSSES, apply_override, fingerprint, load_config
from xmcgan.errors import ConfigError
from xmcgan.studies.ablation.plan import combinations, plan_cells, read_rows
from xmcgan.studies.ablation.runs import Scoring, dry_run
from xmcgan.training.command_line import parse_args

OUT = Path("out")


def plan(spec="shapes:quickstart", grid=("sentence", "word"), seeds=1, overrides=(), out=OUT):
    return plan_cells(spec, combinations(grid), seeds=seeds, overrides=overrides, out=out)


def test_rows_are_none_each_alone_pairs_and_all():
    assert combinations(["word"]) == ["none", "word"]
    assert combinations(["sentence", "word"]) == ["none", "sentence", "word", "sentence+word"]
    three = combinations(["sentence", "word", "image"])
    assert three[4:] == ["sentence+word", "sentence+image", "word+image", "sentence+word+image"]


def test_rows_are_the_papers_or_those_that_are_listed():
    papers = set(read_rows("paper"))
    head = (Path(__file__).parents[2] / "configs" / "coco.py").read_text().partition('"""\n')[0]
    named = " ".join(head.partition("Ablation, FID of the paper")[2].partition(" all ")[0].split())
    rows = {part.split()[0] for part in named.partition(": ")[2].split(", ") if part[0].isalpha()}
    assert len(rows) == 8
    assert rows | {"image+pretrained", "sentence+word+image+pretrained"} == papers
    assert read_rows("none,word+image") == ["none", "word+image"]
    cells = plan_cells("shapes:quickstart", ["word+image"], seeds=1, overrides=(), out=OUT)
    losses = cells[0].config.losses
    on = {name for name in LOSSES if losses[name].enabled}
    assert on == {"hinge", "word", "image_discriminator"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("sentense", "did you mean 'sentence'"),
        ("none,none", "named twice"),
        ("word+word", "named twice"),
        ("word+image,image+word", "named twice"),
        ("", "unknown loss ''"),
    ],
)
def test_rows_that_make_no_table_are_refused(rows, message):
    with pytest.raises(ConfigError, match=message):
        plan_cells("shapes:quickstart", read_rows(rows), seeds=1, overrides=(), out=OUT)


def test_runs_differ_in_their_contrastive_losses_and_seed_alone():
    cells = plan(seeds=2, overrides=("seed=3", "batch_size=8"))
    assert [(cell.losses, cell.seed) for cell in cells] == [
        (losses, seed)
        for seed in (3, 4)
        for losses in ("none", "sentence", "word", "sentence+word")
    ]
    assert len({cell.workdir for cell in cells}) == 8
    first = fingerprint(cells[0].config)
    for cell in cells:
        on = {name for name in LOSSES if cell.config.losses[name].enabled}
        assert on == {"hinge", *cell.losses.split("+")} - {"none"}
        changed = {k for k, v in fingerprint(cell.config).items() if v != first[k]}
        assert changed <= {"seed", "losses.sentence.enabled", "losses.word.enabled"}
        assert cell.config.seed == cell.seed
        assert cell.config.batch_size == 8


def test_a_run_is_started_with_the_config_that_was_planned():
    for cell in plan(seeds=3, overrides=("seed=5", "generator.width=4")):
        args, overrides = parse_args(cell.train_command[3:])
        config = load_config(args.config)
        for override in overrides:
            apply_override(config, override)
        assert config.to_dict() == cell.config.to_dict()
        assert args.workdir == cell.workdir


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": ["sentense"]}, "did you mean 'sentence'"),
        ({"grid": [""]}, "unknown loss ''"),
        ({"grid": ["word", "word"]}, "named twice"),
        ({"spec": "shapes:ablation=word"}, "the table sets ablation="),
        ({"spec": "shape"}, "did you mean 'shapes'"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"overrides": ["losses.word.enabled=false"]}, "the table switches the losses"),
        ({"overrides": ["batch_sise=3"]}, "did you mean 'batch_size'"),
        ({"overrides": ["batch_size=1"]}, "batch_size 2 or more"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_run(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(**changes)


def test_a_dry_run_counts_what_is_left(tmp_path):
    text = dry_run(plan(seeds=2, out=tmp_path), Scoring(50, "fd-effnet-lite0"))
    assert "8 runs, each of 400 steps" in text
    assert f"left: {8 * 400 * 32:,} images of generator updates, 8 evaluations" in text
    assert "not known" in text
    (tmp_path / "runs" / "none" / "seed_0").mkdir(parents=True)
    (tmp_path / "runs" / "none" / "seed_0" / "metrics.jsonl").write_text(
        '{"step": 20, "images_per_second": 40.0}\n{"step": 30}\n'
    )
    text = dry_run(plan(seeds=2, out=tmp_path), Scoring(50, "fd-effnet-lite0"))
    assert f"about {8 * 400 * 32 / 40 / 60:.0f} minutes at the logged 40 images" in text
