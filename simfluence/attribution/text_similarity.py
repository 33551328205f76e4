"""Similarity of texts by the words they share, and influence computed for the most similar pairs only.

Counts n_{D,t} of word t in text D; C training texts, of which df_t contain t.

    TF-IDF (cosine)   ⟨v_i, v_z⟩ / (‖v_i‖ ‖v_z‖),   v_{D,t} = n_{D,t} (log((C + 1)/(df_t + 1)) + 1)
    BM25              Σ_{t ∈ z} IDF_t (k₁ + 1) n_{i,t} / (k₁ (1 − b + b |i| / mean|·|) + n_{i,t})
                      IDF_t = log((C − df_t + ½)/(df_t + ½) + 1); t runs over the words of z, repeats too

BM25 as in Grosse et al. (2023, appendix B), who filter candidates with it, counts presence, 1[t ∈ i], instead
of n_{i,t} and has b = 0; with counts it is Okapi's. Scores are similarities: they have no units, are never
negative, and say nothing of the direction of an effect.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.attribution.registry import AttributionContext, method
from simfluence.scores import InfluenceScores

Example = TypeVar("Example")


def words(text: str) -> list[str]:
    """Runs of letters and digits, lower case."""
    return re.findall(r"\w+", text.lower())


def tfidf(train_texts: Sequence[str], test_texts: Sequence[str]) -> InfluenceScores:
    """Cosine of TF-IDF vectors; a text without a known word has score 0 with all.

    Raises ValueError without training or test texts.
    """
    train, test = _word_counts(train_texts, test_texts)
    idf = np.log((train.shape[0] + 1) / (_document_frequency(train) + 1)) + 1
    scores = _unit_rows(train.multiply(idf)) @ _unit_rows(test.multiply(idf)).T
    return InfluenceScores(scores.toarray(), "tfidf", provenance={"idf_of": "the training texts"})


def bm25(
    train_texts: Sequence[str], test_texts: Sequence[str], *, k1: float = 1.5, b: float | None = None
) -> InfluenceScores:
    """BM25 of every training text as a document for every test text as a query.

    k1 : how slowly the weight of a word levels off as it occurs more often; with 0, only presence counts.
    b : how strongly counts are normalised by a text's length, 0 .. 1 (0.75 is usual); None: presence of
        words, as in Grosse et al. (2023).

    Raises ValueError without training or test texts, or for k1 < 0 or b outside 0 .. 1.
    """
    if k1 < 0 or not 0 <= (b or 0) <= 1:
        raise ValueError(f"BM25 needs k1 ≥ 0 and 0 ≤ b ≤ 1 (or None), got k1 = {k1} and b = {b}")
    train, test = _word_counts(train_texts, test_texts)
    df = _document_frequency(train)
    idf = np.log((train.shape[0] - df + 0.5) / (df + 0.5) + 1)
    lengths = np.asarray(train.sum(1)).ravel()
    relative = lengths / max(lengths.mean(), np.finfo(float).tiny)
    weights = train.tocoo()
    counts = np.ones_like(weights.data) if b is None else weights.data
    saturated = (k1 + 1) * counts / (k1 * (1 - (b or 0) + (b or 0) * relative[weights.row]) + counts)
    documents = sparse.csr_array((saturated * idf[weights.col], (weights.row, weights.col)), train.shape)
    return InfluenceScores((documents @ test.T).toarray(), "bm25", provenance={"k1": k1, "b": b})


@method("tfidf", of_all_examples=True, of_texts=True)
def _tfidf_in_context(
    context: AttributionContext, *, progress: bool = False, **options: Any
) -> InfluenceScores:
    return tfidf(context.train_texts, context.test_texts, **options)


@method("bm25", of_all_examples=True, of_texts=True)
def _bm25_in_context(
    context: AttributionContext, *, progress: bool = False, **options: Any
) -> InfluenceScores:
    return bm25(context.train_texts, context.test_texts, **options)


def candidates(similarity: InfluenceScores, k: int) -> npt.NDArray[np.bool_]:
    """The k most similar training examples of every test example, bool [train, test].

    Of equally similar ones, those that come first. All, if there are no more than k.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    best = np.argsort(-similarity.scores, axis=0, kind="stable")[:k]
    chosen = np.zeros(similarity.scores.shape, bool)
    np.put_along_axis(chosen, best, True, axis=0)
    return chosen


def filtered(
    method: Callable[[Sequence[Example], Sequence[Any]], InfluenceScores],
    train: Sequence[Example],
    test: Sequence[Any],
    chosen: npt.NDArray[np.bool_],
) -> InfluenceScores:
    """Scores of chosen pairs; those of all other pairs are 0.

    method : (training examples, test examples) → scores; it is called once, with the union of the training
        examples that are chosen for some test example. What it needs of all training examples, such as a
        curvature, it must be given: ``lambda some, z: influence(objective, some, z, curvature=train)``.
    chosen : bool [train, test], e.g. of :func:`candidates`.

    The provenance says what was chosen: ``candidates``, a list of training examples for each test example.
    """
    if chosen.shape != (len(train), len(test)) or chosen.dtype != np.bool_:
        raise ValueError(
            f"chosen must be bool [{len(train)}, {len(test)}], got {chosen.dtype} {list(chosen.shape)}"
        )
    union = np.flatnonzero(chosen.any(1)).tolist()
    if not union:
        raise ValueError("no training example is chosen for any test example")
    found = method([train[i] for i in union], test)
    scores = np.zeros(chosen.shape, found.scores.dtype)
    scores[union] = np.where(chosen[union], found.scores, 0)
    listed = [np.flatnonzero(column).tolist() for column in chosen.T]
    return replace(found, scores=scores, provenance={**found.provenance, "candidates": listed})


def _word_counts(
    train_texts: Sequence[str], test_texts: Sequence[str]
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Counts of the words that occur in training texts, [text, word]."""
    if not len(train_texts) or not len(test_texts):
        raise ValueError(f"expected texts, got {len(train_texts)} for training and {len(test_texts)} to test")
    vocabulary: dict[str, int] = {}
    for text in train_texts:
        for word in words(text):
            vocabulary.setdefault(word, len(vocabulary))
    return _counts(train_texts, vocabulary), _counts(test_texts, vocabulary)


def _counts(texts: Sequence[str], vocabulary: dict[str, int]) -> sparse.csr_array:
    found = [Counter(vocabulary[word] for word in words(text) if word in vocabulary) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(counter) for counter in found])
    columns = np.array([word for counter in found for word in counter], dtype=np.int64)
    values = np.array([count for counter in found for count in counter.values()], dtype=np.float64)
    return sparse.csr_array((values, (rows, columns)), (len(texts), max(1, len(vocabulary))))


def _document_frequency(counts: sparse.csr_array) -> npt.NDArray[np.float64]:
    return np.asarray((counts > 0).sum(0), dtype=np.float64).ravel()


def _unit_rows(matrix: Any) -> sparse.csr_array:
    matrix = sparse.csr_array(matrix)
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ matrix)
