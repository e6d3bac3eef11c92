"""Machines that a step can be compiled for: TPU slices, NVIDIA GPUs, simulated CPUs, this one."""

import contextlib
import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from xmcgan.errors import ConfigError, did_you_mean

GB = 1e9
HERE = "here"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one device; 0 where none is used.

    Attributes:
        peak: FLOP/s of dense bfloat16 products.
        memory: Bytes.
        bandwidth: Of the memory, bytes/s.
        links: Bytes/s that it sends to its neighbors, all links together.
    """

    platform: str
    peak: float = 0.0
    memory: float = 0.0
    bandwidth: float = 0.0
    links: float = 0.0


# Google Cloud's pages of TPU versions, NVIDIA's data sheets of the SXM parts; rates of links are
# half of the published sums of both directions.
CHIPS = {
    "v4": Chip("tpu", 275e12, 32 * GB, 1228e9, 150e9),
    "v5e": Chip("tpu", 197e12, 16 * GB, 819e9, 100e9),
    "v5p": Chip("tpu", 459e12, 95 * GB, 2765e9, 300e9),
    "v6e": Chip("tpu", 918e12, 32 * GB, 1640e9, 224e9),
    "a100": Chip("cuda", 312e12, 80 * GB, 2039e9, 300e9),
    "h100": Chip("cuda", 989e12, 80 * GB, 3350e9, 450e9),
    "h200": Chip("cuda", 989e12, 141 * GB, 4800e9, 450e9),
    "b200": Chip("cuda", 2250e12, 180 * GB, 8000e9, 900e9),
    "cpu": Chip("cpu"),
}
# What the GPU compiler asks of a device: compute capability, multiprocessors, shared memory per
# multiprocessor and per block at most, L2 cache (bytes), clock (GHz).
_GPUS = {
    "a100": ((8, 0), 108, 167936, 166912, 41943040, 1.41),
    "h100": ((9, 0), 132, 233472, 232448, 52428800, 1.98),
    "h200": ((9, 0), 132, 233472, 232448, 52428800, 1.98),
    "b200": ((10, 0), 148, 233472, 232448, 132644864, 1.96),
}
_GPUS_PER_HOST = 8
_INSTALL = {
    "tpu": "python -m pip install -r requirements-tpu.txt",
    "cuda": "python -m pip install -r requirements-cuda.txt",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine, by its name: `v5e:4x4`, `h100:8`, `cpu:64`, `here`."""

    name: str
    chip: Chip
    devices: Sequence[Any]

    @property
    def num_hosts(self) -> int:
        return len({device.process_index for device in self.devices})


def find_target(name: str) -> Target:
    """Describe a machine to the compiler.

    Args:
        name: `v5e:4x4` and the like (libtpu's names of slices), `h100:16` (8 to a host), `cpu:8`,
            or `here` for the devices that JAX finds.

    Raises:
        ConfigError: Unknown chip or topology, or a compiler that is not installed.
    """
    if name == HERE:
        return Target(name, chip_of(jax.devices()[0]), jax.devices())
    kind, _, size = name.partition(":")
    if kind not in CHIPS:
        known = [*CHIPS, HERE]
        hint = did_you_mean(kind, known)
        raise ConfigError(f"--target {name}: unknown chip. Known: {', '.join(known)}{hint}")
    pattern = r"\d+x\d+(x\d+)?" if CHIPS[kind].platform == "tpu" else r"[1-9]\d*"
    if not re.fullmatch(pattern, size):
        form = f"{kind}:4x4 or {kind}:2x2x1" if CHIPS[kind].platform == "tpu" else f"{kind}:8"
        raise ConfigError(f"--target {name}: write chip and size, such as {form}")
    finders = {"tpu": _tpu_devices, "cuda": _gpu_devices, "cpu": _cpu_devices}
    return Target(name, CHIPS[kind], finders[CHIPS[kind].platform](kind, size))


def chip_of(device: Any) -> Chip:
    """The chip of a device that is here, its memory as the device says."""
    kind = device.device_kind.lower().replace("v5 lite", "v5e").replace("v6 lite", "v6e")
    chip = next((CHIPS[name] for name in CHIPS if name in kind), Chip(device.platform))
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    return dataclasses.replace(chip, memory=float(memory))


def flops_per_device(compiled: Any, step: Any, inputs: Any, num_devices: int) -> float:
    """FLOPs of a program on one of its devices; 0 if unknown.

    Args:
        step: Function that was compiled, to be counted if the compiler does not say; or None.
    """
    flops = (compiled.cost_analysis() or {}).get("flops", 0.0)
    if not flops and step:  # the GPU compiler does not say: count what one device would compile
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
        whole = jax.jit(step).lower(*shapes).cost_analysis() or {}
        flops = whole.get("flops", 0.0) / num_devices
    return max(flops, 0.0)


def _tpu_devices(kind: str, size: str) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(f"the TPU compiler is not installed; run\n  {_INSTALL['tpu']}")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{size}")
    except Exception as error:  # of the compiler, of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"--target {kind}:{size}: libtpu refuses it: {reason}") from None
    return found.devices


def _gpu_devices(kind: str, size: str) -> Sequence[Any]:
    hosts = math.ceil(int(size) / _GPUS_PER_HOST)
    if int(size) > _GPUS_PER_HOST and int(size) % _GPUS_PER_HOST:
        raise ConfigError(f"--target {kind}:{size}: several hosts have {_GPUS_PER_HOST} GPUs each")
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            target_config=gpu_description(kind),
            topology=f"1x{hosts}x{int(size) // hosts}",
        )
    except Exception as error:  # a plugin that is not there is one of many types
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"the GPU compiler is not installed or refuses {kind}:{size} ({reason}); run\n"
            f"  {_INSTALL['cuda']}"
        ) from None
    return found.devices


def gpu_description(kind: str) -> str:
    """XLA's text form of a GPU that is not here."""
    (major, minor), cores, shared, per_block, cache, clock = _GPUS[kind]
    chip = CHIPS[kind]
    return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} threads_per_core_limit: 2048
  core_count: {cores} fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {int(chip.memory)}
  shared_memory_per_block_optin: {per_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "NVIDIA {kind.upper()}"
"""


def _cpu_devices(kind: str, size: str) -> Sequence[Any]:
    with contextlib.suppress(RuntimeError):  # too late: a target before it started the backend
        jax.config.update("jax_num_cpu_devices", int(size))
    devices = jax.devices("cpu")
    if len(devices) < int(size):
        raise ConfigError(f"--target {kind}:{size}: name the largest cpu target first")
    return devices[: int(size)]
