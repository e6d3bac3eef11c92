"""Our networks, losses and gradients against a literal implementation of the official ones.

`literal` is checked against the golden file of 128 px; `scripts/verify_reference.py` then checks
our code against files of other sizes that `literal` computes.
"""

import json
from pathlib import Path

import golden
import numpy as np
import pytest

from xmcgan.benchmarks.literal import under

VERIFY = "scripts/verify_reference.py"
# Nothing divides anything by chance: a transposed axis or a forgotten sum shows.
TINY = {"batch": 3, "max_tokens": 9, "embedding_dim": 10, "z_dim": 6}


@pytest.fixture(scope="module")
def golden_32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a golden file of 32 px whose words are attended to at 8x8."""
    path = tmp_path_factory.mktemp("golden") / "golden_32.npz"
    golden.write_golden(
        path, image_size=32, gf_dim=2, df_dim=3, cond_size=8, gamma_for_g=10, seed=1, **TINY
    )
    return path


def edited(source: Path, target: Path, **changes: np.ndarray | None) -> Path:
    """Copy a golden file with some arrays replaced, or left out where None."""
    with np.load(source) as archive:
        arrays: dict[str, np.ndarray | None] = {name: archive[name] for name in archive.files}
    arrays |= changes
    np.savez(target, **{name: array for name, array in arrays.items() if array is not None})
    return target


def read(path: Path, name: str) -> np.ndarray:
    with np.load(path) as archive:
        return archive[name]


def test_the_literal_implementation_agrees_with_the_golden_file(shared_dir):
    with np.load(shared_dir / "golden" / "base_128.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    results = golden.expect(json.loads(str(arrays.pop("meta"))), arrays)
    assert set(results) == {name for name in arrays if name.startswith("expect/")}
    norms = {
        name: np.sqrt(sum(np.sum(array**2) for array in under(arrays, name).values()))
        for name in ("expect/step/d_grad", "expect/step/g_grad")
    }
    for name, result in results.items():
        # A bias before a batch norm has a gradient of zero, and rounding instead.
        tree_norm = norms.get("/".join(name.split("/")[:3]), 0)
        scale = max(np.linalg.norm(arrays[name]), 1e-3 * tree_norm)
        assert np.linalg.norm(result - arrays[name]) <= 1e-5 * scale, name


def test_verify_reference_passes_on_another_size(run, golden_32):
    status, output, _ = run(VERIFY, golden_32)
    assert status == 0, output
    assert "FAIL" not in output
    assert "138 of 138 quantities agree" in output


@pytest.mark.slow
def test_verify_reference_passes_at_256_px(run, tmp_path):
    path = tmp_path / "golden_256.npz"
    golden.write_golden(path, image_size=256, gf_dim=2, df_dim=2, seed=1, **TINY)
    status, output, _ = run(VERIFY, path)
    assert status == 0, output
    assert "219 of 219 quantities agree" in output


@pytest.mark.parametrize(
    ("name", "failing", "passing"),
    [
        (
            "discriminator/params/SpectralDense_1/bias",
            ["discriminator_train/logits", "real_sentence/loss", "step/d_loss", "step/g_loss"],
            ["generator_eval/image", "generator_train/image", "real_word/loss", "word/loss"],
        ),
        (
            "generator/params/GenSpatialBlock_0/Conv_1/kernel",
            ["generator_eval/image", "generator_train/image", "fake_word/loss"],
            ["real_word/loss", "real_sentence/loss", "contrastive/loss"],
        ),
        (
            "expect/step/g_grad/Dense_0/kernel",
            ["step/g_grad/sentence/kernel"],
            ["step/g_grad/sentence/bias", "step/g_loss"],
        ),
    ],
)
def test_verify_reference_names_what_one_percent_changes(
    run, golden_32, tmp_path, name, failing, passing
):
    change = {name: np.float32(1.01) * read(golden_32, name)}
    status, output, _ = run(VERIFY, edited(golden_32, tmp_path / "mutant.npz", **change))
    assert status == 1
    results = {line.split()[-1]: line.split()[0] for line in output.splitlines() if "(<=" in line}
    assert {quantity: results[quantity] for quantity in failing + passing} == dict.fromkeys(
        failing, "FAIL"
    ) | dict.fromkeys(passing, "ok")


@pytest.mark.parametrize(
    "name",
    [
        "input/z",
        "generator/params/Conv_0/kernel",
        "generator/params/GenBlock_0/Conv_0/bias",
        "generator/batch_stats/LocalConditionalBatchNorm_0/BatchNorm_0/var",
        "discriminator/params/DiscBlock_0/SpectralConv_2/kernel",
        "discriminator/params/DiscOptimizedBlock_0/SpectralConv_0/bias",
        "discriminator/spectral_norm_stats/SpectralDense_0/u0",
        "expect/step/d_grad/SpectralConv_0/bias",
        "expect/discriminator_train/fake_word_acc",
        "loss/word/regions",
    ],
)
def test_a_lacking_or_misshapen_array_is_named(run, golden_32, tmp_path, name):
    status, _, errors = run(VERIFY, edited(golden_32, tmp_path / "lacking.npz", **{name: None}))
    assert (status, errors.count("\n")) == (2, 1)
    assert "lacking.npz" in errors
    assert f"lacks {name}" in errors

    longer = np.stack([read(golden_32, name)] * 2, axis=-1)
    status, _, errors = run(VERIFY, edited(golden_32, tmp_path / "longer.npz", **{name: longer}))
    assert (status, errors.count("\n")) == (2, 1)
    assert f"{name} has shape {longer.shape}" in errors


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"gf_dim": 3}, "not a multiple of 3"),
        ({"cond_size": 32}, "cond_size = 32"),
        ({"image_size": 33}, "image_size = 33"),
        ({"z_dim": "6"}, "z_dim = '6'"),
        ({"embedding_dim": 11}, "input/embedding has shape (3, 9, 10), not (3, 9, 11)"),
    ],
)
def test_a_meta_that_does_not_fit_the_arrays_is_named(run, golden_32, tmp_path, change, hint):
    meta = json.loads(str(read(golden_32, "meta"))) | change
    path = edited(golden_32, tmp_path / "meta.npz", meta=np.asarray(json.dumps(meta)))
    status, _, errors = run(VERIFY, path)
    assert status == 2
    assert hint in errors


def test_a_parameter_of_another_architecture_is_named(run, golden_32, tmp_path):
    name = "discriminator/params/DiscBlock_2/SpectralConv_2/kernel"
    extra = {name: np.zeros((1, 1, 48, 48), np.float32)}
    status, _, errors = run(VERIFY, edited(golden_32, tmp_path / "extra.npz", **extra))
    assert status == 2
    assert name in errors
