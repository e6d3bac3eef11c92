"""How a CPU is divided into devices."""

import os

import jax
import pytest

from xmcgan.utils.distributed import use_cpu_cores_as_devices


@pytest.mark.parametrize(
    ("batch_size", "devices"), [(0, 4), (32, 4), (6, 3), (2, 2), (7, 1), (-1, 1)]
)
def test_the_cores_that_share_a_batch_evenly_are_devices(monkeypatch, batch_size, devices):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    use_cpu_cores_as_devices(batch_size)
    assert set_to == {"jax_num_cpu_devices": devices}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("XLA_FLAGS", "--xla_force_host_platform_device_count=8"), ("JAX_NUM_CPU_DEVICES", "1")],
)
def test_what_the_user_said_stays(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(jax.config, "update", lambda *_: pytest.fail("changed"))
    use_cpu_cores_as_devices(32)
