"""The configs of the paper's data sets, and the mistakes of the command that prepares them."""

import pytest

from xmcgan.config import LOSSES, load_config, validate

SPECS = [
    f"{name}{variant}"
    for name in ("coco", "ln_coco", "ln_open_images")
    for variant in ("", ":128", ":256", ":ablation=sentence+word", ":256,ablation=none")
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_variant_is_valid_and_keeps_the_papers_tokens_and_batch(spec):
    config = load_config(spec)
    validate(config)
    assert config.data.name == spec.partition(":")[0]
    assert config.text.max_tokens == (17 if spec.startswith("coco") else 64)
    assert (config.image_size, config.batch_size) == ((256, 256) if "256" in spec else (128, 56))
    enabled = [name for name in LOSSES if config.losses[name].enabled]
    rows = {"sentence+word": ["hinge", "sentence", "word"], "none": ["hinge"]}
    assert enabled == rows.get(spec.partition("ablation=")[2], list(LOSSES))


def test_the_set_ups_of_the_released_code_and_of_the_paper_go_by_a_name():
    official, plain = load_config("coco:official"), load_config("coco")
    validate(official)
    assert official.batch_norm_group_size == official.contrastive_group_size == 8
    assert official.text.sentence_pooling == "padded_mean"
    assert official.data.resize == "squash_bilinear"
    assert official.text.weights == "bert-base-uncased"
    assert not official.ema_warmup
    assert official.generator == plain.generator
    assert official.losses == plain.losses
    evaluation = official.evaluation
    assert (evaluation.protocols, evaluation.draws) == ("fid-keras", 3)
    assert (evaluation.num_samples, evaluation.num_references) == (30_000, 30_000)
    assert evaluation.mirror_references
    assert evaluation.raw_statistics
    paper = load_config("coco:256,paper")
    validate(paper)
    assert paper.losses.image_pretrained.network == "vgg19"
    assert paper.generator.sentence_in_first_map


def test_narratives_repeat_up_to_the_published_number_of_images():
    for name in ("ln_coco", "ln_open_images"):
        evaluation = load_config(name).evaluation
        assert evaluation.num_samples == 30_000
        assert evaluation.repeat_captions


def test_karpathys_splits_are_a_variant_of_coco():
    assert load_config("coco:name=karpathy").data.name == "coco/karpathy"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["coco"], "--download"),
        (["ln_coco", "--source", "none"], "none does not exist"),
        (["coco", "--source", ".", "--num-workers", "-1"], "--num-workers is -1"),
    ],
)
def test_mistakes_of_the_command_are_named(run, tmp_path, monkeypatch, flags, hint):
    monkeypatch.chdir(tmp_path)
    status, _, errors = run("scripts/prepare_data.py", *flags)
    assert status == 2
    assert errors.startswith("error: ")
    assert hint in errors
