"""Tiny training runs in processes of their own, one or several that share a run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

STARTED: list[subprocess.Popen[str]] = []
ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import argparse, sys
from pathlib import Path
import tiny
from xmcgan.utils import distributed
from xmcgan.config import apply_override
from xmcgan.errors import run_cli
from xmcgan.utils.files import path_of

def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("workdir", type=path_of)
    parser.add_argument("overrides", nargs="*")
    distributed.add_flags(parser)
    args = parser.parse_args(arguments)
    config = tiny.tiny_config(args.root)
    for override in args.overrides:
        apply_override(config, override)
    with distributed.session(args):
        from xmcgan.train import train
        return train(config, args.workdir)

arguments, sys.argv[1:] = sys.argv[1:], []  # a workdir may be in a bucket; here it has no flag
run_cli(main)
"""


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Return the variables of a process with so many simulated devices."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ["PYTHONPATH"]]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }


def cluster_flags(count: int) -> list[list[str]]:
    """Return the flags of each of several processes that meet on a free port."""
    meeting = ["--coordinator", f"localhost:{free_port()}", "--num-processes", str(count)]
    return [
        [*meeting, "--process-id", str(number), "--join-timeout", "60"] for number in range(count)
    ]


def start(*arguments: object, devices: int, program: str = PROGRAM) -> subprocess.Popen[str]:
    """Start one process; by default it trains a tiny run: root, workdir, overrides, flags."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    STARTED.append(process)
    return process


def start_run(
    root: Path, workdir: Path, *overrides: str, processes: int, devices: int
) -> list[subprocess.Popen[str]]:
    """Start all processes of one run, each with so many devices."""
    flags = cluster_flags(processes) if processes > 1 else [[]]
    return [start(root, workdir, *overrides, *own, devices=devices) for own in flags]


def finish(processes: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Wait for processes; return the exit status and the output of each."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    return [(process.returncode, out) for process, out in zip(processes, outputs, strict=True)]


def kill_started() -> None:
    """Kill what is left of all processes that were started."""
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()
