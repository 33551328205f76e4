"""Texts and representations: against scikit-learn, written-out formulas, and naive loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from torch import nn

from simfluence.attribution import InfluenceScores
from simfluence.attribution.ngrams import ngram_features, ngram_similarity
from simfluence.attribution.representations import representation_similarity
from simfluence.attribution.text_similarity import bm25, candidates, filtered, tfidf, words

TRAIN = [
    "The rain in Spain stays mainly in the plain.",
    "Plain text, plain words: plain.",
    "What stays in Rome?",
    "Nothing alike",
    "",
    "What stays in Rome?",
]
TEST = ["Does the rain stay in Rome, in the rain?", "plain", "zzz", ""]

texts = st.lists(st.text("ab c", max_size=12), min_size=1, max_size=6)


def test_tfidf_is_scikit_learns() -> None:
    reference = TfidfVectorizer(token_pattern=r"\w+").fit(TRAIN)
    expected = (reference.transform(TRAIN) @ reference.transform(TEST).T).toarray()
    np.testing.assert_allclose(tfidf(TRAIN, TEST).scores, expected, rtol=1e-12, atol=1e-15)


@settings(deadline=None)
@given(texts, texts)
def test_tfidf_is_a_cosine(train: list[str], test: list[str]) -> None:
    scores = tfidf(train, test).scores
    assert scores.shape == (len(train), len(test))
    assert (scores >= 0).all()
    assert (scores <= 1 + 1e-12).all()
    own = np.diag(tfidf(train, train).scores)
    np.testing.assert_allclose(own, [bool(words(text)) for text in train], rtol=1e-12)


@pytest.mark.parametrize(("k1", "b"), [(1.5, None), (1.2, 0.75), (2.0, 0.0), (0.0, 1.0)])
def test_bm25_is_the_written_out_sum(k1: float, b: float | None) -> None:
    found = bm25(TRAIN, TEST, k1=k1, b=b).scores
    split = [words(text) for text in TRAIN]
    mean = sum(map(len, split)) / len(split)
    for z, query in enumerate(TEST):
        for i, document in enumerate(split):
            expected = 0.0
            for word in words(query):
                df = sum(word in other for other in split)
                idf = math.log((len(TRAIN) - df + 0.5) / (df + 0.5) + 1)
                n = document.count(word) if b is not None else float(word in document)
                if n:
                    length = 1 - (b or 0) + (b or 0) * len(document) / mean
                    expected += idf * (k1 + 1) * n / (k1 * length + n)
            assert found[i, z] == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_ngrams_are_counted_ones() -> None:
    """With more buckets than collisions, hashed counts have the inner products of plain ones."""
    counter = CountVectorizer(token_pattern=r"\w+", ngram_range=(1, 2)).fit(TRAIN + TEST)
    train, test = (counter.transform(part).toarray().astype(float) for part in (TRAIN, TEST))
    many = {"buckets": 2**18}
    np.testing.assert_allclose(ngram_similarity(TRAIN, TEST, similarity="dot", **many).scores, train @ test.T)
    norms = np.linalg.norm(train, axis=1)[:, None] * np.linalg.norm(test, axis=1)
    expected = train @ test.T / np.where(norms > 0, norms, 1)
    np.testing.assert_allclose(ngram_similarity(TRAIN, TEST, **many).scores, expected, rtol=1e-12)
    few = ngram_features(TRAIN, buckets=3).toarray()
    np.testing.assert_array_equal(few.sum(1), [len(words(t)) + max(0, len(words(t)) - 1) for t in TRAIN])


def test_candidates_are_the_most_similar_and_the_first_of_equals() -> None:
    similarity = InfluenceScores(np.array([[0.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 3.0]]), "some")
    chosen = candidates(similarity, 2)
    np.testing.assert_array_equal(chosen.T, [[False, True, True, False], [True, False, False, True]])
    assert candidates(similarity, 9).all()
    with pytest.raises(ValueError, match="at least 1"):
        candidates(similarity, 0)


@settings(deadline=None)
@given(arrays(float, (5, 3), elements=st.integers(-2, 2).map(float)), st.integers(1, 7))
def test_no_other_example_is_more_similar_than_a_candidate(scores: np.ndarray, k: int) -> None:
    chosen = candidates(InfluenceScores(scores, "some"), k)
    assert (chosen.sum(0) == min(k, 5)).all()
    for column, taken in zip(scores.T, chosen.T, strict=True):
        assert column[taken].min() >= column[~taken].max(initial=-np.inf)


def test_a_filtered_method_sees_the_union_and_scores_the_chosen_pairs() -> None:
    train, test = [1.0, 2.0, 3.0, 4.0], [10.0, 20.0]
    seen = []

    def product(some: list[float], others: list[float]) -> InfluenceScores:
        seen.append(list(some))
        return InfluenceScores(np.outer(some, others), "product", "units", ("w",), {"seed": 1})

    chosen = np.array([[True, False], [False, False], [True, True], [False, False]])
    found = filtered(product, train, test, chosen)
    assert seen == [[1.0, 3.0]]
    np.testing.assert_array_equal(found.scores, [[10, 0], [0, 0], [30, 60], [0, 0]])
    assert (found.method, found.units, found.covers) == ("product", "units", ("w",))
    assert found.provenance == {"seed": 1, "candidates": [[0, 2], [2]]}
    with pytest.raises(ValueError, match=r"bool \[4, 2\], got bool \[2, 4\]"):
        filtered(product, train, test, chosen.T)
    with pytest.raises(ValueError, match="no training example is chosen"):
        filtered(product, train, test, np.zeros((4, 2), bool))


@pytest.mark.parametrize("method", [tfidf, bm25, ngram_similarity])
def test_no_texts_and_texts_without_words(method) -> None:
    assert (method(["", "!"], ["?", ""]).scores == 0).all()
    with pytest.raises(ValueError, match="expected texts"):
        method([], ["a"])


def test_bad_options_are_named() -> None:
    with pytest.raises(ValueError, match="0 ≤ b ≤ 1"):
        bm25(TRAIN, TEST, b=2)
    with pytest.raises(ValueError, match="similarity must be"):
        ngram_similarity(TRAIN, TEST, similarity="l1")
    with pytest.raises(ValueError, match="similarity must be"):
        representation_similarity(nn.Linear(1, 1), [1], [1], similarity="l1")


@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_representations_are_compared_pair_by_pair(similarity: str, batch_size: int) -> None:
    torch.manual_seed(0)
    train, test = torch.randn(7, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    scores = representation_similarity(
        lambda examples: torch.stack(list(examples)), list(train), list(test),
        similarity=similarity, batch_size=batch_size,
    ).scores  # fmt: skip
    for i, a in enumerate(train):
        for z, b in enumerate(test):
            dot = a @ b
            expected = {"dot": dot, "cosine": dot / a.norm() / b.norm(), "l2": -(a - b).norm()}[similarity]
            assert scores[i, z] == pytest.approx(expected.item(), rel=1e-12)


def test_representations_must_be_finite_vectors() -> None:
    with pytest.raises(ValueError, match=r"\[1, hidden\], got shape \[2, 4\]"):
        representation_similarity(lambda examples: torch.zeros(2, 4), [1], [1])
    with pytest.raises(ValueError, match="not finite"):
        representation_similarity(lambda examples: torch.full((1, 4), torch.nan), [1], [1])
    with pytest.raises(ValueError, match="expected examples"):
        representation_similarity(lambda examples: torch.zeros(1, 4), [], [1])


class _Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).half()

    def representations(self, examples) -> torch.Tensor:
        return self.layer(torch.stack(list(examples)).half())


def test_a_model_is_asked_in_eval_mode_and_left_as_it_was() -> None:
    model, examples = _Dropping().train(), list(torch.randn(5, 4))
    state = torch.get_rng_state()
    found = representation_similarity(model, examples, examples)
    assert model.layer[1].training
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_allclose(np.diag(found.scores), 1, rtol=1e-5)
    assert found.scores.dtype == np.float32
    assert len(found.provenance["weights_fingerprint"]) == 16
