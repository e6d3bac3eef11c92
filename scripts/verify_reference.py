"""Check the networks, losses and gradients against a golden file.

    python scripts/verify_reference.py FILE.npz

Prints one line a quantity with its relative error, and exits with 1 where one
is past its tolerance (1e-4; gradients 1e-3).
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xmcgan.config import default_config
from xmcgan.errors import DataError, run_cli
from xmcgan.losses.contrastive import feature_contrast, word_region_contrast
from xmcgan.models.discriminator import Discriminator
from xmcgan.models.generator import Generator
from xmcgan.training import reference
from xmcgan.training.objectives import Captions
from xmcgan.training.state import Networks, TrainState
from xmcgan.training.step import (
    Examples,
    encode_pair,
    generate,
    joint_gradients,
    normalize_discriminator,
)

VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3
# A bias right before a batch norm has a gradient of zero, and both sides hold rounding there
# (up to 4e-9 of the gradient's norm). Leaves below this share of the tree's norm are measured
# against that share; leaves with a true gradient are above it, even in narrow networks.
NOISE_FLOOR = 1e-4
# Names of our metrics for each contrastive loss of the file.
CONTRASTS = {
    "real_word": ("d_word_loss", "real_word"),
    "real_sentence": ("d_sentence_loss", "real_sentence"),
    "fake_word": ("g_word_loss", "fake_word"),
    "fake_sentence": ("g_sentence_loss", "fake_sentence"),
    "image_contrastive": ("g_image_discriminator_loss", "fake_image_discriminator"),
}


class Report:
    """Print and remember the error of each quantity."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.count = 0

    def compare(self, name: str, ours: Any, golden: Any, tolerance: float) -> None:
        """Compare two arrays, or leaf by leaf two trees, by |ours - golden| / |golden|."""
        golden_leaves = jax.tree_util.tree_leaves_with_path(golden)
        floor = NOISE_FLOOR * np.sqrt(sum(np.sum(np.square(leaf)) for _, leaf in golden_leaves))
        our_leaves = dict(jax.tree_util.tree_leaves_with_path(ours))
        for path, leaf in golden_leaves:
            label = name + "".join(f"/{key.key}" for key in path)
            self._compare_arrays(label, our_leaves.pop(path), leaf, tolerance, floor)
        if our_leaves:
            raise DataError(f"{name}: the golden file lacks {sorted(map(str, our_leaves))}")

    def _compare_arrays(
        self, name: str, ours: Any, golden: Any, tolerance: float, floor: float
    ) -> None:
        ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
        if ours.shape != golden.shape:
            raise DataError(f"{name}: our shape is {ours.shape}, the golden file's {golden.shape}")
        # A quantity that is exactly zero (an accuracy, say) has no relative error.
        scale = max(np.linalg.norm(golden), floor) or 1.0
        error = np.linalg.norm(ours - golden) / scale
        passed = bool(error <= tolerance)  # NaN fails
        print(f"{'ok  ' if passed else 'FAIL'} {error:9.2e} (<= {tolerance:.0e})  {name}")
        self.count += 1
        if not passed:
            self.failed.append(name)


