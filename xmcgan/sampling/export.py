"""The sampler as files that run without this package.

OUT/sampler.jax_export  the program: weights, token ids, word mask and noise to images, as StableHLO
OUT/weights.npz         its arrays: of the generator and of the frozen text encoder
OUT/tokenizer.json      captions to token ids, for the library `tokenizers`
OUT/manifest.json       what it was made from, its inputs, and a digest of each file

The bytes of all files depend on the checkpoint, on this package and on its libraries only.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, Int, UInt8

import xmcgan
from xmcgan.errors import UserError
from xmcgan.sampling.sampler import TrainedModel, sample_images
from xmcgan.training.checkpoint import named_leaves
from xmcgan.utils.files import atomic_file, write_text
from xmcgan.utils.mesh import fetch
from xmcgan.utils.provenance import commit

PROGRAM, WEIGHTS, TOKENIZER = "sampler.jax_export", "weights.npz", "tokenizer.json"
PLATFORMS = ("cpu", "cuda", "tpu")
_FORMAT = 1


def export_model(model: TrainedModel, out: Path, *, batch_size: int | None = None) -> list[Path]:
    """Write a trained generator as files of their own, which are returned.

    Args:
        batch_size: captions per call; any number if None.

    Raises:
        UserError: a batch size below 1, or a folder that cannot be written.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}: at least 1")
    program, weights = _lower(model, batch_size)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_file(out / PROGRAM) as file:
            file.write(program.serialize())
        with atomic_file(out / WEIGHTS) as file:
            np.savez(file, **weights)  # pyright: ignore[reportArgumentType]
        model.sampler.tokenizer.save(out / TOKENIZER)
        manifest = _manifest(out, model, batch_size)
        write_text(out / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to --out {out}: {error.strerror}") from None
    return [out / name for name in (PROGRAM, WEIGHTS, TOKENIZER, "manifest.json")]


def _lower(
    model: TrainedModel, batch_size: int | None
) -> tuple[export.Exported, dict[str, np.ndarray]]:
    """Return the program for all platforms, and the arrays that it takes by name."""
    text, generator = model.sampler.text, model.sampler.generator
    tree = {"generator": model.variables, "text": text.params}
    structure = jax.tree.structure(tree)
    weights = {name: np.asarray(fetch(array)) for name, array in named_leaves(tree).items()}

    # Weights are an argument: the compiler would copy constants, 100 MB instead of 0.1.
    def sample(
        weights: dict[str, Array],
        token_ids: Int[Array, "b t"],
        word_mask: Bool[Array, "b t"],
        z: Float[Array, "b z"],
    ) -> UInt8[Array, "b h w 3"]:
        # By `names`: jax.jit gives dictionaries in the order of their sorted keys.
        variables = jax.tree.unflatten(structure, [weights[name] for name in names])
        generator_variables, text_params = variables["generator"], variables["text"]
        return sample_images(
            generator, text, generator_variables, text_params, token_ids, word_mask, z
        )

    names = list(weights)
    size = export.symbolic_shape("b")[0] if batch_size is None else batch_size
    tokens = (size, model.config.text.max_tokens)
    shapes = (
        {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()},
        jax.ShapeDtypeStruct(tokens, jnp.int32),
        jax.ShapeDtypeStruct(tokens, jnp.bool_),
        jax.ShapeDtypeStruct((size, generator.z_dim), jnp.float32),
    )
    with _bare_locations():
        return export.export(jax.jit(sample), platforms=PLATFORMS)(*shapes), weights


@contextlib.contextmanager
def _bare_locations() -> Iterator[None]:
    """Name source files in programs without their folders, and without the callers."""
    wanted = {
        "jax_hlo_source_file_canonicalization_regex": ".*/",
        "jax_include_full_tracebacks_in_locations": False,
    }
    before = {name: getattr(jax.config, name) for name in wanted}
    try:
        for name, value in wanted.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def _manifest(out: Path, model: TrainedModel, batch_size: int | None) -> dict[str, Any]:
    config = model.config
    origin = {name: value for name, value in model.origin.items() if name != "workdir"}
    return {
        "format": _FORMAT,
        "batch_size": batch_size,
        "max_tokens": config.text.max_tokens,
        "z_dim": model.sampler.generator.z_dim,
        "image_size": model.sampler.generator.image_size,
        "arguments": ["weights by name", "token_ids int32", "word_mask bool", "z float32"],
        "result": "uint8 (b, h, w, 3)",
        "platforms": list(PLATFORMS),
        **origin,
        "package_version": xmcgan.__version__,
        "commit": commit(),
        "jax_version": jax.__version__,
        "files": {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest()
            for name in (PROGRAM, WEIGHTS, TOKENIZER)
        },
        "config": json.loads(config.to_json()),
    }
