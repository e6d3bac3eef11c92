"""`scripts/eval_fid.py` with small networks, as a program for a process of its own."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
# Says in the end how many devices it ran on.
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
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
    runpy.run_path({str(_ROOT / "scripts" / "eval_fid.py")!r}, run_name="__main__")
finally:
    print("devices", jax.device_count())
"""
