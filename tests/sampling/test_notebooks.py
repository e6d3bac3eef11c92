"""Notebooks are kept without outputs, and run from top to bottom on a tiny checkpoint."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from xmcgan.sampling.model_folder import save_model
from xmcgan.sampling.sampler import TrainedModel

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAMPLES = ROOT / "notebooks" / "generate_samples.ipynb"


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """Return a function that runs the notebook's first cells on a model, as if opened there."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def run(model: Path, num_cells: int | None = None):
        monkeypatch.delenv("XMCGAN_WORKDIR", raising=False)
        notebook = nbformat.read(SAMPLES, as_version=4)
        cell = next(cell for cell in notebook.cells if cell.id == "workdir")
        assert 'MODEL = "emoji64"' in cell.source
        cell.source = cell.source.replace('"emoji64"', repr(str(model)))
        notebook.cells = notebook.cells[:num_cells]
        place = {"metadata": {"path": str(SAMPLES.parent)}}
        return NotebookClient(notebook, timeout=300, resources=place).execute()

    return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_valid_and_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.parametrize("kind", ["workdir", "model folder"])
def test_the_notebook_runs_and_every_section_shows_an_image(execute, tiny_workdir, tmp_path, kind):
    if kind == "workdir":
        opened = Path(shutil.copytree(tiny_workdir, tmp_path / "workdir"))
    else:
        model = TrainedModel.from_workdir(tiny_workdir)
        info = {"steps": 6, "images_seen": 48}
        opened = save_model(tmp_path / "tiny", model.variables, model.config, info, "")
    cells = {cell.id: cell for cell in execute(opened).cells if cell.cell_type == "code"}
    for cell in cells.values():
        assert not [out for out in cell.outputs if out.get("name") == "stderr"], cell.source
    assert "step 6" in cells.pop("workdir").outputs[0].text
    del cells["imports"]
    if kind == "model folder":
        assert cells.pop("weights").outputs == []  # it has no checkpoints to compare
    for name, cell in cells.items():
        kinds = {kind for out in cell.outputs for kind in out.data if kind.startswith("image/")}
        assert kinds == (
            {"image/png", "image/gif"} if name in ("noises", "blend") else {"image/png"}
        )
    assert {path.name for path in (opened / "notebook").iterdir()} == {
        "captions.gif",
        "noises.gif",
    }


def test_a_missing_workdir_is_one_message_and_no_traceback(execute, tmp_path):
    with pytest.raises(CellExecutionError) as caught:
        execute(tmp_path / "absent", num_cells=4)
    assert caught.value.ename == "UserError"
    shown = caught.value.traceback
    assert f"error: no model or training run at {tmp_path / 'absent'}" in shown
    assert "quickstart.sh" in shown
    assert "Traceback" not in shown
    assert "exploration.py" not in shown