def build(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Networks:
    """Build the networks of a golden file's sizes; no optimiser is needed."""
    generator = Generator(
        image_size=meta["image_size"],
        width=meta["gf_dim"],
        multipliers=reference.generator_multipliers(
            reference.tree(arrays, "generator/params"), meta["gf_dim"]
        ),
        z_dim=meta["z_dim"],
        condition_size=meta["cond_size"],
        attention_gamma=meta["gamma_for_g"],
    )
    discriminator = Discriminator(
        image_size=meta["image_size"],
        width=meta["df_dim"],
        multipliers=reference.discriminator_multipliers(
            reference.tree(arrays, "discriminator/params"), meta["df_dim"]
        ),
        region_dim=meta["embedding_dim"],
        region_size=meta["cond_size"],
    )
    return Networks(generator, discriminator, None, None)  # type: ignore[arg-type]


def load_state(arrays: dict[str, np.ndarray]) -> TrainState:
    """Put a golden file's parameters and statistics into a training state."""
    params = reference.tree(arrays, "generator/params")
    stats = reference.tree(arrays, "generator/batch_stats")
    vectors = reference.tree(arrays, "discriminator/spectral_norm_stats")
    fields: dict[str, Any] = {
        "g_params": reference.generator_params(params),
        "g_batch_stats": reference.generator_stats(stats),
        "d_params": reference.discriminator_tree(reference.tree(arrays, "discriminator/params")),
        "d_vectors": reference.discriminator_tree(vectors),
    }
    # What a golden file has nothing of, no gradient looks at.
    unused = ("step", "rng", "g_opt_state", "d_opt_state", "ema_params", "ema_batch_stats")
    fields |= dict.fromkeys(unused)
    state = TrainState(**fields)
    return jax.tree.map(jnp.asarray, state)


def verify_networks(
    report: Report, meta: dict[str, Any], arrays: dict[str, np.ndarray], state: TrainState
) -> None:
    """Compare the images, logits, statistics, losses and gradients of one step."""
    networks = build(meta, arrays)
    length = arrays["input/max_len"].astype(int)
    words = jnp.asarray(arrays["input/embedding"])
    mask = jnp.arange(words.shape[1])[None] < jnp.asarray(length)
    captions = Captions(words, mask, jnp.asarray(arrays["input/sentence_embedding"]))
    real, z = jnp.asarray(arrays["input/image"]), jnp.asarray(arrays["input/z"])
    examples = Examples(real, captions, z)

    variables = {"params": state.g_params, "batch_stats": state.g_batch_stats}
    image = jax.jit(lambda v: networks.generator.apply(v, *captions, z, train=False))(variables)
    report.compare(
        "generator_eval/image", image, arrays["expect/generator_eval/image"], VALUE_TOLERANCE
    )
    fake, stats = jax.jit(lambda s: generate(networks, s.g_params, s.g_batch_stats, captions, z))(
        state
    )
    report.compare(
        "generator_train/image", fake, arrays["expect/generator_train/image"], VALUE_TOLERANCE
    )
    golden_stats = reference.tree(arrays, "expect/generator_train/batch_stats")
    golden_stats = reference.generator_stats(golden_stats)
    report.compare("generator_train/batch_stats", stats, golden_stats, VALUE_TOLERANCE)

    def encode(s: TrainState) -> Any:
        normalized, _, vectors = normalize_discriminator(s)
        encodings = encode_pair(networks, normalized, examples, fake, default_config())
        return jnp.concatenate([encodings.real.logits, encodings.fake.logits])[:, None], vectors

    logits, vectors = jax.jit(encode)(state)
    report.compare(
        "discriminator_train/logits",
        logits,
        arrays["expect/discriminator_train/logits"],
        VALUE_TOLERANCE,
    )
    golden_vectors = reference.tree(arrays, "expect/discriminator_train/spectral_norm_stats")
    report.compare(
        "discriminator_train/spectral_norm_vectors",
        vectors,
        reference.discriminator_tree(golden_vectors),
        VALUE_TOLERANCE,
    )

    config = default_config()
    config.losses.image_pretrained.enabled = False
    # Arguments, not constants of the program: the compiler would fold what follows from them.
    gradients = jax.jit(lambda s, e: joint_gradients(s, e, networks, config, None))
    one_part = jax.tree.map(lambda x: x[None], examples)
    d_grads, g_grads, _, _, metrics = gradients(state, one_part)
    verify_losses(report, arrays, metrics)
    golden_grads = reference.tree(arrays, "expect/step/d_grad")
    report.compare(
        "step/d_grad", d_grads, reference.discriminator_tree(golden_grads), GRADIENT_TOLERANCE
    )
    golden_grads = reference.tree(arrays, "expect/step/g_grad")
    report.compare(
        "step/g_grad",
        g_grads,
        reference.generator_params(golden_grads),
        GRADIENT_TOLERANCE,
    )


def verify_losses(report: Report, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
    """Compare each loss of the step, with its retrieval accuracy and entropy."""
    for golden, (loss, ours) in CONTRASTS.items():
        prefix = f"expect/discriminator_train/{golden}"
        report.compare(f"{golden}/loss", metrics[loss], arrays[f"{prefix}_loss"], VALUE_TOLERANCE)
        accuracy, entropy = metrics[f"{ours}_accuracy"], metrics[f"{ours}_entropy"]
        report.compare(f"{golden}/accuracy", accuracy, arrays[f"{prefix}_acc"], VALUE_TOLERANCE)
        report.compare(f"{golden}/entropy", entropy, arrays[f"{prefix}_entropy"], VALUE_TOLERANCE)
    for name in ("d_loss", "g_loss"):
        report.compare(
            f"step/{name}", metrics[name], arrays[f"expect/step/{name}"], VALUE_TOLERANCE
        )


def verify_small_losses(report: Report, arrays: dict[str, np.ndarray]) -> None:
    """Compare the two contrastive losses on small arrays, with gradients of the word loss."""
    a, b = arrays["loss/contrastive/a"], arrays["loss/contrastive/b"]
    contrast = jax.jit(partial(feature_contrast, temperature=0.1))(jnp.asarray(a), jnp.asarray(b))
    for field, value in contrast._asdict().items():
        report.compare(
            f"contrastive/{field}", value, arrays[f"loss/contrastive/{field}"], VALUE_TOLERANCE
        )

    words = jnp.asarray(arrays["loss/word/words"])
    mask = jnp.arange(words.shape[1])[None] < arrays["loss/word/length"].astype(int)

    def loss_fn(regions: Any, words: Any) -> Any:
        contrast = word_region_contrast(
            regions, words, mask, region_gamma=5.0, word_gamma=5.0, score_gamma=50.0
        )
        return contrast.loss, contrast

    regions = jnp.asarray(arrays["loss/word/regions"])
    grads, contrast = jax.jit(jax.grad(loss_fn, argnums=(0, 1), has_aux=True))(regions, words)
    for field, value in contrast._asdict().items():
        report.compare(f"word/{field}", value, arrays[f"loss/word/{field}"], VALUE_TOLERANCE)
    for side, grad in zip(("regions", "words"), grads, strict=True):
        report.compare(
            f"word/grad_{side}", grad, arrays[f"loss/word/grad_{side}"], GRADIENT_TOLERANCE
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a golden .npz file, of any sizes")
    path = parser.parse_args().file
    meta, arrays = reference.read_golden(path)
    report = Report()
    with jax.default_matmul_precision("highest"):
        verify_networks(report, meta, arrays, load_state(arrays))
        verify_small_losses(report, arrays)
    print(
        f"{report.count - len(report.failed)} of {report.count} quantities agree with {path.name}"
    )
    return 1 if report.failed else 0


if __name__ == "__main__":
    run_cli(main)
