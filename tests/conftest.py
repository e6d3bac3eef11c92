"""Shared fixtures: where the reference files are, and how JAX runs in tests."""

import gc
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

# Before the first import of JAX, which fixes them: platform and number of simulated devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute: one device, for which nothing is partitioned, and without
# the compiler's last stages. Those marked `mesh` run in a process with eight (scripts/test.sh).
os.environ.setdefault(
    "XLA_FLAGS",
    f"--xla_force_host_platform_device_count={os.environ.get('XMCGAN_TEST_DEVICES', '1')} "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 "
    # Later compilers end the process if they are given it.
    + "--xla_cpu_use_fusion_emitters=false"
    * version("jaxlib").startswith("0.10."),
)

# Before what might use them: no network and no TensorFlow, here and in processes that tests start.
import offline.sitecustomize  # noqa: F401

os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parent / "offline"), os.environ.get("PYTHONPATH")])
)

import fake_bucket
import jax
import pytest
import tiny
from ml_collections import ConfigDict

from xmcgan.train import train

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("XMCGAN_SHARED_DIR", ROOT.parent / "shared"))

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
gc.set_threshold(50_000)  # tracing makes many objects, and they stay
jax.devices()  # they start with the flags above; a test may set others for a program of its own


# Files of minutes, with which processes that share the suite begin.
LONGEST = ("step", "extending", "in_training", "loop", "reference", "init_from", "protocols")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; skip the tests marked `mesh` unless there are eight devices."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)
    if jax.device_count() < 8:
        for item in items:
            if item.get_closest_marker("mesh"):
                item.add_marker(pytest.mark.skip(reason="needs XMCGAN_TEST_DEVICES=8"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Return the folder of golden values and real data, or skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED} (set XMCGAN_SHARED_DIR)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny text encoder and a tiny data set."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.write_bert(root / "bert")
    tiny.write_shapes(root / "data")
    return root


@pytest.fixture
def tiny_config(tiny_root: Path) -> ConfigDict:
    """Return a config that trains in seconds on the data of `tiny_root`."""
    return tiny.tiny_config(tiny_root)


@pytest.fixture(scope="session")
def tiny_workdir(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the workdir of a finished tiny run; tests only read it."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    assert train(tiny.tiny_config(tiny_root), workdir) == 0
    return workdir


@pytest.fixture(scope="session")
def cloud() -> Iterator[fake_bucket.Cloud]:
    """Return the only cloud that clients see, with three buckets; skip without their package."""
    if find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed")
    buckets = fake_bucket.serve("bucket", "doomed", "closed")
    with buckets as (cloud, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield cloud


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs a program and gives its status, output and errors."""

    def run_command(program: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / program), run_name="__main__")
        output, errors = capsys.readouterr()
        status = stopped.value.code
        return status if isinstance(status, int) else 0, output, errors

    return run_command
