"""From captions and noise to images, the same way in training, on the command line and later."""

import copy
import json
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

from xmcgan import build
from xmcgan.config import fingerprint, read_config
from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import CheckpointError, UserError, listed
from xmcgan.models.generator import Generator
from xmcgan.pretrained.encoders import TextEncoder
from xmcgan.training.checkpoint import (
    checkpoint_digest,
    committed_steps,
    read_record,
    restore_subtree,
)
from xmcgan.utils.files import write_text
from xmcgan.utils.mesh import fetch, make_mesh, put, replicated, sample_sharding
from xmcgan.utils.provenance import fingerprint_differences

# Fields of a config that decide which arrays a generator has.
_ARCHITECTURE = (
    "image_size",
    "generator.width",
    "generator.z_dim",
    "generator.sentence_in_first_map",
    "generator.whiten_sentence",
)


def to_uint8(images: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
    """Round images in [0, 1] to the nearest of 256 levels."""
    return jnp.floor(jnp.clip(images, 0, 1) * 255 + 0.5).astype(jnp.uint8)


def draw_noise(
    seed: int, num: int, z_dim: int, truncation: float | None = None
) -> Float[np.ndarray, "n z"]:
    """Draw noise, each row from its own key: row i is the same however many are drawn.

    `truncation` is the truncation trick of BigGAN (Brock et al., ICLR 2019, section 3.1): values
    beyond a threshold are drawn anew, which is a normal distribution cut off there. It is drawn
    by its quantiles, so that a lower threshold moves the noise of a seed towards 0, smoothly.

    Args:
        seed: any whole number from 0.
        num: rows.
        z_dim: size of a row.
        truncation: the largest magnitude of a value, at least 0; None is the whole distribution.

    Raises:
        UserError: the threshold is below 0 or not a finite number.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num))
    if truncation is None:
        return np.asarray(jax.vmap(lambda key: jax.random.normal(key, (z_dim,)))(keys))
    if not 0 <= truncation < np.inf:
        raise UserError(f"truncation is {truncation}: it must be a number from 0")
    cut = partial(jax.random.truncated_normal, lower=-truncation, upper=truncation, shape=(z_dim,))
    return np.asarray(jax.vmap(cut)(keys))


def sample_images(
    generator: Generator,
    text: TextEncoder,
    variables: Any,
    text_params: Any,
    token_ids: Int[Array, "b t"],
    word_mask: Bool[Array, "b t"],
    z: Float[Array, "b z"],
) -> UInt8[Array, "b h w 3"]:
    """Draw images from tokenized captions with a generator in evaluation mode.

    Args:
        generator: the network.
        text: the text encoder that it was trained with.
        variables: `params` and `batch_stats` of the generator.
        text_params: of the text encoder.
        token_ids: of the captions.
        word_mask: True where a token stands.
        z: noise.
    """
    words, sentence = text.apply(text_params, token_ids, word_mask)
    images: Any = generator.apply(variables, words, word_mask, sentence, z, train=False)
    return to_uint8(images)


class Sampler:
    """Draw images from captions with a generator in evaluation mode.

    Args:
        generator: the network.
        text: the text encoder that it was trained with.
        tokenizer: the text encoder's.
        mesh: devices that share the work.
        batch_size: images drawn at once, rounded up to a multiple of the devices.
        text_params: those of the text encoder where they are on the devices already.
    """

    def __init__(
        self,
        generator: Generator,
        text: TextEncoder,
        tokenizer: Tokenizer,
        mesh: Mesh,
        batch_size: int = 16,
        text_params: Any = None,
    ) -> None:
        self._tokenizer, self._mesh = tokenizer, mesh
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        if text_params is None:
            text_params = put(text.params, replicated(mesh))
        self._text_params = text_params

        self._sample = jax.jit(partial(sample_images, generator, text))

    def __call__(
        self, variables: Any, captions: Sequence[str], z: Float[np.ndarray, "n z"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Draw one image a caption; the last batch is padded, so any number will do.

        Args:
            variables: `params` and `batch_stats` of the generator.
            captions: n of them.
            z: noise, one row a caption.

        Returns:
            The images.
        """
        token_ids, mask = self._tokenizer(captions)
        images = []
        for start in range(0, len(captions), self._batch_size):
            parts = [x[start : start + self._batch_size] for x in (token_ids, mask, z)]
            missing = self._batch_size - len(parts[0])
            padded = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) for x in parts]
            inputs = put(padded, sample_sharding(self._mesh))
            images.append(fetch(self._sample(variables, self._text_params, *inputs)))
        return np.concatenate(images)[: len(captions)]


