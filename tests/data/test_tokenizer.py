"""WordPiece ids and masks, against golden values and by explicit rules."""

import pickle

import numpy as np
import pytest

from xmcgan.data.tokenizer import Tokenizer
from xmcgan.errors import DataError, WeightsError
from xmcgan.pretrained.weights import resolve


@pytest.fixture(scope="module")
def minilm_vocab():
    try:
        return resolve("minilm") / "vocab.txt"
    except WeightsError:
        pytest.skip("the MiniLM weights are not fetched")


def test_ids_and_mask_equal_the_golden_ones(minilm_vocab, shared_dir):
    golden = np.load(shared_dir / "golden" / "minilm_17.npz", allow_pickle=False)
    token_ids, word_mask = Tokenizer(minilm_vocab, 17)(golden["captions"].tolist())
    np.testing.assert_array_equal(token_ids, golden["input_ids"])
    np.testing.assert_array_equal(word_mask, golden["attention_mask"].astype(bool))
    assert token_ids.dtype == np.int32
    assert word_mask.dtype == bool


def names(tokenizer, ids):
    return [tokenizer._tokenizer.id_to_token(int(i)) for i in ids]


def test_short_caption_is_padded_with_id_zero(tokenizer):
    token_ids, word_mask = tokenizer(["the red circle"])
    assert names(tokenizer, token_ids[0, :5]) == ["[CLS]", "the", "red", "circle", "[SEP]"]
    assert (token_ids[0, 5:] == 0).all()
    assert word_mask[0].tolist() == [True] * 5 + [False] * 7


@pytest.mark.parametrize("num_words", [9, 10, 11, 40])
def test_separator_stays_last_at_below_and_above_the_limit(tokenizer, num_words):
    token_ids, word_mask = tokenizer(["red " * num_words])
    length = min(num_words, 10) + 2
    assert names(tokenizer, token_ids[0, :length])[-1] == "[SEP]"
    assert word_mask[0].sum() == length
    assert tokenizer.is_cut("red " * num_words) == (num_words > 10)


def test_empty_caption_is_two_special_tokens(tokenizer):
    token_ids, word_mask = tokenizer(["", " \t\n"])
    assert word_mask.sum(axis=1).tolist() == [2, 2]
    assert names(tokenizer, token_ids[1, :2]) == ["[CLS]", "[SEP]"]


def test_no_captions_give_empty_arrays(tokenizer):
    token_ids, word_mask = tokenizer([])
    assert token_ids.shape == word_mask.shape == (0, 12)


def test_case_and_accents_are_folded(tokenizer):
    upper, lower = tokenizer(["THE RÉD circle", "the red circle"])[0]
    np.testing.assert_array_equal(upper, lower)


@pytest.mark.parametrize(
    "caption", ["☕ \U0001f600", "red\0circle", "日本", "\u202ered", "a" * 5000]
)
def test_odd_captions_give_valid_ids(tokenizer, caption):
    token_ids, word_mask = tokenizer([caption])
    assert ((token_ids >= 0) & (token_ids < tokenizer.vocab_size)).all()
    assert word_mask[0, :2].all()


def test_special_tokens_written_out_in_a_caption_are_plain_text(tokenizer):
    token_ids, _ = tokenizer(["red [SEP]"])
    assert names(tokenizer, token_ids[0]).count("[SEP]") == 1


@pytest.mark.parametrize(
    ("caption", "words", "index"),
    [
        ("a Réd star.", ["a", "Réd", "star", "."], [1, 2, 3, 4]),
        ("red starry", ["red", "starry"], [1, 2, 2, 2]),  # star ##r ##y
        ("red [SEP]", ["red", "[", "SEP", "]"], [1, 2, 3, 3, 3, 4]),
        ("", [], []),
    ],
)
def test_tokens_are_traced_to_the_words_as_they_are_written(tokenizer, caption, words, index):
    found, places = tokenizer.name_words(caption)
    assert found == ["[CLS]", *words, "[SEP]"]
    assert places.tolist() == [0, *index, len(words) + 1]
    assert len(places) == tokenizer([caption])[1].sum()


def test_words_of_a_caption_that_is_cut_are_those_that_the_network_sees(tokenizer):
    words, places = tokenizer.name_words("red " * 40)
    assert words == ["[CLS]", *["red"] * 10, "[SEP]"]
    assert len(places) == 12


def test_pickled_tokenizer_gives_the_same_ids(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(["a large red star"])[0], tokenizer(["a large red star"])[0])


def test_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt"):
        Tokenizer(tmp_path / "none.txt", 17)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a\nb\n", "not a BERT vocabulary"),
        ("", "not a BERT vocabulary"),
        ("[UNK]\n[CLS]\n[SEP]\n", "lacks \\[PAD\\]"),
        ("a\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "first line"),
    ],
)
def test_file_that_is_no_bert_vocabulary_is_refused(tmp_path, text, fault):
    path = tmp_path / "vocab.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=fault):
        Tokenizer(path, 17)
