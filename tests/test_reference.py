"""Our networks, losses and gradients against a literal implementation of the official ones.

The literal formulation is checked against the golden file of 128 px; `verify_reference` then checks
our code against files of other sizes that it computes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import verify_reference
from ml_collections import ConfigDict
from oracle import golden
from oracle.golden import Golden
from oracle.literal import under

from xmcgan.config import default_config
from xmcgan.errors import DataError
from xmcgan.losses import contrastive
from xmcgan.models import spectral_norm

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


def changed(path: Path, **arrays: np.ndarray | None) -> Golden:
    """Return a golden file with some arrays replaced, or left out if None."""
    file = Golden.read(path)
    file.arrays |= arrays
    file.arrays = {name: array for name, array in file.arrays.items() if array is not None}
    return file


def test_the_literal_implementation_agrees_with_the_golden_file(shared_dir):
    file = Golden.read(shared_dir / "golden" / "base_128.npz")
    arrays = file.arrays
    results = golden.expect(file.meta | {"gamma_for_g": file.gamma}, arrays)
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


@pytest.mark.parametrize(
    ("flags", "arithmetic", "tolerances"),
    [([], "float64", {"(<= 1e-04)"}), (["--float32"], "float32", {"(<= 1e-04)", "(<= 5e-03)"})],
)
def test_verify_reference_passes_on_the_golden_file(run, shared_dir, flags, arithmetic, tolerances):
    status, output, _ = run(VERIFY, shared_dir / "golden" / "base_128.npz", *flags)
    assert status == 0, output
    assert f"192 of 192 quantities agree with base_128.npz in {arithmetic}" in output
    assert {line[15:25] for line in output.splitlines()[:-1]} == tolerances


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_verify_reference_passes_on_another_size(golden_32, dtype):
    passed = verify_reference.verify(Golden.read(golden_32), dtype).passed
    assert len(passed) == 138
    assert all(passed.values())


@pytest.mark.slow
def test_verify_reference_passes_at_256_px(tmp_path):
    path = tmp_path / "golden_256.npz"
    golden.write_golden(path, image_size=256, gf_dim=2, df_dim=2, seed=1, **TINY)
    passed = verify_reference.verify(Golden.read(path)).passed
    assert len(passed) == 219
    assert all(passed.values())


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
def test_verify_reference_names_what_one_percent_changes(golden_32, name, failing, passing):
    array = Golden.read(golden_32).arrays[name]
    passed = verify_reference.verify(changed(golden_32, **{name: np.float32(1.01) * array})).passed
    assert [quantity for quantity in failing if passed[quantity]] == []
    assert [quantity for quantity in passing if not passed[quantity]] == []


def sentence_temperature(temperature: float) -> Callable[[], ConfigDict]:
    """Return a function that gives the default config with another temperature."""

    def config() -> ConfigDict:
        config = default_config()
        config.losses.sentence.temperature = temperature
        return config

    return config


@pytest.mark.parametrize(
    ("owner", "name", "broken", "failing", "passing"),
    [
        (
            verify_reference,
            "default_config",
            sentence_temperature(0.11),
            ["real_sentence/loss", "fake_sentence/loss", "step/d_loss"],
            ["real_word/loss", "image_contrastive/loss"],
        ),
        pytest.param(
            spectral_norm,
            "EPSILON",
            1e-4,
            ["discriminator_train/logits", "step/d_loss"],
            ["generator_train/image"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_verify_reference_finds_a_broken_loss_or_network(
    golden_32, monkeypatch, owner, name, broken, failing, passing
):
    verify_reference.run_step.clear_cache()  # the program of the right functions
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, broken)
        passed = verify_reference.verify(Golden.read(golden_32)).passed
    verify_reference.run_step.clear_cache()
    assert [quantity for quantity in failing if passed[quantity]] == []
    assert [quantity for quantity in passing if not passed[quantity]] == []


def test_verify_reference_finds_a_gradient_that_is_wrong_where_the_value_is_right(
    golden_32, monkeypatch
):
    monkeypatch.setattr(contrastive, "_double_gradient", lambda x: x)
    verify_reference.contrast_words.clear_cache()
    report = verify_reference.Report(jnp.float32)
    verify_reference.verify_small_losses(report, Golden.read(golden_32))
    verify_reference.contrast_words.clear_cache()
    failed = [name for name, passed in report.passed.items() if not passed]
    assert failed == ["word/grad_regions", "word/grad_words"]


@pytest.mark.parametrize(("dtype", "wanted"), [(jnp.float64, "f64"), (jnp.float32, "f32")])
def test_the_step_computes_in_one_type_throughout(golden_32, monkeypatch, dtype, wanted):
    class Lowered(Exception):
        pass

    def lower(*args: Any) -> None:
        raise Lowered(step.lower(*args).as_text())

    step = verify_reference.run_step
    monkeypatch.setattr(verify_reference, "run_step", lower)
    with pytest.raises(Lowered) as program:
        verify_reference.verify(Golden.read(golden_32), dtype)
    types = set(re.findall(r"[x<](f\d+|bf16)>", str(program.value)))
    assert types == {wanted}


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
def test_a_missing_or_misshapen_array_is_named_with_the_file(golden_32, name):
    with pytest.raises(DataError, match=f"golden_32.npz lacks {name}"):
        verify_reference.verify(changed(golden_32, **{name: None}))
    longer = np.stack([Golden.read(golden_32).arrays[name]] * 2, axis=-1)
    with pytest.raises(DataError, match=f"golden_32.npz: {name} has shape"):
        verify_reference.verify(changed(golden_32, **{name: longer}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gf_dim": 3}, "generator/params"),
        ({"cond_size": 32}, "GenBlock_1"),
        ({"image_size": 33}, "input/image"),
        ({"z_dim": "x"}, "not a golden file"),
        ({"z_dim": 0}, "not a golden file"),
        ({"embedding_dim": 11}, "input/embedding"),
    ],
)
def test_a_meta_that_does_not_fit_the_arrays_is_refused(run, golden_32, tmp_path, change, named):
    with np.load(golden_32) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays["meta"])) | change
    path = tmp_path / "meta.npz"
    np.savez(path, **arrays | {"meta": np.asarray(json.dumps(meta))})
    with pytest.raises(DataError, match=named) as refused:
        verify_reference.verify(Golden.read(path))
    assert str(path) in str(refused.value)


def test_a_parameter_of_another_architecture_is_named(golden_32):
    name = "discriminator/params/DiscBlock_2/SpectralConv_2/kernel"
    with pytest.raises(DataError, match=name):
        verify_reference.verify(changed(golden_32, **{name: np.zeros((1, 1, 48, 48), np.float32)}))


@pytest.mark.parametrize("content", [None, b"text"])
def test_what_is_no_golden_file_is_one_line(run, tmp_path, content):
    path = tmp_path / "other.npz"
    if content is not None:
        path.write_bytes(content)
    status, _, errors = run(VERIFY, path)
    assert (status, errors.count("\n")) == (2, 1)
    assert str(path) in errors
