"""An evaluation on a CPU gives every core a device, and the scores of one device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Says how many devices it ran on.
PROGRAM = """
import jax, numpy, pytest, runpy, tiny_network
from xmcgan.evaluation import evaluator
from xmcgan.evaluation.shapes_detector import Detector
from xmcgan.evaluation.shapes_training import TrainingRecipe, make_module

def open_detector(*args):
    recipe, area = TrainingRecipe(32, width=4), numpy.zeros((1, 24, 24, 3), "float32")
    init = jax.jit(make_module(recipe).init)
    return Detector(recipe, init(jax.random.key(0), area)["params"])

patch = pytest.MonkeyPatch()
tiny_network.install(patch)
patch.setattr(evaluator, "open_detector", open_detector)
try:
    runpy.run_path("scripts/eval_fid.py", run_name="__main__")
finally:
    print("devices", jax.device_count())
"""


def start(workdir: Path, devices: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    folders = [ROOT, ROOT / "tests", ROOT / "tests" / "evaluation", environment["PYTHONPATH"]]
    path = os.pathsep.join(map(str, folders))
    environment |= {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    if devices:
        environment["JAX_NUM_CPU_DEVICES"] = devices
    flags = ["--num-samples", "7", "--bootstrap", "0", "--use", "ema", "--step", "6"]
    command = [sys.executable, "-c", PROGRAM, "--workdir", workdir, *flags]
    command += ["--cache-dir", workdir / "cache"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


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
