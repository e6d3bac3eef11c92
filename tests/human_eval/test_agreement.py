"""Krippendorff's alpha against published values and against its definition."""

import numpy as np
import pytest

from xmcgan.studies.human_eval.agreement import krippendorff_alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section C: 0 stands for none.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3],
    [0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0],
]


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_equals_the_published_example(level, alpha):
    ratings = np.where(np.array(PUBLISHED) == 0, np.nan, PUBLISHED)
    assert round(krippendorff_alpha(ratings, level), 3) == alpha


def test_alpha_is_one_for_agreement_and_negative_for_opposed_raters():
    ranks = np.array([1.0, 2, 3, 2, 1, 3])
    assert krippendorff_alpha(np.stack([ranks, ranks]), "ordinal") == 1
    assert krippendorff_alpha(np.stack([ranks, 4 - ranks]), "ordinal") < -0.5


def test_alpha_of_random_rankings_is_zero_on_average():
    rng = np.random.default_rng(0)
    alphas = []
    for _ in range(50):
        ranks = np.argsort(rng.random((3, 60, 4))).reshape(3, -1).astype(float)
        alphas.append(krippendorff_alpha(ranks, "ordinal"))
    assert abs(np.mean(alphas)) < 0.02


def test_only_the_order_of_values_counts_for_ordinal_data():
    ratings = np.where(np.array(PUBLISHED) == 0, np.nan, PUBLISHED)
    same = krippendorff_alpha(10.0**ratings, "ordinal")
    assert same == pytest.approx(krippendorff_alpha(ratings, "ordinal"))


@pytest.mark.parametrize("ratings", [[[1.0, 2, 3]], [[1.0, 1], [1, 1]], [[1, np.nan], [np.nan, 2]]])
def test_alpha_is_undefined_without_pairs_or_without_differences(ratings):
    assert np.isnan(krippendorff_alpha(np.array(ratings), "ordinal"))
