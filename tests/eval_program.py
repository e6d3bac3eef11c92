"""`scripts/eval_fid.py` with small networks, as a program for a process of its own."""

from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# Says in the end how many devices it ran on.
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parent)!r})
import jax, pytest, runpy, tiny_network

patch = pytest.MonkeyPatch()
tiny_network.install(patch)
tiny_network.install_detector(patch)
try:
    runpy.run_path({str(_ROOT / "scripts" / "eval_fid.py")!r}, run_name="__main__")
finally:
    print("devices", jax.device_count())
"""
