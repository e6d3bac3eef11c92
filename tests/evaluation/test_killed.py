"""An evaluation that a signal ends leaves whole results, and the next one adds the others."""

import os
import shutil
import signal
from pathlib import Path

import processes
import pytest

from xmcgan.evaluation.results import ResultFile
from xmcgan.training.checkpoint import pinned_steps

# Ends itself by a real signal, where its fourth argument is one, amid the third set of images: the
# real ones come first, then the averaged and the last weights of step 3.
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import pytest, tiny_network
from pathlib import Path
from xmcgan.evaluation.evaluator import Options
from xmcgan.evaluation.features import FeatureExtractor
from xmcgan.evaluation.watch import EvaluationJob

patch = pytest.MonkeyPatch()
tiny_network.install(patch)
tiny_network.install_detector(patch)
extract, calls = FeatureExtractor.__call__, []

def ending(self, images):
    calls.append(images)
    # The real images, step 3 averaged with four samples of each caption, and then
    if len(calls) == 6 and int(sys.argv[2]):
        os.kill(os.getpid(), int(sys.argv[2]))
    return extract(self, images)

patch.setattr(FeatureExtractor, "__call__", ending)
workdir = Path(sys.argv[1])
options = Options(num_samples=20, resamples=0, cache_dir=workdir.parent / "cache")
print("added", EvaluationJob(workdir, options).run())
"""


def evaluate(workdir: Path, number: int) -> tuple[int, str]:
    program = processes.start(workdir, number, devices=1, program=PROGRAM)
    return processes.finish([program], 300)[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_whole_results_and_the_next_evaluation_adds_the_rest(
    tiny_workdir, tmp_path, number
):
    workdir = Path(shutil.copytree(tiny_workdir, tmp_path / "workdir"))
    status, output = evaluate(workdir, number)
    assert status == -number, output
    results = ResultFile(workdir / "evaluation")
    assert [(r.step, r.weights) for r in results.read()] == [(3, "ema")]
    assert pinned_steps(workdir / "checkpoints", "evaluation") == {3, 6}
    status, output = evaluate(workdir, 0)
    assert status == 0, output
    assert "added 3" in output
    # Placement is of objects that were found, which some of the images may lack.
    names = [{n for n in r.scores if "placement" not in n} for r in results.read()]
    assert len(names) == 4
    assert all(each == names[0] for each in names)
    assert not [p for p in os.listdir(workdir / "evaluation") if p.endswith(".tmp")]
