"""Whitening: main directions come to vary alike, whatever batches the captions are read in."""

from types import SimpleNamespace

import numpy as np

from xmcgan.training import sentence_statistics as statistics


def _sentences(num=4000):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    return (rng.normal(size=(num, 6)) * [30, 3, 1, 1, 0.01, 0]) @ basis + 5


def test_directions_of_much_variance_come_to_vary_alike_and_the_mean_goes():
    sentences = _sentences()
    found = statistics.whitening(sentences)
    white = (sentences - found["mean"]) @ found["matrix"]
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-4)
    values = np.linalg.eigvalsh(np.cov(white.T))[::-1]
    variance = np.array([30, 3, 1, 1, 0.01, 0]) ** 2
    np.testing.assert_allclose(
        values, variance / (variance + variance.mean()), rtol=0.15, atol=1e-3
    )


def test_sentences_that_are_all_the_same_give_finite_numbers():
    found = statistics.whitening(np.ones((5, 3)))
    assert np.isfinite(found["matrix"]).all()
    np.testing.assert_allclose((np.ones(3) - found["mean"]) @ found["matrix"], 0, atol=1e-6)


def test_captions_are_encoded_in_batches_of_one_size_and_each_counts_once(monkeypatch):
    sentences = _sentences(100)
    source = [SimpleNamespace(captions=[str(i)]) for i in range(100)]
    shapes = set()

    def encode(ids, mask):
        shapes.add(ids.shape)
        return sentences[ids[:, 0]]

    def tokenize(captions):
        ids = np.array([[int(c)] for c in captions])
        return ids, np.ones_like(ids, bool)

    found = statistics.sentence_statistics(source, tokenize, encode, seed=0)
    assert shapes == {(64, 1)}
    np.testing.assert_allclose(
        found["matrix"], statistics.whitening(sentences)["matrix"], rtol=1e-5
    )
