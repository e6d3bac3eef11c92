"""Configurations: what can be set, how `--config NAME[:variant]` finds it, and what cannot work."""

import ast
import json
import math
import re
import runpy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xmcgan.errors import BUCKET, ConfigError, did_you_mean, refuse_url
from xmcgan.models import DISCRIMINATORS, GENERATORS
from xmcgan.models.augment import POLICIES
from xmcgan.models.blocks import REMAT_POLICIES
from xmcgan.models.generator import WIDTH_MULTIPLIERS
from xmcgan.utils.files import FILES, write_text
from xmcgan.utils.provenance import flatten

IMAGE_NETWORKS = ("resnet50", "efficientnet_lite0", "vgg16", "vgg19")
LOSSES = ("hinge", "sentence", "word", "image_discriminator", "image_pretrained")


def default_config() -> ConfigDict:
    """Return every setting: the paper's or official values, but for docs/paper_map.md."""
    config = ConfigDict()
    config.seed = 0
    config.image_size = 128
    # Images of one generator update; contrast and batch norm see all of them, on every mesh.
    config.batch_size = 56
    # Discriminator updates a step, each on a batch of its own.
    config.d_steps = 2
    # Length: `num_train_steps`, or where that is 0 so many passes over the data.
    config.num_train_steps = 0
    config.num_epochs = 500
    config.dtype = "bfloat16"  # of the networks' arithmetic; losses and statistics are float32
    config.region_size = 16  # side of the feature maps where regions meet words
    config.batch_norm_group_size = 0  # 0: the whole batch; else images that share statistics
    config.contrastive_group_size = 0  # 0: the whole batch; else pairs that see each other
    # Memory for time: each update's batch in so many parts, computed one after the other; the
    # losses still see all of it. And whether blocks are computed again in the backward pass.
    config.num_microbatches = 1
    config.remat = "none"  # what the backward pass computes again: convolutions, generator, blocks
    # Devices that share one copy of parameters and optimizer state, for networks too large for one.
    config.mesh = {"fsdp": 1}
    config.ema_decay = 0.999
    config.ema_warmup = True

    config.data = ConfigDict()
    config.data.name = "shapes"  # of xmcgan.data.DATA_SETS, tfds:NAME, or module:Class of your own
    config.data.fields = ConfigDict()  # arguments of your own class, or of tfds:NAME
    config.data.data_dir = "data"
    config.data.train_split = "train"
    config.data.sample_split = ""  # of the sample grids; empty: held-out images, if there are any
    config.data.resize = "crop"  # or squash, squash_bilinear
    config.data.flip = True
    config.data.num_workers = 0  # processes that decode; 0 uses threads
    config.data.max_damaged_records = 0  # of the training split that are left out; more stop a run

    config.text = ConfigDict()
    config.text.encoder = "bert"  # or a dotted path to a loader of your own
    config.text.weights = "minilm"  # a name of scripts/fetch_weights.py, or a folder
    config.text.max_tokens = 17  # special tokens included
    config.text.sentence_pooling = "masked_mean"  # or padded_mean, the official code's

    config.generator = ConfigDict()
    config.generator.type = "paper"  # or module:Class of your own
    config.generator.width = 96
    config.generator.z_dim = 128
    config.generator.attention_gamma = 15.0
    config.generator.sentence_in_first_map = False  # true: the paper; false: the official code
    config.generator.whiten_sentence = False  # true: decorrelated by the training captions
    config.generator.learning_rate = 1e-4

    config.discriminator = ConfigDict()
    # Or projected: on frozen pretrained features; or module:Class of your own.
    config.discriminator.type = "paper"
    config.discriminator.width = 96
    # Of the projected one: its frozen network, and the side to which that sees images resized
    # (0: 64 for images of 32 pixels, 128 up to 128, 256 above).
    config.discriminator.trunk = "efficientnet_lite0"
    config.discriminator.trunk_size = 0
    config.discriminator.places = False  # features of the projected one tell where things are
    # DiffAugment of what the discriminator sees: color, translation, cutout, joined by commas.
    config.discriminator.augment = ""
    config.discriminator.learning_rate = 4e-4

    config.adam = ConfigDict({"b1": 0.5, "b2": 0.999, "eps": 1e-8})
    # Last share of the run, 0 to 1, over which both learning rates fall linearly to 0.
    config.learning_rate_decay = 0.0
    # In place of it, a schedule of optax by name, such as warmup_cosine_decay_schedule, and its
    # arguments: steps of training, and values as factors of both learning rates.
    config.schedule = {"type": ""}
    # What optax clips gradients by, each network's own: clip_by_global_norm, and max_norm.
    config.clip = {"type": ""}
    config.losses = ConfigDict()
    on = {"enabled": True, "weight": 1.0}
    config.losses.hinge = on
    config.losses.sentence = on | {"temperature": 0.1}
    config.losses.word = on | {
        "temperature": 0.02,  # of the cross entropy: the official code's factor 50
        "region_gamma": 5.0,  # sharpness of a word's attention over regions
        "word_gamma": 5.0,  # sharpness of the pooling of a caption's words
    }
    config.losses.image_discriminator = on | {"temperature": 0.1}
    config.losses.image_pretrained = on | {
        "temperature": 0.1,
        "network": "resnet50",  # or efficientnet_lite0, vgg16, vgg19
        "weights": "",  # a path; empty takes the network's own download, where it has one
        "feature": "logits",  # or pooled
        "in_place_of": "",  # set where the weights of that network were missing
        "input_size": 224,  # pixels; images are resized to it
    }
    # How scripts/eval_fid.py scores a run, and metrics by name: {"type": registered name or
    # module:Class, field: value}; without any the standard ones (xmcgan/evaluation/metrics).
    config.evaluation = ConfigDict()
    # Scores inside the training process: every so many steps (0: never) and at the end, of averaged
    # weights, by these metrics (joined by commas; empty: those of scripts/eval_fid.py) of so many
    # samples (0: num_samples).
    config.evaluation.every_steps = 0
    config.evaluation.training_metrics = ""
    config.evaluation.training_samples = 0
    config.evaluation.protocols = "fd-effnet-lite2"  # joined by commas
    config.evaluation.num_samples = 0  # 0: 30,000, or one per distinct caption if there are fewer
    config.evaluation.repeat_captions = False  # with other noise, where num_samples is more
    config.evaluation.draws = 1  # sets of captions and noise over which scores are averaged
    config.evaluation.num_references = 0  # random images of the split; 0: all
    config.evaluation.mirror_references = False  # at random, as the official code does
    config.evaluation.raw_statistics = False  # batch statistics beside averaged weights: raw ones

    config.log_every_steps = 50
    config.sample_every_steps = 1000
    config.checkpoint_every_steps = 1000
    config.keep_checkpoints = 3
    # A step whose gradients are not finite changes nothing; so many in a row end the run.
    config.stop_after_skipped_steps = 10
    config.num_samples = 16  # images of the grid
    # A new run's first parameters: a workdir, a model folder, or a name such as emoji64.
    config.init_from = ""
    config.freeze = ""  # regular expression of parameters to leave as they are: generator/block_0
    config.restore_step = 0  # resume from this checkpoint; 0: the newest
    config.allow_mismatch = False  # resume although data or config differ from the checkpoint's
    # Steps to trace with JAX's profiler, such as 100-105; empty: none.
    config.profile = {"steps": ""}
    # Weights & Biases: off where no project is named; an empty entity is your default one.
    config.wandb = {"project": "", "entity": ""}
    return config


