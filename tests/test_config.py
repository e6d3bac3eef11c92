"""Configs: every one loads and can work, and every mistake is named."""

import json
from pathlib import Path

import pytest

from xmcgan import config as configs
from xmcgan.config import apply_override, load_config
from xmcgan.errors import ConfigError

SHAPES = ("shapes", "shapes:32", "shapes:128", "shapes:small", "shapes:quickstart")
EMOJI = ("emoji", "emoji:32", "emoji:quickstart", "emoji:32,quickstart,ablation=sentence")
FOLDER = ("folder:name=mine", "folder:name=mine,64,tiny", "folder:name=mine,256")


@pytest.mark.parametrize("spec", SHAPES + EMOJI + FOLDER)
def test_every_variant_is_valid(spec):
    configs.validate(load_config(spec))


def test_data_whose_captions_speak_of_left_and_right_are_never_mirrored():
    assert not any(load_config(spec).data.flip for spec in SHAPES + EMOJI)


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ("none", set()),
        ("sentence", {"sentence"}),
        ("word", {"word"}),
        ("image", {"image_discriminator"}),
        ("pretrained", {"image_pretrained"}),
        ("sentence+word+image", {"sentence", "word", "image_discriminator"}),
    ],
)
def test_every_row_of_the_ablation_table_is_a_variant(ablation, expected):
    config = load_config(f"shapes:64,ablation={ablation}")
    enabled = {name for name in configs.LOSSES if config.losses[name].enabled}
    assert enabled == expected | {"hinge"}


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("shape", "'shapes'"),
        ("nothing_like_it", "Known: coco, emoji, folder, ln_coco, ln_open_images, shapes"),
        ("shapes:48", "Known: 32, 64, 128"),
        ("shapes:quickstrat", "'quickstart'"),
        ("shapes:ablation=sentense", "'sentence'"),
        ("folder", "name=my_photos"),
        ("missing/file.py", "missing/file.py"),
    ],
)
def test_an_unknown_config_or_variant_is_named_with_what_is_known(spec, hint):
    with pytest.raises(ConfigError, match=hint):
        load_config(spec)


