"""Small data sets and a small vocabulary, made on the spot."""

from pathlib import Path

import pytest
from data_samples import NUM_TRAIN, NUM_VALIDATION

from xmcgan.data.tokenizer import Tokenizer
from xmcgan.shapes.dataset import Shapes
from xmcgan.shapes.scene import BACKGROUNDS, COLORS, SHAPES


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> Path:
    """Return a data directory with `shapes/tiny`; read only."""
    data_dir = tmp_path_factory.mktemp("data")
    contents = Shapes.read(num_train=NUM_TRAIN, num_validation=NUM_VALIDATION)
    assert Shapes.write(contents, data_dir, "tiny")
    return data_dir


@pytest.fixture(scope="session")
def vocab_file(tmp_path_factory) -> Path:
    """Return a BERT vocabulary of the words of `shapes` and all letters."""
    words = {*SHAPES, *COLORS, *" ".join(BACKGROUNDS).split(), "small", "large", "the", "is"}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [f"##{c}" for c in letters]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join([*special, *letters, *pieces, *sorted(words), ".", ","]) + "\n")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocab_file) -> Tokenizer:
    """Return a tokenizer of 12 tokens."""
    return Tokenizer(vocab_file, max_tokens=12)
