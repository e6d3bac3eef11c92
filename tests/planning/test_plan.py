"""Plans: targets, what follows from a compiled program, and the command line."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from xmcgan.config import apply_override, load_config
from xmcgan.errors import ConfigError
from xmcgan.planning import report
from xmcgan.planning.program import Program, compile_step
from xmcgan.planning.report import Plan, largest_batch, make_plan
from xmcgan.planning.targets import CHIPS, Target, find_target, gpu_description

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Program(3 * 10**9, 10**10, 4e13, 8e11, 0.25, {"all-reduce": (2, 1e9, 2e9)}, 1.0)


@pytest.fixture
def config():
    """The smallest step."""
    config = load_config("shapes:quickstart")
    config.batch_size = 4
    config.generator.width = config.discriminator.width = 2
    return config


def target(name: str = "v5e:2x2", size: int = 4) -> Target:
    return Target(name, CHIPS[name.partition(":")[0]], jax.devices()[:1] * size)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("v5:2x2", "v5p"),  # a near miss
        ("h100:2x2", "h100:8"),
        ("v5e:8", "v5e:4x4"),
        ("h100", "h100:8"),
        ("h100:0", "h100:8"),
        ("h100:12", "8 GPUs each"),
    ],
)
def test_an_impossible_target_is_named(name, part):
    with pytest.raises(ConfigError, match=part):
        find_target(name)


def test_a_missing_compiler_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"requirements-tpu\.txt"):
        find_target("v5e:2x2")


def test_a_described_gpu_has_its_own_memory_and_capability():
    assert "device_memory_size: 80000000000" in gpu_description("h100")
    assert "{ major: 10 minor: 0 }" in gpu_description("b200")


def test_figures_follow_from_the_program(config):
    config.batch_size, config.num_train_steps = 128, 3600
    plan = Plan(config, target(), PROGRAM)
    assert plan.fits
    assert plan.program.peak == 13 * 10**9
    assert plan.bounds == pytest.approx(
        {"arithmetic": 4e13 / 197e12, "memory": 8e11 / 819e9, "links": 2e9 / 100e9}
    )
    assert plan.seconds == pytest.approx(0.25 + 0.02)
    rows = dict(plan.rows())
    assert "32 per device" in rows["batch"]
    assert "fits" in rows["memory per device"]
    assert rows["work per image"] == "1250 GFLOP"
    assert rows["bound by"].startswith("memory")
    assert "3,600 steps, 0.3 h, 1 chip-hours" in rows["run (modeled)"]
    json.dumps(plan.to_dict())


def test_without_a_time_of_the_compiler_the_slowest_part_counts(config):
    plan = Plan(config, target(), dataclasses.replace(PROGRAM, seconds=0.0))
    assert plan.seconds == pytest.approx(max(4e13 / 197e12 / 0.4, 8e11 / 819e9) + 0.02)


def test_what_does_not_fit_says_by_how_much_and_what_would(config):
    program = dataclasses.replace(PROGRAM, temporaries=15 * 10**9)
    plan = Plan(config, target(), program)
    assert not plan.fits
    assert "by 2.00 GB" in dict(plan.rows())["memory per device"]
    assert "num_microbatches" in dict(plan.rows())["memory per device"]


def test_the_length_of_a_run_is_the_config_s():
    config = load_config("coco:128")
    assert Plan(config, target(), PROGRAM).steps == 369_567  # as configs/coco.py says
    folder = load_config("folder:name=mine,128")
    assert Plan(folder, target(), PROGRAM).steps is None
    assert Plan(folder, target(), PROGRAM, num_examples=560).steps == 1000


@pytest.mark.parametrize("per_image", [10**8, 7 * 10**8, 9 * 10**9])
@pytest.mark.parametrize("refuses", [False, True])
def test_the_largest_batch_is_within_a_sixteenth_of_what_fits(
    config, monkeypatch, per_image, refuses
):
    def compile_step(config, target, frozen, measure):
        size = config.batch_size // 4
        program = dataclasses.replace(PROGRAM, temporaries=10**9 + size * per_image)
        if refuses and program.peak > 16 * 10**9:
            raise report.TrainingError("too large")
        return program

    monkeypatch.setattr(report, "compile_step", compile_step)
    found = largest_batch(config, target())
    most = 12 * 10**9 // per_image
    assert found.fits
    assert most * 15 / 16 - 1 <= found.config.batch_size // 4 <= most


def test_a_step_compiles_and_an_equal_one_is_read_from_the_cache(config, tmp_path, monkeypatch):
    first = make_plan(config, target("cpu:1", 1), cache=tmp_path)
    assert first.program.flops > 0
    assert first.program.temporaries > 0
    monkeypatch.setattr(report, "compile_step", None)
    assert make_plan(config, target("cpu:1", 1), cache=tmp_path).program == first.program
    config.batch_size = 8
    with pytest.raises(TypeError):  # another batch is another program
        make_plan(config, target("cpu:1", 1), cache=tmp_path)


def test_the_step_of_this_machine_runs_and_is_timed(config):
    here = find_target("here")
    here = dataclasses.replace(here, devices=here.devices[:1])
    program = compile_step(config, here, measure=True)
    assert program.measured > 0
    rows = dict(Plan(config, here, program).rows())
    assert f"{1e3 * program.measured:.1f} ms" in rows["step (measured)"]


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(config):
    config.batch_size = 6
    with pytest.raises(ConfigError, match="batch_size"):
        compile_step(config, target(size=4))


@pytest.mark.parametrize(("targets", "named"), [(["v5:2x2"], "v5p"), (["here", "cpu:1"], "alone")])
def test_a_mistake_on_the_command_line_ends_with_2_and_no_traceback(targets, named):
    flags = [part for target in targets for part in ("--target", target)]
    command = [sys.executable, "scripts/plan.py", "--config", "shapes", *flags]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert named in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler")
def test_a_small_step_compiles_for_a_slice_and_reduces_little_more_than_its_gradients():
    command = [sys.executable, "scripts/plan.py", "--config", "shapes:quickstart"]
    command += ["--target", "v5e:2x2", "--json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (plan,) = json.loads(run.stdout)
    assert plan["fits"]
    assert plan["seconds"] > 0
    # Parameters of both networks: 2.5 M in float32.
    assert plan["collectives"]["all-reduce"][1] < 15e6


WORD_LOSS = """
import jax, jax.numpy as jnp
from xmcgan.losses import contrastive
from xmcgan.planning.collectives import find_collectives
from xmcgan.planning.targets import find_target
from xmcgan.utils.mesh import make_mesh, sample_sharding

