"""What `scripts/benchmark.py` measures."""

import sys
from pathlib import Path

# The literal formulation is the tests' oracle.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
