"""Captions to token ids: the byte-level BPE tokenizer of CLIP."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from xmcgan.errors import WeightsError

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
# Contractions, words, single digits, and runs of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """Turn captions into token ids, from the start token to the end token.

    Lower case; white space only parts words. Deviation: the original code also mends
    broken Unicode (ftfy) and HTML entities before, which clean captions do not need.

    Args:
        directory: holds `tokenizer.json`, or else `vocab.json` and `merges.txt`.
        max_tokens: length of every row, special tokens included; 77 for the published networks.

    Raises:
        WeightsError: the files are missing or damaged, or are not a CLIP tokenizer's.
    """

    def __init__(self, directory: Path, max_tokens: int):
        self._tokenizer = _read(directory)
        end = self._tokenizer.token_to_id(END_TOKEN)
        start = self._tokenizer.token_to_id(START_TOKEN)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if end is None or start is None or self._tokenizer.encode("").ids != [start, end]:
            raise WeightsError(
                f"the tokenizer in {directory} is not CLIP's: it does not put captions between "
                f"{START_TOKEN} and {END_TOKEN}"
            )
        # A caption that spells out "<|endoftext|>" must not end there.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(length=max_tokens, pad_id=end, pad_token=END_TOKEN)
        self.max_tokens = max_tokens
        self.vocab_size = self._tokenizer.get_vocab_size()

    def __call__(self, captions: Sequence[str]) -> Int[np.ndarray, "b t"]:
        """Return int32 token ids; a caption that is too long is cut and keeps its end token."""
        encoded = self._tokenizer.encode_batch(list(captions))
        ids = np.array([caption.ids for caption in encoded], dtype=np.int32)
        return ids.reshape(len(encoded), self.max_tokens)


def _read(directory: Path) -> Tokenizer:
    whole = directory / "tokenizer.json"
    vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
    if whole.is_file():
        files, build = str(whole), lambda: Tokenizer.from_file(str(whole))
    elif vocabulary.is_file() and merges.is_file():
        files, build = f"{vocabulary} and {merges}", lambda: _build(vocabulary, merges)
    else:
        raise WeightsError(
            f"no tokenizer in {directory}: put tokenizer.json, or vocab.json and merges.txt, "
            "beside CLIP's weights"
        )
    try:
        return build()
    except WeightsError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise WeightsError(f"{files}: not a readable tokenizer: {error}") from error


def _build(vocabulary: Path, merges: Path) -> Tokenizer:
    vocab = json.loads(vocabulary.read_text(encoding="utf-8"))
    missing = [token for token in (START_TOKEN, END_TOKEN) if token not in vocab]
    if missing:
        raise WeightsError(f"{vocabulary} lacks {' and '.join(missing)}: it is not CLIP's")
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
    bpe = models.BPE(
        vocab=vocab,
        merges=pairs,
        unk_token=END_TOKEN,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.add_special_tokens(
        [tokenizers.AddedToken(token, special=True) for token in (START_TOKEN, END_TOKEN)]
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (END_TOKEN, vocab[END_TOKEN]), (START_TOKEN, vocab[START_TOKEN]), trim_offsets=False
    )
    return tokenizer


def _pair(line: str) -> tuple[str, str]:
    left, right = line.split(" ")
    return left, right