batch, tokens, regions, dim = 64, 8, 16, 128
contrastive.MAX_ELEMENTS, contrastive.CHUNK_ELEMENTS = 0, 2 * batch * regions * tokens  # 32 turns
shapes = ((batch, regions, dim), (batch, tokens, dim), (batch, tokens))
gammas = {"score_gamma": 50.0, "region_gamma": 5.0, "word_gamma": 5.0}

def loss(*inputs):
    return contrastive.word_region_contrast(*inputs, **gammas).loss

rows = sample_sharding(make_mesh(find_target("v5e:2x2").devices, 1))
inputs = map(jax.ShapeDtypeStruct, shapes, (jnp.float32, jnp.float32, jnp.bool))
step = jax.jit(jax.grad(loss, (0, 1)), in_shardings=rows, out_shardings=rows)
found = find_collectives(step.lower(*inputs).compile().as_text())
print(sum(c.times * c.num_bytes for c in found) / (4 * batch * tokens * dim))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no TPU compiler")
def test_captions_taken_in_turns_are_sent_once_and_not_in_every_turn():
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WORD_LOSS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 8  # times the size of all words


@pytest.mark.parametrize("override", ["remat=blocks", "num_microbatches=2", "mesh.fsdp=2"])
def test_what_does_not_change_the_method_is_compiled_anew_all_the_same(config, override):
    keys = []
    for change in ("", override):
        changed = config.copy_and_resolve_references()
        if change:
            apply_override(changed, change)
        keys.append(report._key(changed, target("cpu:1", 1), frozen=False))
    assert keys[0] != keys[1]
