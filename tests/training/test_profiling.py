"""Throughput, shares of time and of the peak, and traces."""

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from xmcgan.config import default_config, validate
from xmcgan.errors import ConfigError
from xmcgan.planning import targets
from xmcgan.training import profiling
from xmcgan.training.profiling import StepClock, Trace


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_throughput_leaves_out_what_is_excluded(now):
    clock = StepClock(step=10, batch_size=8)
    now[0] += 2
    with clock.exclude():
        now[0] += 100
    assert clock.read_and_reset(15) == {"images_per_second": 5 * 8 / 2, "data_wait_share": 0}
    now[0] += 1
    assert clock.read_and_reset(16) == {"images_per_second": 8, "data_wait_share": 0}


def test_waiting_for_data_is_a_share_of_the_time_that_counts(now):
    clock = StepClock(step=0, batch_size=8)
    now[0] += 3
    with clock.waiting():
        now[0] += 1
    with clock.exclude():
        now[0] += 100
    assert clock.read_and_reset(1)["data_wait_share"] == 0.25
    now[0] += 1
    assert clock.read_and_reset(2)["data_wait_share"] == 0


def test_the_share_of_the_peak_is_that_of_the_time_it_would_take_at_it(now):
    for at_peak, expected in ((0.0, None), (0.2, 0.5)):
        clock = StepClock(0, 8, at_peak)
        now[0] += 2
        assert clock.read_and_reset(5).get("peak_share") == expected


@pytest.mark.parametrize(("chip", "peak"), [("cpu", 0), ("h100", 989e12)])
def test_the_work_of_a_step_is_that_of_its_compiled_program(monkeypatch, chip, peak):
    monkeypatch.setattr(targets, "chip_of", lambda device: targets.CHIPS[chip])
    square = jnp.ones((64, 64))
    quiet, config, product = Console(quiet=True), default_config(), jax.jit(lambda x: x @ x)
    compiled, at_peak = profiling.compile_step(quiet, config, product, square)
    assert float(compiled(square)[0, 0]) == 64
    assert at_peak * peak == pytest.approx(2 * 64**3 if peak else 0, rel=0.1)
    assert bool(at_peak) == bool(peak)  # that of a CPU is not known
    config.num_microbatches = 2
    assert profiling.compile_step(quiet, config, product, square)[1] == 0


@pytest.mark.parametrize(("steps", "traced"), [("", False), ("3-4", True), ("5", True), ("9", 0)])
def test_the_chosen_steps_and_no_others_are_traced(tmp_path, monkeypatch, steps, traced):
    active, calls = [], []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: active.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", active.clear)
    with Trace(steps, tmp_path) as trace:
        for step in range(1, 7):
            step_result = trace.run(step, lambda x: calls.append(bool(active)) or x, step)
            assert step_result == step
            assert not active or step < 4  # stopped after the last one, not before the next
    found = [number for number, is_traced in enumerate(calls, start=1) if is_traced]
    assert found == ({"3-4": [3, 4], "5": [5]}[steps] if traced else [])


def test_a_run_that_ends_within_the_chosen_steps_leaves_its_trace(tmp_path):
    with Trace("2-9", tmp_path) as trace:
        for step in range(1, 4):
            trace.run(step, jax.jit(jnp.sin), jnp.ones(()))
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize("steps", ["5-3", "a", "0", "1-", "1,2"])
def test_what_is_no_range_of_steps_is_refused(steps):
    config = default_config()
    config.profile.steps = steps
    with pytest.raises(ConfigError, match=r"profile\.steps"):
        validate(config)
