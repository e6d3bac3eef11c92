"""From captions and noise to images, the same way in training, on the command line and later."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from xmcgan.config import read_config
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import CheckpointError, UserError, WeightsError, listed
from xmcgan.pretrained.encoders import TextEncoder
from xmcgan.training import build
from xmcgan.training.checkpoint import (
    checkpoint_digest,
    committed_steps,
    named_leaves,
    restore_subtree,
)
from xmcgan.utils.mesh import fetch, make_mesh, put, replicated, sample_sharding
from xmcgan.utils.provenance import fingerprint_differences


def to_uint8(images: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Round images in [0, 1] to the nearest of 256 levels."""
    return jnp.floor(jnp.clip(images, 0, 1) * 255 + 0.5).astype(jnp.uint8)


def sample_noise(
    seed: int, num: int, z_dim: int, truncation: float | None = None
) -> Float[np.ndarray, "n z"]:
    """Sample noise of which row i depends on (seed, i) only, not on `num`.

    With `truncation` (BigGAN; Brock et al., ICLR 2019, section 3.1) values come from a normal
    distribution cut off at -truncation and truncation. They are sampled by its quantiles, so that
    a lower threshold moves the noise of a seed toward 0, smoothly.

    Raises:
        UserError: `truncation` is negative or not finite.
    """
    if truncation is not None and not 0 <= truncation < np.inf:
        raise UserError(f"truncation is {truncation}: it must be a number from 0")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))
    if truncation is None:
        sample = partial(jax.random.normal, shape=(z_dim,))
    else:
        sample = partial(
            jax.random.truncated_normal, lower=-truncation, upper=truncation, shape=(z_dim,)
        )
    return np.asarray(jax.vmap(sample)(keys))


def sample_images(
    generator: Any,
    text: TextEncoder,
    variables: Any,
    text_params: Any,
    token_ids: Int[Array, "b t"],
    word_mask: Bool[Array, "b t"],
    z: Float[Array, "b z"],
) -> UInt8[Array, "b h w 3"]:
    """Sample images from tokenized captions with a generator in evaluation mode."""
    words, sentence = text.apply(text_params, token_ids, word_mask)
    return to_uint8(generator.apply(variables, words, word_mask, sentence, z, train=False))


