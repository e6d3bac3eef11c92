"""How JAX runs on this machine: where compiled programs are kept, and how a CPU is divided."""

import os
from pathlib import Path

import jax

# Each device has a copy of the parameters: of CLIP ViT-L/14, 1.7 GB. Further cores help within one.
_MOST_CPU_DEVICES = 4


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX's own variable says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(root / "xmcgan" / "jax"))


def use_cpu_cores_as_devices(batch_size: int = 0) -> None:
    """Give the cores that this process may use CPU devices of their own, four at most.

    Where a network runs on a CPU, an image on each core is faster than all cores on one image: a
    step of `emoji:quickstart` on two cores sees 155 images/s instead of 120. Call it before JAX
    starts. It changes nothing where there is an accelerator, which JAX prefers to all of these, or
    where `XLA_FLAGS` or `JAX_NUM_CPU_DEVICES` says how many devices there are.

    Args:
        batch_size: images that the devices share evenly; 0 for any number.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" in flags or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = min(cores or 1, _MOST_CPU_DEVICES)
    while batch_size % devices:
        devices -= 1
    jax.config.update("jax_num_cpu_devices", devices)
