"""Check the networks, losses and gradients against a golden file.

    python scripts/verify_reference.py FILE.npz
    python scripts/verify_reference.py FILE.npz --float32

Prints one line per quantity with its relative error, and exits with 1 if one
is above its tolerance. Networks and losses compute in float64: 1e-4 for all.
With --float32 they compute as in training: 1e-4, and 5e-3 for gradients,
because a ReLU input near zero may take the other sign there.
"""

import argparse
import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from oracle.golden import Golden

from xmcgan.config import default_config
from xmcgan.errors import run_cli
from xmcgan.losses import build_losses
from xmcgan.losses.contrastive import feature_contrast, word_region_contrast
from xmcgan.models.discriminator import Discriminator
from xmcgan.models.generator import Generator
from xmcgan.models.outputs import Captions
from xmcgan.training.state import Networks, TrainState, create_state
from xmcgan.training.step import FrozenNetworks, Inputs, Model, joint_gradients, normalize

TOLERANCE, FLOAT32_GRADIENT_TOLERANCE = 1e-4, 5e-3
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
    """Relative errors by name, printed one per line."""

    def __init__(self, dtype: DTypeLike) -> None:
        self.is_float32 = dtype == jnp.float32
        self.passed: dict[str, bool] = {}
        self.errors: dict[str, float] = {}

    def compare(self, name: str, ours: Any, golden: Any) -> None:
        """Compare two arrays, or leaf by leaf two trees, by |ours - golden| / |golden|."""
        is_loose = self.is_float32 and "grad" in name
        tolerance = FLOAT32_GRADIENT_TOLERANCE if is_loose else TOLERANCE
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(golden)]
        floor = NOISE_FLOOR * np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))
        for (path, leaf), wanted in zip(jax.tree.leaves_with_path(ours), leaves, strict=True):
            suffix = jax.tree_util.keystr(path, simple=True, separator="/")
            label = f"{name}/{suffix}" if path else name
            # A quantity that is exactly zero (an accuracy, say) has no relative error.
            scale = max(np.linalg.norm(wanted), floor) or 1.0
            error = float(np.linalg.norm(np.asarray(leaf, np.float64) - wanted) / scale)
            passed = error <= tolerance  # NaN fails
            print(f"{'ok  ' if passed else 'FAIL'} {error:9.2e} (<= {tolerance:.0e})  {label}")
            self.passed[label], self.errors[label] = passed, error

    def summary(self, source: str) -> str:
        """Return how many quantities agree, and the largest errors, as a line."""
        worst = {
            kind: np.max([error for name, error in self.errors.items() if ("grad" in name) == side])
            for kind, side in (("values", False), ("gradients", True))
        }
        largest = ", ".join(f"{error:.1e} in {kind}" for kind, error in worst.items())
        arithmetic = "float32" if self.is_float32 else "float64"
        return (
            f"{sum(self.passed.values())} of {len(self.passed)} quantities agree with {source} "
            f"in {arithmetic}; largest error {largest}"
        )


def load_networks(
    golden: Golden, max_tokens: int, sentence_dim: int, dtype: DTypeLike
) -> tuple[Networks, TrainState]:
    """Build the networks of a file's sizes, with its parameters and statistics as their state."""
    meta = golden.meta
    generator = Generator(
        image_size=meta["image_size"],
        width=meta["gf_dim"],
        multipliers=golden.multipliers("generator"),
        z_dim=meta["z_dim"],
        condition_size=meta["cond_size"],
        attention_gamma=golden.gamma,
        dtype=dtype,
    )
    discriminator = Discriminator(
        image_size=meta["image_size"],
        width=meta["df_dim"],
        multipliers=golden.multipliers("discriminator"),
        region_dim=meta["embedding_dim"],
        region_size=meta["cond_size"],
        dtype=dtype,
    )
    networks = Networks(generator, discriminator, optax.identity(), optax.identity())
    shapes = jax.eval_shape(
        lambda: create_state(
            networks,
            jax.random.key(0),
            max_tokens=max_tokens,
            word_dim=meta["embedding_dim"],
            sentence_dim=sentence_dim,
        )
    )
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return networks, state.replace(**golden.state(shapes))


