"""A dry run says what would be trained, trains nothing and writes nothing."""

import json
import math
import re

import jax
import pytest

from xmcgan.config import save_config
from xmcgan.errors import ConfigError
from xmcgan.planning import program
from xmcgan.planning.dry_run import print_dry_run
from xmcgan.training.checkpoint import restore_subtree
from xmcgan.training.command_line import parse_args


def _files(*folders):
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


def test_it_prints_config_parameters_and_plan_and_leaves_nothing(
    tiny_config, tiny_root, tiny_workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "_measure", None)  # what would run the step
    before = _files(tiny_root, tmp_path)
    print_dry_run(tiny_config)
    assert _files(tiny_root, tmp_path) == before
    output = capsys.readouterr().out

    config, _ = json.JSONDecoder().raw_decode(output)
    save_config(tiny_config, tmp_path / "config.json")
    assert config == json.loads((tmp_path / "config.json").read_text())

    trained = restore_subtree(tiny_workdir / "checkpoints", 6, ("g_params", "d_params"))
    numbers = [sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in trained.values()]
    printed = re.findall(r"^Total: ([\d,]+)", output, re.MULTILINE)
    assert sorted(int(total.replace(",", "")) for total in printed) == sorted(numbers)
    assert "40 training images" in output
    assert re.search(r"memory per device +\d", output)
    assert re.search(r"^  steps +6$", output, re.MULTILINE)


def test_data_that_are_not_prepared_are_said_and_not_prepared(tiny_config, tmp_path, capsys):
    tiny_config.data.data_dir = str(tmp_path / "data")
    print_dry_run(tiny_config)
    assert "not prepared here" in capsys.readouterr().out
    assert not (tmp_path / "data").exists()


def test_the_command_trains_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("generator.width=2", "discriminator.width=2", "batch_size=4")
    overrides = [f"--config.{override}" for override in small]
    status, output, _ = run(
        "xmcgan/train.py", "--config", "shapes:quickstart", "--dry-run", *overrides
    )
    assert status == 0
    assert '"batch_size": 4' in output
    assert "memory per device" in output
    assert list(tmp_path.iterdir()) == []


def test_it_is_of_one_process():
    with pytest.raises(ConfigError, match=r"--dry-run.*plan\.py"):
        parse_args(["--config", "shapes", "--dry-run", "--distributed"])