def test_a_config_can_be_a_file_anywhere(tmp_path):
    text = "from xmcgan.config import default_config as get\nget_config = lambda variant: get()\n"
    (tmp_path / "mine.py").write_text(text)
    assert load_config(str(tmp_path / "mine.py")).batch_size == 56


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("batch_size=8", "batch_size", 8),
        ("losses.word.weight=0.5", "losses.word.weight", 0.5),
        ("losses.word.weight=2", "losses.word.weight", 2.0),
        ("losses.word.enabled=False", "losses.word.enabled", False),
        ("data.data_dir=a=b", "data.data_dir", "a=b"),
    ],
)
def test_an_override_takes_the_type_of_its_field(override, field, value):
    config = load_config("shapes")
    apply_override(config, override)
    for part in field.split("."):
        config = config[part]
    assert config == value
    assert type(config) is type(value)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("batch_sise=8", "'batch_size'"),
        ("losses.wrd.weight=1", "'losses.word.weight'"),
        ("learning_rate=1", "learning_rate'"),
        ("losses.word=1", "It holds losses.word.enabled"),
        ("batch_size=eight", "a whole number"),
        ("batch_size=8.5", "a whole number"),
        ("losses.word.weight=heavy", "a number"),
        ("losses.word.enabled=1", "true or false"),
        ("batch_size", "needs a value"),
    ],
)
def test_a_mistyped_override_is_named_with_the_near_miss(override, hint):
    with pytest.raises(ConfigError, match=hint):
        apply_override(load_config("shapes"), override)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("image_size=100", "image_size"),
        ("image_size=16", "image_size"),
        ("batch_size=0", "batch_size"),
        ("data.num_workers=-1", "data.num_workers"),
        ("batch_size=1", "batch_size"),
        ("batch_norm_group_size=7", "batch_norm_group_size"),
        ("contrastive_group_size=5", "contrastive_group_size"),
        ("num_microbatches=0", "num_microbatches"),
        ("num_microbatches=5", "must divide batch_size = 64"),
        ("num_microbatches=4", "say --config.batch_norm_group_size=16"),
        ("d_steps=0", "d_steps"),
        ("dtype=float16", "dtype"),
        ("region_size=64", "region_size"),
        ("text.max_tokens=2", "max_tokens"),
        ("text.sentence_pooling=mean", "sentence_pooling"),
        ("data.resize=stretch", "data.resize"),
        ("losses.image_pretrained.feature=maps", "losses.image_pretrained.feature"),
        ("losses.word.temperature=0", "losses.word.temperature"),
        ("losses.hinge.weight=-1", "losses.hinge.weight"),
        ("losses.hinge.weight=nan", "losses.hinge.weight"),
        ("ema_decay=1", "ema_decay"),
        ("seed=-1", "seed"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_is_loaded(override, field):
    config = load_config("shapes")
    apply_override(config, override)
    with pytest.raises(ConfigError, match=field):
        configs.validate(config)


def test_all_losses_off_is_refused():
    config = load_config("shapes:ablation=none")
    config.losses.hinge.enabled = False
    with pytest.raises(ConfigError, match="losses"):
        configs.validate(config)


def test_a_batch_that_devices_cannot_share_names_the_nearest_that_they_can():
    config = load_config("shapes")
    config.batch_size = 20
    configs.check_devices(config, 4)
    with pytest.raises(ConfigError, match="try 16 or 24"):
        configs.check_devices(config, 8)


def test_groups_must_fit_into_a_microbatch():
    config = load_config("shapes")
    config.num_microbatches = config.batch_norm_group_size = 4
    configs.validate(config)
    config.batch_norm_group_size = 32
    with pytest.raises(ConfigError, match="batch_size / num_microbatches = 16"):
        configs.validate(config)


def test_the_papers_batch_comes_in_parts():
    config = load_config("coco:256")
    for override in ("num_microbatches=8", "batch_norm_group_size=32"):
        apply_override(config, override)
    configs.validate(config)
    assert config.batch_size == 256


def test_devices_share_every_microbatch():
    config = load_config("shapes")
    config.num_microbatches = 4
    configs.check_devices(config, 16)
    with pytest.raises(ConfigError, match="in 4 microbatches; try 128"):
        configs.check_devices(config, 32)


def test_a_saved_config_reads_back_equal(tmp_path: Path):
    config = load_config("shapes:quickstart")
    configs.save_config(config, tmp_path / "config.json")
    assert configs.read_config(tmp_path / "config.json").to_dict() == config.to_dict()
    older = config.to_dict()
    del older["generator"]["sentence_in_first_map"]
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert configs.read_config(tmp_path / "config.json").generator.sentence_in_first_map is False
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        configs.read_config(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="is missing"):
        configs.read_config(tmp_path / "other.json")


def test_the_fingerprint_covers_what_changes_training_and_nothing_else():
    config = load_config("shapes")
    before = configs.fingerprint(config)
    for override in ("num_train_steps=9", "log_every_steps=1", "data.num_workers=3"):
        apply_override(config, override)
    assert configs.fingerprint(config) == before
    apply_override(config, "losses.word.weight=2")
    assert configs.fingerprint(config) != before


def test_a_loss_of_ones_own_is_added_on_the_command_line_and_its_fields_follow_its_type():
    config = configs.default_config().lock()
    with pytest.raises(ConfigError, match=r"losses\.r1\.gamma"):
        apply_override(config, "losses.r1.gamma=5")
    for override in ("losses.r1.type=my_losses:R1", "losses.r1.gamma=5.0", "losses.r1.weight=2"):
        apply_override(config, override)
    assert config.losses.r1.to_dict() == {"type": "my_losses:R1", "gamma": 5.0, "weight": 2}
    with pytest.raises(ConfigError, match=r"losses\.word\.gama"):
        apply_override(config, "losses.word.gama=5")