@partial(jax.jit, static_argnums=(0, 1))
def run_step(
    generator: Generator, discriminator: Discriminator, state: TrainState, inputs: Inputs
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return images, logits, statistics and gradients of a step by official name, and metrics."""
    networks = Networks(generator, discriminator, optax.identity(), optax.identity())
    variables = {"params": state.g_params, "batch_stats": state.g_batch_stats}
    captions, z = inputs.captions, inputs.z
    image = networks.generator.apply(variables, *captions, z, train=False)
    fake, stats = networks.generate(state.g_params, state.g_batch_stats, captions, z)
    config = default_config()
    config.losses.image_pretrained.enabled = False
    frozen = FrozenNetworks(lambda *_: (captions.words, captions.sentence))  # encoded in the file
    model = Model(networks, frozen, {}, build_losses(config), config)
    d_params, _, vectors = normalize(state)
    outputs = [model.discriminate(d_params, captions, x) for x in (inputs.real, fake)]
    joint = joint_gradients(model, state, inputs)
    logits = jnp.concatenate([output.logits for output in outputs])[:, None]
    return {
        "generator_eval/image": image,
        "generator_train/image": fake,
        "generator_train/batch_stats": stats,
        "discriminator_train/logits": logits,
        "discriminator_train/spectral_norm_stats": vectors,
        "step/d_grad": joint.d_grads,
        "step/g_grad": joint.g_grads,
    }, joint.metrics


def verify_step(report: Report, golden: Golden, dtype: DTypeLike) -> None:
    """Compare the images, logits, statistics, losses and gradients of one step."""
    meta = golden.meta
    words = golden.get("input/embedding", (None, None, meta["embedding_dim"]))
    batch, tokens, _ = words.shape
    sentence = golden.get("input/sentence_embedding", (batch, None))
    mask = np.arange(tokens)[None] < golden.get("input/max_len", (batch, 1)).astype(int)
    image = golden.get("input/image", (batch, meta["image_size"], meta["image_size"], 3))
    z = golden.get("input/z", (batch, meta["z_dim"]))
    networks, state = load_networks(golden, tokens, sentence.shape[1], dtype)
    # Arguments, not constants of the program: the compiler would fold what follows from them.
    captions = Captions(jnp.asarray(words), jnp.asarray(mask), jnp.asarray(sentence))
    found, metrics = run_step(
        networks.generator,
        networks.discriminator,
        state,
        Inputs(jnp.asarray(image), captions, jnp.asarray(z)),
    )
    for name, ours in found.items():
        prefix = f"expect/{name}"
        if isinstance(ours, dict):
            network = (
                "generator"
                if name in ("generator_train/batch_stats", "step/g_grad")
                else "discriminator"
            )
            report.compare(name, ours, golden.tree(prefix, network, ours))
        else:
            report.compare(name, ours, golden.get(prefix, ours.shape))
    for name, (loss, ours) in CONTRASTS.items():
        for field, metric in (
            ("loss", loss),
            ("acc", f"{ours}_accuracy"),
            ("entropy", f"{ours}_entropy"),
        ):
            expected = golden.get(f"expect/discriminator_train/{name}_{field}", ())
            report.compare(f"{name}/{field}", metrics[metric], expected)
    for name in ("d_loss", "g_loss"):
        report.compare(f"step/{name}", metrics[name], golden.get(f"expect/step/{name}", ()))


@jax.jit
def contrast_features(a: Any, b: Any) -> Any:
    return feature_contrast(a, b, temperature=0.1)


@jax.jit
def contrast_words(regions: Any, words: Any, mask: Any) -> Any:
    """Return the gradients by regions and words, and the contrast."""

    def loss_fn(regions: Any, words: Any) -> Any:
        contrast = word_region_contrast(
            regions, words, mask, region_gamma=5.0, word_gamma=5.0, score_gamma=50.0
        )
        return contrast.loss, contrast

    return jax.grad(loss_fn, argnums=(0, 1), has_aux=True)(regions, words)


def verify_small_losses(report: Report, golden: Golden) -> None:
    """Compare the two contrastive losses on small arrays, with gradients of the word loss."""
    a = golden.get("loss/contrastive/a", (None, None))
    contrast = contrast_features(a, golden.get("loss/contrastive/b", a.shape))
    for field, value in contrast._asdict().items():
        report.compare(f"contrastive/{field}", value, golden.get(f"loss/contrastive/{field}", ()))

    regions = golden.get("loss/word/regions", (None, None, None))
    pairs, _, dim = regions.shape
    words = golden.get("loss/word/words", (pairs, None, dim))
    length = golden.get("loss/word/length", (pairs, 1))
    mask = np.arange(words.shape[1])[None] < length.astype(int)
    grads, contrast = contrast_words(regions, words, mask)
    for field, value in contrast._asdict().items():
        report.compare(f"word/{field}", value, golden.get(f"loss/word/{field}", ()))
    for side, grad in zip(("regions", "words"), grads, strict=True):
        report.compare(f"word/grad_{side}", grad, golden.get(f"loss/word/grad_{side}", grad.shape))


def verify(golden: Golden, dtype: DTypeLike = jnp.float64) -> Report:
    """Compare everything that a golden file expects, and print it.

    Args:
        dtype: float64 or float32, in which networks and losses compute.
    """
    report, golden = Report(dtype), copy.copy(golden)
    golden.arrays = {name: np.asarray(array, dtype) for name, array in golden.arrays.items()}
    with jax.enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
        verify_step(report, golden, dtype)
        verify_small_losses(report, golden)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a golden .npz file, of any sizes")
    parser.add_argument(
        "--float32", action="store_true", help="compute in float32, as training does"
    )
    args = parser.parse_args()
    report = verify(Golden.read(args.file), jnp.float32 if args.float32 else jnp.float64)
    print(report.summary(args.file.name))
    return 0 if all(report.passed.values()) else 1


if __name__ == "__main__":
    run_cli(main)
