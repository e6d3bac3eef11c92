"""A run begins with the parameters of another one, and leaves frozen ones as they are."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xmcgan.errors import ConfigError, UserError
from xmcgan.sampling.init_from import _OF_RUN, start_from
from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel
from xmcgan.train import train
from xmcgan.training.checkpoint import named_leaves, restore_subtree
from xmcgan.utils.provenance import read_starts

FIELDS = ("g_params", "ema_params", "g_batch_stats", "d_params")


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    return named_leaves(restore_subtree(workdir / "checkpoints", step, FIELDS))


@pytest.fixture
def model_folder(tiny_workdir, tmp_path) -> Path:
    model = TrainedModel.from_workdir(tiny_workdir)
    return save_model(tmp_path / "tiny", model.variables, model.config,
                      {"steps": 6, "images_seen": 48}, "")  # fmt: skip


def start(config, workdir: Path, source: Path, **changes) -> Path:
    config.init_from, config.num_train_steps, config.d_steps = str(source), 1, 1
    for name, value in changes.items():
        config[name] = value
    assert train(config, workdir) == 0
    return workdir


@pytest.mark.parametrize("kind", ["workdir", "model folder"])
def test_a_run_begins_where_another_one_ended(
    kind, tiny_config, tiny_workdir, model_folder, tmp_path
):
    # Rates of zero: the first checkpoint still has what the run began with.
    tiny_config.generator.learning_rate = tiny_config.discriminator.learning_rate = 0.0
    source = tiny_workdir if kind == "workdir" else model_folder
    found = arrays(start(tiny_config, tmp_path / "new", source), 1)
    expected = arrays(tiny_workdir, 6)
    fields = {"workdir": ("g_params", "d_params"), "model folder": ("ema_params",)}[kind]
    for name, value in expected.items():
        if name.startswith(fields):
            np.testing.assert_allclose(found[name], value, atol=2e-3 * np.abs(value).max())
    if kind == "model folder":
        raw = [name for name in found if name.startswith("g_params")]
        for name in raw:
            np.testing.assert_allclose(found[name], found[name.replace("g_", "ema_", 1)], rtol=1e-6)
    (entry,) = read_starts(tmp_path / "new")
    assert entry["init_from"]["source"] == str(source)
    total = sum(name.startswith("g_params") for name in expected)
    assert entry["init_from"]["arrays"]["g_params"] == f"{total} of {total}"
    assert entry["init_from"]["left_out"] == []


def test_frozen_parameters_stay_and_the_others_move(tiny_config, tiny_workdir, tmp_path):
    workdir = start(
        tiny_config, tmp_path / "new", tiny_workdir, freeze="generator/block_|^disc.*logit"
    )
    before, after = arrays(tiny_workdir, 6), arrays(workdir, 1)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    params = {name for name in before if name.startswith(("g_params", "d_params"))}
    frozen = {n for n in params if n.startswith(("g_params/block_", "d_params/logit"))}
    assert frozen
    assert moved & params == params - frozen


def test_what_does_not_fit_is_listed_and_the_rest_is_taken(tiny_config, tiny_workdir, tmp_path):
    tiny_config.generator.z_dim += 1
    workdir = start(tiny_config, tmp_path / "new", tiny_workdir)
    (entry,) = read_starts(workdir)
    left = "\n".join(entry["init_from"]["left_out"])
    assert "g_params/first_map/kernel" in left
    assert any(name.startswith("g_params/") for name in entry["init_from"]["taken"])


def test_a_source_of_nothing_is_refused(tiny_config, tiny_workdir, tmp_path):
    fields = {name: {"other": np.zeros(3)} for name in _OF_RUN}
    state = SimpleNamespace(**fields)
    with pytest.raises(ConfigError, match="no parameter of the generator fits"):
        start_from(state, str(tiny_workdir))
    for source in ("absent", str(tmp_path)):
        with pytest.raises(UserError, match=Path(source).name):
            start_from(state, source)


@pytest.mark.parametrize("pattern", ["nothing", ".", "("])
def test_a_pattern_that_freezes_nothing_or_all_is_refused(tiny_config, tmp_path, pattern):
    tiny_config.freeze = pattern
    with pytest.raises(ConfigError, match="freeze"):
        train(tiny_config, tmp_path / "new")
