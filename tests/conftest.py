"""Shared fixtures: where the reference files are, and how JAX runs in tests."""

import os
from pathlib import Path

# Before the first import of JAX: eight CPU devices stand in for a mesh.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("XMCGAN_SHARED_DIR", ROOT.parent / "shared"))

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of golden values and real data, or skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED} (set XMCGAN_SHARED_DIR)")
    return SHARED
