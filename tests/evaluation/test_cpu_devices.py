"""An evaluation on a CPU gives every core a device, and the scores of one device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eval_program import PROGRAM

ROOT = Path(__file__).resolve().parents[2]


def start(workdir: Path, devices: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), environment["PYTHONPATH"]])
    environment |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    if devices:
        environment["JAX_NUM_CPU_DEVICES"] = devices
    flags = ["--num-samples", "7", "--bootstrap", "0", "--use", "ema", "--step", "6"]
    command = [sys.executable, "-c", PROGRAM, "--workdir", workdir, *flags]
    command += ["--cache-dir", workdir / "cache"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_cores_are_devices_and_change_no_score(tiny_workdir, tmp_path):
    workdirs = [Path(shutil.copytree(tiny_workdir, tmp_path / name)) for name in ("one", "cores")]
    # Seven images divide over no devices but one. JAX's own variable has the last word.
    processes = [start(w, devices) for w, devices in zip(workdirs, ("1", ""), strict=True)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    cores = min(len(os.sched_getaffinity(0)), 4)
    assert [int(output.split()[-1]) for output in outputs] == [1, cores]
    one, more = (
        {name: score["value"] for name, score in json.loads(line)["scores"].items()}
        for line in ((w / "evaluation" / "results.jsonl").read_text() for w in workdirs)
    )
    assert more == pytest.approx(one, rel=1e-5, abs=1e-5)
