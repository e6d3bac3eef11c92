"""The smallest things that runs need: a BERT, a data set, a config, a metric."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from xmcgan.config import load_config
from xmcgan.shapes.dataset import Shapes
from xmcgan.utils.statistics import Score

WIDTH, TOKENS = 8, 8
WORDS = ("a", "the", "red", "green", "blue", "circle", "square", "star", "on", "left", "right")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


class Brightness:
    """A metric that needs no network: the mean brightness of generated images."""

    paired = False

    def extract(self, images, captions):
        return {"values": images.mean(axis=(1, 2, 3), dtype=np.float64)}

    def compute(self, real, fake):
        return {"fake": Score(float(fake["values"].mean()))}


def write_bert(directory: Path, layers: int = 1) -> Path:
    """Write a BERT with random weights and its vocabulary."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": (2 * TOKENS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings.LayerNorm"]
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        names = ("self.query", "self.key", "self.value", "output.dense")
        dense = {f"{layer}.attention.{name}": (WIDTH, WIDTH) for name in names}
        dense[f"{layer}.intermediate.dense"] = (2 * WIDTH, WIDTH)
        dense[f"{layer}.output.dense"] = (WIDTH, 2 * WIDTH)
        for name, shape in dense.items():
            tensors |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        tensors |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    safetensors.numpy.save_file(arrays, directory / "model.safetensors")
    config = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": 2 * TOKENS,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return directory


def write_shapes(data_dir: Path) -> Path:
    """Draw the data set `shapes/tiny`: 40 images to train on, 10 held out."""
    Shapes.write(Shapes.read(num_train=40, num_validation=10), data_dir, "tiny")
    return data_dir


def tiny_config(root: Path) -> ConfigDict:
    """Return a config that compiles in seconds, on what the two functions above wrote to `root`."""
    config = load_config("shapes:quickstart")
    config.data.name = "shapes/tiny"
    config.data.data_dir = str(root / "data")
    config.text.weights = str(root / "bert")
    config.text.max_tokens = TOKENS
    config.batch_size = 8
    config.d_steps = 2
    config.generator.width = config.discriminator.width = 2
    config.generator.z_dim = 4
    config.num_train_steps = 6
    config.log_every_steps = 2
    config.sample_every_steps = 3
    config.checkpoint_every_steps = 3
    config.num_samples = 4
    config.clip = {"type": "clip_by_global_norm", "max_norm": 10.0}
    config.schedule = {"type": "cosine_decay_schedule", "decay_steps": 100}
    return config
