"""The benchmarks compare the same function, count work as stated, and say what they cannot do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks import formulations
from benchmarks.formulations import Formulation, benchmark_config
from benchmarks.measures import costs, measure_costs, measure_first_step, measure_step
from ml_collections import ConfigDict
from oracle.golden import Golden

from xmcgan.training.build import build_networks
from xmcgan.training.state import create_state

BENCHMARK = "scripts/benchmark.py"
WORD_DIM = 10
# The tiny programs run for milliseconds: their compiler may save its time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def tiny_config(image_size: int = 32) -> ConfigDict:
    config = benchmark_config(None, image_size=64, width=2, batch=3)
    config.image_size, config.region_size = image_size, min(16, image_size // 4)
    config.generator.z_dim = 6
    config.text.max_tokens = 7
    config.ema_warmup = False  # the official average has none
    config.ema_decay = 0.75
    return config


def one_step(each: Formulation, config: ConfigDict) -> tuple[Any, Any]:
    """Return what a formulation makes of the same parameters and inputs."""
    inputs = formulations.draw_inputs(config, WORD_DIM)
    # Our step draws its own noise.
    key = jax.random.fold_in(jax.random.key(0), 0)
    shape = inputs["z"].shape[1:]
    noise = [jax.random.normal(jax.random.fold_in(key, i), shape) for i in range(config.d_steps)]
    state = each.init(formulations.draw_parameters(config, WORD_DIM))
    batch = each.place(inputs | {"z": np.stack(noise)})
    with jax.default_matmul_precision("highest"):
        return each.jit().lower(state, batch).compile(compiler_options=QUICK)(state, batch)


@pytest.mark.slow
def test_both_formulations_take_the_same_step():
    config = tiny_config()
    # Adam's first update is else the sign of a gradient, be it rounding.
    config.adam.eps = 1.0
    config.generator.learning_rate = config.discriminator.learning_rate = 0.01
    literal, expected = one_step(formulations.literal(config), config)
    ours, found = one_step(formulations.ours(config, WORD_DIM), config)
    for name in ("d_loss", "g_loss", "real_sentence_accuracy", "fake_word_entropy"):
        assert found[name] == pytest.approx(float(expected[name]), rel=1e-5)

    start = formulations.ours(config, WORD_DIM).init(formulations.draw_parameters(config, WORD_DIM))
    meta = formulations._sizes(config, WORD_DIM)._asdict() | {"gamma_for_g": 15}
    fields = {
        "g_params": ("generator", literal.g_params),
        "ema_params": ("generator", literal.ema_params),
        "g_batch_stats": ("generator", literal.g_stats),
        "d_params": ("discriminator", literal.d_params),
        "d_vectors": ("discriminator", literal.d_stats),
    }
    for field, (network, arrays) in fields.items():
        before, after = getattr(start, field), getattr(ours, field)
        named = {f"t/{name}": array for name, array in arrays.items()}
        wanted = Golden(meta, named).tree("t", network, before)
        change = optax.tree.norm(jax.tree.map(jnp.subtract, wanted, before))
        error = optax.tree.norm(jax.tree.map(jnp.subtract, wanted, after))
        assert 0 < error < 1e-3 * change


@pytest.mark.parametrize("image_size", [32, 64, 128, 256, 512])
def test_the_literal_parameters_have_the_shapes_of_ours(image_size):
    config = tiny_config(image_size)
    shapes = formulations.parameter_shapes(config, WORD_DIM)
    state = jax.eval_shape(formulations.ours(config, WORD_DIM).init, shapes)
    networks = build_networks(config, WORD_DIM)
    expected = jax.eval_shape(
        lambda: create_state(
            networks, jax.random.key(0), max_tokens=7, word_dim=WORD_DIM, sentence_dim=WORD_DIM
        )
    )
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)


def flops_of(function: Callable[..., Any], *shapes: tuple[int, ...]) -> float:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return costs(jax.jit(function).lower(*arrays).compile()).flops


def convolve(x: Any, kernel: Any) -> Any:
    """Convolve at stride 2: a row of 8 has 4 times 4 taps, of which 2 see padding."""
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_a_config_that_departs_from_the_official_networks_is_compared_without_it():
    config = benchmark_config("shapes:quickstart", image_size=None, width=None, batch=None)
    for formulation in formulations.formulations(config, 6):
        state = jax.eval_shape(formulation.init, formulations.parameter_shapes(config, 6))
        batch = jax.eval_shape(formulation.place, formulations.input_shapes(config, 6))
        assert jax.tree.structure(jax.eval_shape(formulation.step, state, batch)[0])


def test_padding_and_the_zeros_of_dilation_are_no_work():
    x, kernel, y = (2, 8, 8, 5), (4, 4, 5, 6), (2, 4, 4, 6)
    products = 2 * (4 * 4 - 2) ** 2 * 5 * 6
    assert flops_of(convolve, x, kernel) == 2 * products
    # Backward, the result's gradient or the kernel's window is dilated by the stride.
    to_x = flops_of(lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g), x, kernel, y)
    to_kernel = flops_of(lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g), x, kernel, y)
    # The compiler's windows there reach beyond what the padding cut off.
    assert to_x == pytest.approx(2 * products, rel=0.15)
    assert to_kernel == pytest.approx(2 * products, rel=0.15)


def test_a_product_of_matrices_is_counted_once_and_never_where_nobody_asks_for_it():
    def work(a: Any, b: Any) -> Any:
        unused = jnp.sin(b).T @ a.T
        del unused
        return (a @ b) + (a @ b)

    flops = flops_of(work, (16, 40), (40, 30))
    assert flops == 2 * 16 * 40 * 30 + 16 * 30


def toy(name: str, products: int) -> Formulation:
    """Return a formulation whose step multiplies the state so many times."""

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        new = state["w"]
        for _ in range(products):
            new = new @ state["w"]
        return {"w": new * 0 + state["w"]}, {"sum": new.sum() + batch["z"].sum()}

    return Formulation(
        name=name,
        dtype="float32",
        init=lambda arrays: {"w": arrays["generator/params/Dense_0/kernel"][:, :6] * 1},
        place=lambda inputs: {"z": inputs["z"]},
        step=step,
    )


def test_steps_are_compared_with_the_first_formulation_and_the_first_batch():
    config = benchmark_config(None, image_size=64, width=1, batch=2)
    config.generator.z_dim = 6
    found = measure_step(config, 6, [toy("slow", 40), toy("fast", 1)], [2, 8], rounds=3)
    rows = {(row["formulation"], row["batch"]): row for row in found["rows"]}
    assert list(rows) == [("slow", 2), ("fast", 2), ("slow", 8), ("fast", 8)]
    times = found["seconds"]
    assert all(len(turns) == 3 for turns in times.values())
    fast = rows["fast", 8]
    pairs = zip(times["slow, batch 8"], times["fast, batch 8"], strict=True)
    assert fast["faster"] == pytest.approx(np.median([slow / fast for slow, fast in pairs]))
    pairs = zip(times["fast, batch 8"], times["fast, batch 2"], strict=True)
    grown = np.median([large / 8 / (small / 2) for large, small in pairs])
    assert fast["time_per_image_to_first_batch"] == pytest.approx(grown)
    assert fast["images_per_second"] == pytest.approx(8 / np.median(times["fast, batch 8"]))
    assert fast["flops_per_second"] == pytest.approx(
        fast["gflop_per_image"] * 1e9 * fast["images_per_second"]
    )
    assert fast["share_of_peak"] == fast["flops_per_second"] / found["matmul_peak"]["float32"]
    assert rows["slow", 2]["faster"] == rows["slow", 2]["time_per_image_to_first_batch"] == 1
    assert rows["slow", 2]["gflop_per_image"] > 10 * rows["fast", 2]["gflop_per_image"]


def test_costs_are_shares_of_the_first_formulation():
    config = benchmark_config(None, image_size=64, width=1, batch=2)
    config.generator.z_dim = 6
    few, many = measure_costs(config, 6, [toy("few", 1), toy("many", 9)])["rows"]
    assert few["flops_share"] == 1
    assert many["flops_share"] == pytest.approx(
        many["gflop_per_image"] / few["gflop_per_image"], rel=1e-9
    )
    assert many["gflop_per_image"] * 2e9 == pytest.approx(9 * 2 * 6**3, rel=0.1)
    assert few["argument_bytes"] == 4 * (6 * 6 + 2 * 2 * 6)


def test_the_first_step_is_compiled_again_each_turn_and_the_cache_comes_back():
    config = benchmark_config(None, image_size=64, width=1, batch=2)
    config.generator.z_dim = 6
    traced = []

    def step(state: Any, batch: Any) -> Any:
        traced.append(jax.config.values["jax_enable_compilation_cache"])
        return toy("", 1).step(state, batch)

    before = jax.config.values["jax_enable_compilation_cache"]
    found = measure_first_step(config, 6, [toy("toy", 1)._replace(step=step)], rounds=2)
    assert traced == [False] * 3
    assert jax.config.values["jax_enable_compilation_cache"] is before
    assert found["rows"][0]["share"] == 1


def test_the_word_and_frechet_commands_write_tables_and_json(run, tmp_path):
    path = tmp_path / "found.json"
    flags = ("--batch", 2, "--large-batch", 3, "--tokens", 4, "--word-dim", 8, "--rounds", 1)
    status, output, errors = run(BENCHMARK, "words", *flags, "--json", path)
    assert status == 0, errors
    assert "256 regions, 4 words of 8" in output
    literal, ours = json.loads(path.read_text())["results"]["rows"]
    assert (literal["faster"], ours["formulation"]) == (1, "ours")
    assert literal["temporary_bytes_large"] > literal["temporary_bytes"]

    flags = ("--dimensions", 20, "--rounds", 1, "--json", path)
    status, output, errors = run(BENCHMARK, "frechet", *flags)
    assert status == 0, errors
    literal, ours = json.loads(path.read_text())["results"]["rows"]
    assert ours["distance"] == pytest.approx(literal["distance"], rel=1e-9)


@pytest.mark.slow
def test_the_step_commands_write_tables_and_json(run, tmp_path):
    path = tmp_path / "found.json"
    sizes = ("--image-size", 64, "--width", 2, "--batch", 2, "--word-dim", 8, "--json", path)
    variant = ("--variant", "d_steps=1")
    status, output, errors = run(BENCHMARK, "memory", *sizes, *variant)
    assert status == 0, errors
    assert "ours, d_steps=1" in output
    literal, ours, fewer = json.loads(path.read_text())["results"][0]["rows"]
    assert fewer["gflop_per_image"] < ours["gflop_per_image"] < literal["gflop_per_image"]
    for command in ("step", "compile"):
        status, _, errors = run(BENCHMARK, command, *sizes, "--rounds", 1)
        assert status == 0, errors
        rows = json.loads(path.read_text())["results"][0]["rows"]
        assert [row["formulation"] for row in rows] == ["literal", "ours"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("step", "--rounds", 0), "--rounds is 0"),
        (("step", "--batch", 4, 0), "--batch is 0"),
        (("memory", "--image-size", 100), "image_size = 100"),
        (("memory", "--config", "coc"), "did you mean 'coco'"),
        (("memory", "--variant", "dtyp=bfloat16"), "did you mean 'dtype'"),
        (("flops", "--variant", "batch_size=2"), "changes batch_size, which has a flag"),
        (("memory", "--batch", 1), "batch_size 2 or more"),
        (("compile", "--image-size", 32), "64 pixels or more"),
    ],
)
def test_a_mistake_is_named_before_anything_is_compiled(run, arguments, hint):
    status, _, errors = run(BENCHMARK, *arguments)
    assert (status, errors.count("\n")) == (2, 1)
    assert hint in errors


def test_the_measures_find_the_oracle_by_themselves(tmp_path):
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'scripts'}"}
    command = [sys.executable, "-c", "import benchmarks.measures"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


def test_sampling_is_timed_from_the_command_to_the_image_and_by_batch(run, tiny_workdir, tmp_path):
    flags = (
        "--workdir",
        tiny_workdir,
        "--batch",
        1,
        3,
        "--rounds",
        1,
        "--json",
        tmp_path / "r.json",
    )
    status, output, _ = run(BENCHMARK, "sample", *flags)
    assert status == 0
    assert "first image" in output
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert results["seconds_to_first_image"]["first"] > 0
    for row, batch in zip(results["rows"], (1, 3), strict=True):
        for program in ("package", "exported"):
            (seconds,) = row["seconds"][program]
            assert row[program] == pytest.approx(batch / seconds)