def load_generator(
    config: ConfigDict, checkpoints: Path, step: int, mesh: Mesh, *, raw: bool = False
) -> Any:
    """Read the generator of a checkpoint and place it on a mesh.

    Args:
        config: of the generator that the weights are for.
        checkpoints: the folder of the step folders.
        step: which.
        mesh: devices; each gets a copy.
        raw: the weights of that step instead of their moving average.

    Returns:
        `params` and `batch_stats`, the variables that `Sampler` takes.

    Raises:
        CheckpointError: there is no such step, it is damaged, or of another architecture.
    """
    keys = ("g_params", "g_batch_stats") if raw else ("ema_params", "ema_batch_stats")
    stored = restore_subtree(checkpoints, step, keys)
    _check_architecture(config, checkpoints, step)
    variables = {"params": stored[keys[0]], "batch_stats": stored[keys[1]]}
    return put(variables, replicated(mesh))


def _check_architecture(config: ConfigDict, checkpoints: Path, step: int) -> None:
    """Refuse weights of a network of other sizes, such as checkpoints of another workdir."""
    stored, wanted = read_record(checkpoints, step).fingerprint, fingerprint(config)
    there = [field for field in _ARCHITECTURE if field in stored]  # older ones lack newer fields
    differences = fingerprint_differences(
        {field: stored[field] for field in there}, {field: wanted[field] for field in there}
    )
    if differences:
        raise CheckpointError(
            f"step {step} in {checkpoints} is of another architecture than config.json beside it "
            f"(field: checkpoint -> config.json):{listed(differences)}"
        )


class TrainedModel:
    """A trained generator with its text encoder: captions and noise in, images out.

    Use `TrainedModel.from_workdir`, or `load_model` of xmcgan/sampling/model_folder.py.

    Args:
        config: the run's.
        variables: `params` and `batch_stats` of the generator, on the devices of `make_mesh()`.
        origin: where they come from, as JSON values: step, weights ("ema" or "raw") and digest of
            the checkpoint, and the workdir or the name of the model folder.
        checkpoints: the folder with the other checkpoints of the run, if it is at hand.

    Attributes:
        config: the run's.
        origin: see Args.
        steps: of all checkpoints, oldest first; empty for a model folder.
        step: of the checkpoint.
        variables: `params` and `batch_stats` of the generator.
        generator: the network.
        text: the text encoder.
        text_params: its parameters, on the devices.
        tokenizer: its tokenizer.
    """

    def __init__(
        self,
        config: ConfigDict,
        variables: Any,
        origin: dict[str, Any],
        checkpoints: Path | None = None,
    ) -> None:
        self.config, self.variables, self.origin = config, variables, origin
        self._checkpoints = checkpoints
        self.steps = committed_steps(checkpoints) if checkpoints else []
        self.generator = build.build_generator(config)
        self.text, self.tokenizer = build.build_text_encoder(config)
        mesh = make_mesh()
        self.text_params = put(self.text.params, replicated(mesh))
        self._sampler = Sampler(
            self.generator, self.text, self.tokenizer, mesh, text_params=self.text_params
        )

    @classmethod
    def from_workdir(
        cls, workdir: Path, step: int | None = None, *, raw: bool = False
    ) -> "TrainedModel":
        """Load the generator of a training run.

        Args:
            workdir: of the run.
            step: checkpoint to load; the newest if None.
            raw: the weights of that step instead of their moving average.

        Raises:
            CheckpointError: there is no such step, it is damaged, or of another architecture.
        """
        config = read_config(workdir / "config.json")
        checkpoints = workdir / "checkpoints"
        variables, origin = _load_checkpoint(config, checkpoints, step, raw)
        return cls(config, variables, {"workdir": str(workdir), **origin}, checkpoints)

    @property
    def step(self) -> int:
        """Return how many steps the weights were trained for."""
        return self.origin["step"]

    def using(self, step: int | None = None, *, raw: bool = False) -> "TrainedModel":
        """Return the model with other weights of the run; what is compiled is shared.

        Args:
            step: checkpoint to load; the newest if None.
            raw: the weights of that step instead of their moving average.

        Raises:
            CheckpointError: there is no such step, or it is damaged.
        """
        if self._checkpoints is None:
            raise CheckpointError("a model folder has one set of weights, and no other checkpoints")
        other = copy.copy(self)
        other.variables, origin = _load_checkpoint(self.config, self._checkpoints, step, raw)
        other.origin = self.origin | origin
        return other

    def __call__(
        self, captions: Sequence[str], z: Float[np.ndarray, "n z"]
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Draw one image per caption, from one row of noise each."""
        return self._sampler(self.variables, captions, z)


def _load_checkpoint(
    config: ConfigDict, checkpoints: Path, step: int | None, raw: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the generator's variables of a step, and the origin of `TrainedModel`."""
    if step is None:
        steps = committed_steps(checkpoints)
        if not steps:
            raise CheckpointError(f"{checkpoints} has no checkpoint yet: train first")
        step = steps[-1]
    variables = load_generator(config, checkpoints, step, make_mesh(), raw=raw)
    digest = checkpoint_digest(checkpoints, step)
    return variables, {"step": step, "weights": "raw" if raw else "ema", "checkpoint": digest}


def write_manifest(path: Path, entries: dict[str, Any]) -> None:
    """Write as JSON how samples were made."""
    write_text(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
