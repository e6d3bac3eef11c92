"""Captions to token ids: the uncased WordPiece tokenizer of BERT."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import BertWordPieceTokenizer

from xmcgan.errors import DataError

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Tokenizer:
    """BERT's uncased WordPiece tokenizer; can be pickled and used from several threads.

    Lower case, accents stripped, [CLS] first and [SEP] last as in Devlin et al., NAACL 2019.
    `vocab_file` has a token per line; `max_tokens`, at least 3, is the length of every row.
    """

    def __init__(self, vocab_file: Path | str, max_tokens: int):
        try:
            self._tokenizer = BertWordPieceTokenizer(str(vocab_file), lowercase=True)
            if missing := [t for t in _SPECIAL_TOKENS if self._tokenizer.token_to_id(t) is None]:
                raise ValueError(f"it lacks {', '.join(missing)}")
            if self._tokenizer.token_to_id("[PAD]") != 0:
                raise ValueError("[PAD] is not its first line")
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{vocab_file} is not a BERT vocabulary: {error}") from error
        # A caption that spells out "[SEP]" must not end its own sentence.
        self._tokenizer._tokenizer.encode_special_tokens = True
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(length=max_tokens)
        self.max_tokens = max_tokens
        self.vocab_size = self._tokenizer.get_vocab_size()

    def __call__(
        self, captions: Sequence[str]
    ) -> tuple[Int[np.ndarray, "b t"], Bool[np.ndarray, "b t"]]:
        """Return token ids (int32, [PAD] = 0 after the sentence) and the mask of real tokens.

        [CLS] and [SEP] are real tokens; a caption that is too long keeps [SEP] as its last one.
        """
        if len(captions) == 1:  # without the threads of a batch
            encoded = [self._tokenizer.encode(captions[0])]
        else:
            encoded = self._tokenizer.encode_batch(list(captions))
        shape = (len(encoded), self.max_tokens)
        token_ids = np.array([e.ids for e in encoded], dtype=np.int32).reshape(shape)
        word_mask = np.array([e.attention_mask for e in encoded], dtype=bool).reshape(shape)
        return token_ids, word_mask

    def is_cut(self, caption: str) -> bool:
        """Return whether a caption is too long to be read to its end."""
        return bool(self._tokenizer.encode(caption).overflowing)

    def name_words(self, caption: str) -> tuple[list[str], Int[np.ndarray, "n"]]:
        """Return the words of a caption, and for each of its n real tokens the place of its word.

        Words are as written, cut as when tokenized; [CLS] and [SEP] are words of their own.
        """
        encoded = self._tokenizer.encode(caption)
        words: list[str] = []
        index, previous = [], None
        for position in range(sum(encoded.attention_mask)):
            word, (start, end) = encoded.word_ids[position], encoded.offsets[position]
            if word is None:
                words.append(encoded.tokens[position])
            elif word != previous:
                words.append(caption[start:end])
            else:
                words[-1] += caption[start:end]
            index.append(len(words) - 1)
            previous = word
        return words, np.array(index, dtype=np.int32)

    def save(self, path: Path) -> None:
        """Write the library's `tokenizer.json`; its reader must set `encode_special_tokens`."""
        self._tokenizer.save(str(path))