class Sampler:
    """A generator in evaluation mode with the text encoder that it was trained with.

    Args:
        batch_size: images per call, rounded up to a multiple of the devices.
        text_params: those of `text`, if they are on the devices already.
    """

    def __init__(
        self,
        generator: Any,
        text: TextEncoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        batch_size: int = 16,
        text_params: Any = None,
    ) -> None:
        self.generator, self.text, self.tokenizer, self.mesh = generator, text, tokenizer, mesh
        self.text_params = text_params
        if text_params is None:
            self.text_params = put(text.params, replicated(mesh))
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sample = jax.jit(partial(sample_images, generator, text))

    def __call__(
        self, variables: Any, captions: Sequence[str], z: Float[np.ndarray, "n z"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Sample one image per caption; `variables` are the generator's `params` and `batch_stats`.

        Any number will do: the last batch is padded.
        """
        token_ids, mask = self.tokenizer(captions)
        images = []
        for start in range(0, len(captions), self._batch_size):
            parts = [x[start : start + self._batch_size] for x in (token_ids, mask, z)]
            missing = self._batch_size - len(parts[0])
            padded = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in parts]
            inputs = put(padded, sample_sharding(self.mesh))
            images.append(fetch(self._sample(variables, self.text_params, *inputs)))
        return np.concatenate(images)[: len(captions)]

    def place(self, stored: dict[str, Any], source: str) -> Any:
        """Return stored arrays as variables of the generator, in float32 on the devices.

        Args:
            stored: NumPy arrays by name, such as `params/first_map/kernel`.
            source: what they were read from, for messages.

        Raises:
            WeightsError: the generator needs other arrays.
        """
        width, tokens = self.text.width, self.tokenizer.max_tokens
        shapes = jax.eval_shape(
            lambda: self.generator.init(
                jax.random.key(0),
                jnp.zeros((1, tokens, width)),
                jnp.ones((1, tokens), bool),
                jnp.zeros((1, width)),
                jnp.zeros((1, self.generator.z_dim)),
                train=False,
            )
        )
        wanted = {name: shapes.get(name, {}) for name in ("params", "batch_stats")}
        named = named_leaves(wanted)
        differences = fingerprint_differences(
            {name: array.shape for name, array in stored.items()},
            {name: leaf.shape for name, leaf in named.items()},
        )
        if differences:
            raise WeightsError(
                f"{source} is of another architecture than config.json beside it "
                f"(array: stored -> config.json):{listed(differences)}"
            )
        leaves = [np.asarray(stored[name], leaf.dtype) for name, leaf in named.items()]
        variables = jax.tree.unflatten(jax.tree.structure(wanted), leaves)
        return put(variables, replicated(self.mesh))


def load_generator(
    sampler: Sampler,
    checkpoints: Path,
    step: int,
    *,
    raw: bool = False,
    raw_statistics: bool = False,
) -> Any:
    """Load the variables of the generator from a checkpoint, on the sampler's devices.

    Args:
        checkpoints: folder of the step folders.
        raw: weights of that step instead of their moving average.
        raw_statistics: batch statistics of that step, also beside averaged weights.

    Raises:
        CheckpointError: there is no such step, or it is damaged.
        WeightsError: it is of another architecture.
    """
    params = "g_params" if raw else "ema_params"
    batch_stats = "g_batch_stats" if raw or raw_statistics else "ema_batch_stats"
    stored = restore_subtree(checkpoints, step, (params, batch_stats), (batch_stats,))
    arrays = {"params": stored[params], "batch_stats": stored.get(batch_stats, {})}
    return sampler.place(named_leaves(arrays), f"step {step} in {checkpoints}")


class TrainedModel:
    """A trained generator with its text encoder: captions and noise in, images out.

    Made by `TrainedModel.from_workdir`, or by `load_model` of xmcgan/sampling/model_folder.py.

    Attributes:
        config: of the run.
        sampler: networks and tokenizer.
        variables: `params` and `batch_stats` of the generator.
        origin: where they come from, as JSON values: step, weights ("ema" or "raw") and digest of
            the checkpoint, and the workdir or the name of the model folder.
        steps: of all checkpoints of the run, oldest first; empty for a model folder.
    """

    def __init__(self, config: ConfigDict, checkpoints: Path | None = None) -> None:
        self.config, self._checkpoints = config, checkpoints
        self.steps = committed_steps(checkpoints) if checkpoints else []
        text, tokenizer = build.build_text_encoder(config)
        self.sampler = Sampler(build.build_generator(config), text, tokenizer, make_mesh())
        self.variables: Any = None
        self.origin: dict[str, Any] = {}

    @classmethod
    def from_workdir(
        cls, workdir: Path, step: int | None = None, *, raw: bool = False
    ) -> "TrainedModel":
        """Load a generator of a training run; see `using`."""
        model = cls(read_config(workdir / "config.json"), workdir / "checkpoints")
        model.origin = {"workdir": str(workdir)}
        return model.using(step, raw=raw)

    @property
    def step(self) -> int:
        """Training steps of the weights."""
        return self.origin["step"]

    def using(self, step: int | None = None, *, raw: bool = False) -> "TrainedModel":
        """Return the model with other weights of the run; what is compiled is shared.

        Args:
            step: checkpoint to load; the newest if None.
            raw: weights of that step instead of their moving average.

        Raises:
            CheckpointError: there is no such step, or it is damaged.
            WeightsError: it is of another architecture.
        """
        if self._checkpoints is None:
            raise CheckpointError("a model folder has one set of weights, and no other checkpoints")
        if step is None:
            if not self.steps:
                raise CheckpointError(f"{self._checkpoints} has no checkpoint yet: train first")
            step = self.steps[-1]
        other = copy.copy(self)
        other.variables = load_generator(self.sampler, self._checkpoints, step, raw=raw)
        digest = checkpoint_digest(self._checkpoints, step)
        weights = "raw" if raw else "ema"
        other.origin = self.origin | {"step": step, "weights": weights, "checkpoint": digest}
        return other

    def __call__(
        self, captions: Sequence[str], z: Float[np.ndarray, "n z"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Sample one image per caption, from one row of noise each."""
        return self.sampler(self.variables, captions, z)
