"""The smallest CLIP: weights by a NumPy recipe, config and tokenizer as its publishers write them.

Every tensor is drawn in the order of `shapes`, from one generator, so that another program can make
the same network without the file.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

WIDTH, LAYERS, HEADS, INNER, EMBED = 32, 2, 4, 48, 16
PATCH, IMAGE, POSITIONS = 8, 32, 77
START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = [
    *("t h", "th e</w>", "r e", "re d</w>", "i n", "in g</w>", "a n", "p h", "ph o", "pho t"),
    *("phot o</w>", "c a", "ca t</w>", "d o", "do g</w>", "1 2</w>", "s t", "' s</w>", "c a</w>"),
    "Ã ©</w>",  # the two bytes of é
]


def byte_letters() -> list[str]:
    """Return the letters that byte-level BPE writes for bytes 0..255 (Radford et al., 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return [letters[byte] for byte in [*shown, *hidden]]


def vocabulary() -> dict[str, int]:
    """Return tokens and ids: bytes, bytes that end a word, merges, start and end, as CLIP's."""
    letters = byte_letters()
    merged = [merge.replace(" ", "") for merge in MERGES]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    return {token: index for index, token in enumerate(tokens)}


VOCABULARY = vocabulary()


def config(**text: Any) -> dict[str, Any]:
    """Return the config; keywords change its text part."""
    shared = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    ends = {"bos_token_id": VOCABULARY[START], "eos_token_id": VOCABULARY[END]}
    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": POSITIONS}
    return {
        "model_type": "clip",
        "projection_dim": EMBED,
        "text_config": {**shared, **sizes, **ends, **text},
        "vision_config": {**shared, "image_size": IMAGE, "patch_size": PATCH},
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the file, in the order in which they are drawn."""
    found: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (len(VOCABULARY), WIDTH),
        "text_model.embeddings.position_embedding.weight": (POSITIONS, WIDTH),
        "vision_model.embeddings.class_embedding": (WIDTH,),
        "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        "vision_model.embeddings.position_embedding.weight": ((IMAGE // PATCH) ** 2 + 1, WIDTH),
        "text_projection.weight": (EMBED, WIDTH),
        "visual_projection.weight": (EMBED, WIDTH),
    }
    norms = ["text_model.final_layer_norm"]
    norms += ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for tower in ("text_model", "vision_model"):
        for index in range(LAYERS):
            layer = f"{tower}.encoder.layers.{index}"
            dense = {f"self_attn.{part}_proj": (WIDTH, WIDTH) for part in ("q", "k", "v", "out")}
            dense |= {"mlp.fc1": (INNER, WIDTH), "mlp.fc2": (WIDTH, INNER)}
            for name, shape in dense.items():
                found[f"{layer}.{name}.weight"] = shape
                found[f"{layer}.{name}.bias"] = shape[:1]
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    for norm in norms:
        found |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    return found


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights: matrices that keep the scale, norms near one, and biases."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, shape in shapes().items():
        values = rng.normal(size=shape)
        if len(shape) == 1 and "embedding" not in name:
            values = 0.3 * values + float("norm" in name and name.endswith(".weight"))
        elif "embedding.weight" not in name or "patch" in name:
            values = 1.5 * values * np.prod(shape[1:]) ** -0.5
        drawn[name] = values.astype(np.float32)
    return drawn


def images(num: int, size: int = IMAGE, seed: int = 1) -> np.ndarray:
    """Return random images in [0, 1]."""
    return np.random.default_rng(seed).random((num, size, size, 3)).astype(np.float32)


def write_config(directory: Path, content: dict[str, Any]) -> None:
    """Write `config.json`."""
    (directory / "config.json").write_text(json.dumps(content))


def write_vocabulary(directory: Path) -> None:
    """Write `vocab.json` and `merges.txt`."""
    (directory / "vocab.json").write_text(json.dumps(VOCABULARY))
    lines = ["#version: 0.2", *MERGES]
    (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_clip(directory: Path) -> Path:
    """Write weights, config and tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    fixed = {"logit_scale": np.array(2.6592, np.float32)}
    fixed["text_model.embeddings.position_ids"] = np.arange(POSITIONS)[None]
    safetensors.numpy.save_file(tensors() | fixed, directory / "model.safetensors")
    write_config(directory, config())
    write_vocabulary(directory)
    return directory
