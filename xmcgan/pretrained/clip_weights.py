"""Read a CLIP from `config.json`, its weights and its tokenizer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmcgan.errors import WeightsError
from xmcgan.pretrained.clip import Clip, ImageTransformer, Sizes, TextTransformer
from xmcgan.pretrained.clip_tokenizer import ClipTokenizer
from xmcgan.pretrained.tensors import (
    Tensors,
    check_tensors,
    positive_integer,
    positive_number,
    read_safetensors,
    to_dense,
    to_norm,
)
from xmcgan.pretrained.torch_files import read_torch
from xmcgan.pretrained.weights import find_file, identify_file

# OpenAI's published files, by size in bytes: pytorch_model.bin and model.safetensors of
# clip-vit-base-patch32, and pytorch_model.bin of clip-vit-large-patch14-336.
_PUBLISHED = {
    605_247_071: "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    605_157_884: "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d",
    1_711_974_081: "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
}
# Constant tables, and the temperature of training: not part of what encodes.
_NOT_NEEDED = re.compile(r"logit_scale$|(text|vision)_model\.embeddings\.position_ids$")
# Published configs leave out what equals these, the defaults of the library that wrote them.
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_IMAGE_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
# Older configs carry this meaningless id; their captions end at the highest id.
_UNSET_END_TOKEN = 2
_DEFAULT_EPS = 1e-5  # of layer norms


def load_clip(path: Path, *, allow_unverified: bool) -> Clip:
    """Return a CLIP of any size.

    Args:
        path: a .safetensors file, or a PyTorch .bin file with the same tensors, or the directory
            that holds it; safetensors are preferred. `config.json` stands beside it, and
            `tokenizer.json` or `vocab.json` with `merges.txt`.
        allow_unverified: accept weights that are not known to be a published file.

    Raises:
        WeightsError: a file is missing, damaged or not verified, or describes another kind of
            network, or tensors are missing, extra or of another shape.
    """
    file = _find_weights(path)
    identity = identify_file(
        file,
        expected_sha256=_PUBLISHED.get(file.stat().st_size),
        allow_unverified=allow_unverified,
    )
    image, text = _read_config(file.with_name("config.json"))
    tokenizer = ClipTokenizer(file.parent, text.max_positions)
    if tokenizer.vocab_size > text.vocab_size:
        raise WeightsError(
            f"the tokenizer in {file.parent} has {tokenizer.vocab_size} tokens and the network "
            f"{text.vocab_size}: they do not belong together"
        )
    found = read_torch(file) if file.suffix == ".bin" else read_safetensors(file)
    tensors = {name: found[name] for name in found if not _NOT_NEEDED.match(name)}
    check_tensors(tensors, _expected_shapes(image, text), file)
    params = {"image": _image_params(image, tensors), "text": _text_params(text, tensors)}
    return Clip(image, text, params, tokenizer, identity.sha256, identity.verified)


def _find_weights(path: Path) -> Path:
    if path.is_dir() and any(path.glob("*.safetensors")):
        return find_file(path, (".safetensors",))
    return find_file(path, (".safetensors", ".bin"))


def _read_config(file: Path) -> tuple[ImageTransformer, TextTransformer]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"no {file}: the sizes of a CLIP stand there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(config, dict) or config.get("model_type", "clip") != "clip":
        raise WeightsError(f"{file} does not describe a CLIP (its model_type must be 'clip')")
    image = _section(config, file, "vision_config", _IMAGE_DEFAULTS)
    text = _section(config, file, "text_config", _TEXT_DEFAULTS)
    embed_dim = positive_integer(config.get("projection_dim", 512), file, "projection_dim")
    end_token = text["eos_token_id"]
    return (
        ImageTransformer(_sizes(image), image["image_size"], image["patch_size"], embed_dim),
        TextTransformer(
            _sizes(text),
            text["vocab_size"],
            text["max_position_embeddings"],
            embed_dim,
            None if end_token == _UNSET_END_TOKEN else end_token,
        ),
    )


def _section(
    config: dict[str, Any], file: Path, name: str, defaults: dict[str, int]
) -> dict[str, Any]:
    """Return a part of the config, checked; an older spelling of it, `*_dict`, goes first."""
    section: dict[str, Any] = dict(defaults)
    for spelling in (name, f"{name}_dict"):
        part = config.get(spelling) or {}
        if not isinstance(part, dict):
            raise WeightsError(f"{file}: {spelling} must be a JSON object")
        section |= part
    for field in defaults:
        positive_integer(section[field], file, f"{name}.{field}")
    activation = section.get("hidden_act", "quick_gelu")
    if activation != "quick_gelu":
        raise WeightsError(f"{file}: {name}.hidden_act is {activation!r}, not 'quick_gelu'")
    if section["hidden_size"] % section["num_attention_heads"]:
        raise WeightsError(f"{file}: {name}.hidden_size is not a multiple of num_attention_heads")
    eps = section.get("layer_norm_eps", _DEFAULT_EPS)
    section["layer_norm_eps"] = positive_number(eps, file, f"{name}.layer_norm_eps")
    return section


def _sizes(section: dict[str, Any]) -> Sizes:
    return Sizes(
        width=section["hidden_size"],
        num_layers=section["num_hidden_layers"],
        num_heads=section["num_attention_heads"],
        mlp_width=section["intermediate_size"],
        layer_norm_eps=section["layer_norm_eps"],
    )


def _expected_shapes(image: ImageTransformer, text: TextTransformer) -> dict[str, tuple[int, ...]]:
    width, patch = image.sizes.width, image.patch_size
    num_patches = (image.image_size // patch) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (num_patches + 1, width),
        "visual_projection.weight": (image.embed_dim, width),
    }
    # The file's own spelling of "layernorm".
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= _pair(f"vision_model.{norm}", (width,))
    shapes |= _layer_shapes("vision_model", image.sizes)
    width = text.sizes.width
    shapes |= {
        "text_model.embeddings.token_embedding.weight": (text.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (text.max_positions, width),
        "text_projection.weight": (text.embed_dim, width),
    }
    shapes |= _pair("text_model.final_layer_norm", (width,))
    return shapes | _layer_shapes("text_model", text.sizes)


def _layer_shapes(tower: str, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    width, inner = sizes.width, sizes.mlp_width
    shapes: dict[str, tuple[int, ...]] = {}
    for _, layer in _layers(tower, sizes):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _pair(f"{layer}.self_attn.{part}", (width, width))
        shapes |= _pair(f"{layer}.mlp.fc1", (inner, width))
        shapes |= _pair(f"{layer}.mlp.fc2", (width, inner))
        shapes |= _pair(f"{layer}.layer_norm1", (width,))
        shapes |= _pair(f"{layer}.layer_norm2", (width,))
    return shapes


def _layers(tower: str, sizes: Sizes) -> Iterator[tuple[str, str]]:
    """Yield our name of each layer, and the file's."""
    for index in range(sizes.num_layers):
        yield f"layer_{index}", f"{tower}.encoder.layers.{index}"


