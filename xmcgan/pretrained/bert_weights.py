"""Read a BERT from `config.json` and safetensors."""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from xmcgan.errors import WeightsError
from xmcgan.pretrained.bert import Bert
from xmcgan.pretrained.tensors import (
    Tensors,
    check_tensors,
    positive_integer,
    positive_number,
    read_safetensors,
    to_dense,
    to_norm,
)
from xmcgan.pretrained.weights import find_file

# Heads on top of the encoder, and a constant table: not part of what encodes words.
_NOT_NEEDED = re.compile(r"(pooler|cls)\.|embeddings\.position_ids$")
# Names of the first releases, still found in bert-base-uncased.
_OLD_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))


def load_bert(path: Path, *, dtype: DTypeLike = jnp.float32) -> tuple[Bert, dict[str, Any]]:
    """Return a BERT and its parameters.

    Args:
        path: a .safetensors file, or the directory that holds it; `config.json` stands beside it.
        dtype: of the matrix products; see `Bert`.

    Returns:
        The module, and its parameters as float32 NumPy arrays.

    Raises:
        WeightsError: a file is missing, damaged or describes another kind of network, or tensors
            are missing, extra or of another shape.
    """
    file = find_file(path, (".safetensors",))
    module = _read_config(file.with_name("config.json"), dtype)
    tensors = _rename(read_safetensors(file))
    check_tensors(tensors, _expected_shapes(module), file)
    return module, _to_params(module, tensors)


def _read_config(file: Path, dtype: DTypeLike) -> Bert:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"no {file}: the sizes of a BERT stand there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{file} must hold a JSON object")
    _require(config, file, "model_type", ("bert",))
    _require(config, file, "hidden_act", ("gelu",))
    _require(config, file, "position_embedding_type", ("absolute",))

    def size(field: str) -> int:
        return positive_integer(config.get(field), file, field)

    module = Bert(
        vocab_size=size("vocab_size"),
        hidden_size=size("hidden_size"),
        num_layers=size("num_hidden_layers"),
        num_heads=size("num_attention_heads"),
        intermediate_size=size("intermediate_size"),
        max_positions=size("max_position_embeddings"),
        layer_norm_eps=positive_number(config.get("layer_norm_eps", 1e-12), file, "layer_norm_eps"),
        dtype=dtype,
    )
    if module.hidden_size % module.num_heads:
        raise WeightsError(f"{file}: hidden_size is not a multiple of num_attention_heads")
    return module


def _require(config: dict[str, Any], file: Path, field: str, accepted: tuple[str, ...]) -> None:
    value = config.get(field, accepted[0])
    if value not in accepted:
        raise WeightsError(
            f"{file}: {field} is {value!r}; only {' or '.join(map(repr, accepted))} can be read"
        )


def _rename(tensors: Tensors) -> Tensors:
    """Return the encoder's tensors under the names of a BERT without a prefix."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.")
        for old, new in _OLD_NAMES:
            name = name.replace(old, new)
        if not _NOT_NEEDED.match(name):
            renamed[name] = tensor
    return renamed


def _expected_shapes(module: Bert) -> dict[str, tuple[int, ...]]:
    width, inner = module.hidden_size, module.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (module.vocab_size, width),
        "embeddings.position_embeddings.weight": (module.max_positions, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "embeddings.token_type_embeddings.weight": (2, width),
    }
    for index in range(module.num_layers):
        layer = f"encoder.layer.{index}"
        for name, outputs, inputs in (
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ):
            shapes[f"{layer}.{name}.weight"] = (outputs, inputs)
            shapes[f"{layer}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}.{name}.weight"] = (width,)
            shapes[f"{layer}.{name}.bias"] = (width,)
    return shapes


def _to_params(module: Bert, tensors: Tensors) -> dict[str, Any]:
    token_type_0 = tensors["embeddings.token_type_embeddings.weight"][0]
    params: dict[str, Any] = {
        "word_embeddings": tensors["embeddings.word_embeddings.weight"],
        "position_embeddings": tensors["embeddings.position_embeddings.weight"] + token_type_0,
        "embeddings_norm": to_norm(tensors, "embeddings.LayerNorm"),
    }
    for index in range(module.num_layers):
        layer = f"encoder.layer.{index}"
        attention = f"{layer}.attention"
        parts = [f"{attention}.self.{part}" for part in ("query", "key", "value")]
        params[f"layer_{index}"] = {
            "query_key_value": to_dense(tensors, *parts),
            "attention_output": to_dense(tensors, f"{attention}.output.dense"),
            "attention_norm": to_norm(tensors, f"{attention}.output.LayerNorm"),
            "intermediate": to_dense(tensors, f"{layer}.intermediate.dense"),
            "output": to_dense(tensors, f"{layer}.output.dense"),
            "output_norm": to_norm(tensors, f"{layer}.output.LayerNorm"),
        }
    return params