def known_configs() -> dict[str, Path]:
    """Return the files of configs/ by name, those of the current directory before the package's."""
    folders = (FILES / "configs", Path.cwd() / "configs")
    paths = {path.stem: path for folder in folders for path in folder.glob("[!_]*.py")}
    return dict(sorted(paths.items()))


def load_config(spec: str) -> ConfigDict:
    """Load `NAME[:variant]` or `PATH.py[:variant]`; locked, so that no field can be added."""
    name, _, variant = spec.partition(":")
    known = known_configs()
    path = Path(name) if name.endswith(".py") else known.get(name)
    if path is None or not path.is_file():
        hint = did_you_mean(name, known)
        raise ConfigError(f"unknown config {name!r}. Known: {', '.join(known)}{hint}")
    return runpy.run_path(str(path))["get_config"](variant).lock()


def validate(config: ConfigDict) -> None:
    """Refuse what cannot work before anything is loaded; a ConfigError names the field."""
    choices: dict[str, Collection[Any]] = {
        "image_size": WIDTH_MULTIPLIERS,
        "dtype": ("float32", "bfloat16"),
        "remat": REMAT_POLICIES,
        "data.resize": ("crop", "squash", "squash_bilinear"),
        "text.sentence_pooling": ("masked_mean", "padded_mean"),
        "losses.image_pretrained.network": IMAGE_NETWORKS,
        "losses.image_pretrained.feature": ("logits", "pooled"),
        # The generator needs a block after the attention, the discriminator one before its regions.
        "region_size": [s for s in (4, 8, 16, 32, 64, 128) if s <= config.image_size // 2],
        "generator.type": GENERATORS,
        "discriminator.type": DISCRIMINATORS,
    }
    own = ("losses.image_pretrained.network", "generator.type", "discriminator.type")
    for field, known in choices.items():
        value = fields_of(config)[field]
        if value not in known and not (field in own and ":" in value):  # module:Class of a user
            names = ", ".join(map(str, known))
            raise ConfigError(f"{field} = {value} cannot work. It can be: {names}.")
    for field in (
        "batch_size", "d_steps", "generator.width", "generator.z_dim",
        "discriminator.width", "log_every_steps", "sample_every_steps",
        "checkpoint_every_steps", "keep_checkpoints", "num_samples", "num_microbatches",
        "mesh.fsdp", "stop_after_skipped_steps",
    ):  # fmt: skip
        _require(config, field, lambda x: isinstance(x, int) and x > 0, "a whole number above 0")
    _require(config, "text.max_tokens", lambda x: x >= 3, "at least 3: [CLS], one word and [SEP]")
    _require(config, "seed", lambda x: 0 <= x < 2**32, "in [0, 2**32)")
    _require(config, "ema_decay", lambda x: 0 <= x < 1, "in [0, 1)")
    _require(config, "learning_rate_decay", lambda x: 0 <= x <= 1, "in [0, 1]")
    for field in (
        "data.max_damaged_records", "data.num_workers",
        "evaluation.every_steps", "evaluation.training_samples",
    ):  # fmt: skip
        _require(config, field, lambda x: x >= 0, "0 or more")
    if not config.data.data_dir.startswith(BUCKET):
        refuse_url(config.data.data_dir, ConfigError)
    _require(config, "profile.steps", _is_range, "empty or steps such as 100-105")
    if config.schedule.type and config.learning_rate_decay:
        raise ConfigError("schedule takes the place of learning_rate_decay: set that to 0")
    if config.num_train_steps <= 0 and config.num_epochs <= 0:
        raise ConfigError("set num_train_steps or num_epochs to more than 0")
    _check_discriminator(config)
    _check_groups(config)
    _check_losses(config)


def _require(config: ConfigDict, field: str, is_valid: Callable[[Any], bool], wanted: str) -> None:
    value = fields_of(config)[field]
    if not is_valid(value):
        raise ConfigError(f"{field} = {value} must be {wanted}")


def _is_range(steps: str) -> bool:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", steps)
    return not steps or bool(found and 0 < int(found[1]) <= int(found[2] or found[1]))


def _check_discriminator(config: ConfigDict) -> None:
    network = config.discriminator
    for policy in filter(None, network.augment.split(",")):
        if policy not in POLICIES:
            raise ConfigError(
                f"discriminator.augment = {network.augment} names {policy!r}. It can be "
                f"{', '.join(POLICIES)}, joined by commas{did_you_mean(policy, POLICIES)}"
            )
    if network.type == "projected":
        size = trunk_size(config)
        scales = [size // stride for stride in (4, 8, 16, 32)]
        if size % 32 or size < 64:
            raise ConfigError(f"discriminator.trunk_size = {size} must be 64, 96, 128 and so on")
        if not any(config.region_size in (scale // 2, scale, 2 * scale) for scale in scales):
            raise ConfigError(
                f"region_size = {config.region_size} is far from every scale of the frozen network "
                f"({', '.join(map(str, scales))}): set one of these, or discriminator.trunk_size"
            )


def trunk_size(config: ConfigDict) -> int:
    """Return the side to which a projected discriminator resizes images."""
    size = config.image_size
    return config.discriminator.trunk_size or (2 * size if size <= 64 else max(size, 128))


def _check_groups(config: ConfigDict) -> None:
    parts = config.num_microbatches
    if config.batch_size % parts:
        raise ConfigError(
            f"num_microbatches = {parts} must divide batch_size = {config.batch_size}"
        )
    size = config.batch_size // parts
    whole = "batch_size" if parts == 1 else "batch_size / num_microbatches"
    wanted = f"0 (the whole batch) or divide {whole} = {size}"
    for field in ("batch_norm_group_size", "contrastive_group_size"):
        _require(config, field, lambda x: x == 0 or (x > 0 and size % x == 0), wanted)
    if parts > 1 and config.batch_norm_group_size == 0:
        raise ConfigError(
            f"num_microbatches = {parts} cannot take batch statistics of the whole batch: say "
            f"--config.batch_norm_group_size={size}, the images of one part"
        )


def _check_losses(config: ConfigDict) -> None:
    enabled = [name for name in LOSSES if config.losses[name].enabled]
    if not enabled:
        raise ConfigError("all losses are off: set losses.NAME.enabled=true for one at least")
    for name in enabled:
        _require(config, f"losses.{name}.weight", lambda x: 0 <= x < math.inf, "0 or more")
        if name != "hinge":
            _require(config, f"losses.{name}.temperature", lambda x: x > 0, "above 0")
    if config.batch_size < 2 and enabled != ["hinge"]:
        raise ConfigError("contrastive losses need batch_size 2 or more (negatives are other rows)")


def check_devices(config: ConfigDict, num_devices: int) -> None:
    """Refuse a batch that the devices cannot share; a ConfigError names the nearest that would."""
    unit = num_devices * config.num_microbatches
    if config.batch_size % unit:
        lower = config.batch_size // unit * unit
        nearest = [str(size) for size in (lower, lower + unit) if size]
        parts = "" if unit == num_devices else f" in {config.num_microbatches} microbatches"
        raise ConfigError(
            f"batch_size = {config.batch_size} does not divide over {num_devices} devices{parts}; "
            f"try {' or '.join(nearest)}"
        )


def apply_override(config: ConfigDict, override: str) -> None:
    """Set one field from `field.subfield=value`, converted to the type that it has."""
    field, equals, text = override.partition("=")
    known = fields_of(config)
    if field not in known and equals and _set_own(config, field, text):
        return
    if field not in known:
        groups = sorted({name.rpartition(".")[0] for name in known} - {""})
        inside = [name for name in known if name.startswith(f"{field}.")]
        if inside:
            raise ConfigError(f"--config.{field} is no field. It holds {', '.join(inside)}")
        # A field of another group whose last name is like it comes first.
        hint = did_you_mean(field, known, lambda name: name.rpartition(".")[2])
        raise ConfigError(
            f"unknown field --config.{field}{hint or did_you_mean(field, [*known, *groups])}"
        )
    if not equals:
        raise ConfigError(f"--config.{field} needs a value: --config.{field}=...")
    config.update_from_flattened_dict({field: _convert(field, text, type(known[field]))})


def _set_own(config: ConfigDict, field: str, text: str) -> bool:
    """Set a field of a user's own loss, metric, network or data, or of optax; its name is first."""
    section, _, rest = field.partition(".")
    name, _, key = rest.partition(".")
    if section in ("schedule", "clip"):
        is_own = bool(name) and not key and bool(config[section].type)
    elif section in ("generator", "discriminator"):
        is_own = bool(name) and not key and ":" in config[section].type
    elif section in ("losses", "evaluation"):
        is_own = "." not in key and (key == "type" or "type" in config[section].get(name, {}))
    else:
        is_own = (section, name) == ("data", "fields") and bool(key) and ":" in config.data.name
    if not is_own:
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False}.get(text.lower(), text)
    with config.unlocked():
        config[section][name] = {**config[section].get(name, {}), key: value} if key else value
    return True


def _convert(field: str, text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        words = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"--config.{field}={text}: must be {words[kind]}") from None


def save_config(config: ConfigDict, path: Path) -> None:
    write_text(path, json.dumps(config.to_dict(), indent=2) + "\n")


def read_config(path: Path) -> ConfigDict:
    """Read a config that `save_config` wrote; fields that are newer than it get their defaults."""
    config = default_config()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(stored.get("remat"), bool):  # as version 0.1 had it
            stored["remat"] = "blocks" if stored["remat"] else "none"
        config.update(stored)
        if unset := [name for name, value in fields_of(config).items() if value is None]:
            raise ValueError(f"{', '.join(unset)} has no value")
        return config.lock()
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: is {path.parent} a workdir of a run?") from None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def fields_of(config: ConfigDict) -> dict[str, Any]:
    """Return the values of a config by dotted name."""
    return flatten(config.to_dict())


# Fields that may change between runs of one workdir.
_FREE_FIELDS = (
    "num_train_steps", "num_epochs", "data.data_dir", "data.num_workers", "data.sample_split",
    "data.max_damaged_records",
    "log_every_steps", "sample_every_steps", "checkpoint_every_steps", "keep_checkpoints",
    "num_samples", "num_microbatches", "remat", "mesh.fsdp", "restore_step", "allow_mismatch",
    "init_from",
    "stop_after_skipped_steps", "text.encoder",
    "text.weights", "losses.image_pretrained.weights", "losses.image_pretrained.in_place_of",
    "profile.steps", "wandb.project", "wandb.entity",
)  # fmt: skip

# Absent from checkpoints of version 0.1, which had what is the default now.
_NEW_FIELDS = (
    "freeze", "generator.type", "discriminator.places", "learning_rate_decay", "schedule.type",
    "clip.type",
)  # fmt: skip


def fingerprint(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that a resumed run must share with its start, by dotted name."""
    defaults = fields_of(default_config())
    return {
        name: value
        for name, value in fields_of(config).items()
        if name not in _FREE_FIELDS
        and not name.startswith("evaluation.")
        and not (name in _NEW_FIELDS and value == defaults[name])
    }


# Paths and workers of one machine; the fingerprint compares the data themselves.
_LOCAL_FIELDS = {
    "data.data_dir", "data.num_workers", "text.weights", "losses.image_pretrained.weights",
}  # fmt: skip


def shared_fields(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that all processes of a run must share, by dotted name."""
    return {n: value for n, value in fields_of(config).items() if n not in _LOCAL_FIELDS}


def changed_fields(config: ConfigDict) -> list[tuple[str, Any, Any]]:
    """Return the fields that differ from `default_config`: dotted name, value and default."""
    old, now = fields_of(default_config()), fields_of(config)
    return [(n, value, old.get(n)) for n, value in now.items() if value != old.get(n)]