def _pair(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _image_params(image: ImageTransformer, tensors: Tensors) -> dict[str, Any]:
    embeddings = "vision_model.embeddings"
    patches = tensors[f"{embeddings}.patch_embedding.weight"].transpose(2, 3, 1, 0)
    return {
        "patches": {"kernel": np.ascontiguousarray(patches)},
        "class_embedding": tensors[f"{embeddings}.class_embedding"],
        "position_embeddings": tensors[f"{embeddings}.position_embedding.weight"],
        "pre_norm": to_norm(tensors, "vision_model.pre_layrnorm"),
        "post_norm": to_norm(tensors, "vision_model.post_layernorm"),
        "projection": _projection(tensors, "visual_projection"),
        **_layer_params("vision_model", image.sizes, tensors),
    }


def _text_params(text: TextTransformer, tensors: Tensors) -> dict[str, Any]:
    embeddings = "text_model.embeddings"
    return {
        "word_embeddings": tensors[f"{embeddings}.token_embedding.weight"],
        "position_embeddings": tensors[f"{embeddings}.position_embedding.weight"],
        "final_norm": to_norm(tensors, "text_model.final_layer_norm"),
        "projection": _projection(tensors, "text_projection"),
        **_layer_params("text_model", text.sizes, tensors),
    }


def _layer_params(tower: str, sizes: Sizes, tensors: Tensors) -> dict[str, Any]:
    params = {}
    for ours, theirs in _layers(tower, sizes):
        attention = f"{theirs}.self_attn"
        params[ours] = {
            "attention_norm": to_norm(tensors, f"{theirs}.layer_norm1"),
            "query_key_value": to_dense(tensors, *(f"{attention}.{p}_proj" for p in "qkv")),
            "attention_output": to_dense(tensors, f"{attention}.out_proj"),
            "mlp_norm": to_norm(tensors, f"{theirs}.layer_norm2"),
            "intermediate": to_dense(tensors, f"{theirs}.mlp.fc1"),
            "output": to_dense(tensors, f"{theirs}.mlp.fc2"),
        }
    return params


def _projection(tensors: Tensors, name: str) -> dict[str, np.ndarray]:
    return {"kernel": np.ascontiguousarray(tensors[f"{name}.weight"].T)}
