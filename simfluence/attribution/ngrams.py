"""Similarity of texts by hashed n-grams (the features of Xie et al. 2023, "DSIR": words and pairs of words).

    v_{D,b} = how many n-grams of text D, n = 1 .. N, have the hash b      [text, bucket]
    dot ⟨v_i, v_z⟩      cosine ⟨v_i, v_z⟩ / (‖v_i‖ ‖v_z‖)

Similarities have no units, are never negative, and say nothing of the direction of an effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal
from zlib import crc32

import numpy as np
from scipy import sparse

from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.text_similarity import words
from simfluence.scores import InfluenceScores


def ngram_similarity(
    train_texts: Sequence[str],
    test_texts: Sequence[str],
    *,
    longest: int = 2,
    buckets: int = 10_000,
    similarity: Literal["dot", "cosine"] = "cosine",
) -> InfluenceScores:
    """Dot product or cosine of hashed n-gram counts.

    longest : N above, in words. buckets : how many hashes there are; the same n-gram always has the same one.

    Raises ValueError without training or test texts.
    """
    if similarity not in ("dot", "cosine"):
        raise ValueError(f"similarity must be 'dot' or 'cosine', got {similarity!r}")
    if not len(train_texts) or not len(test_texts):
        raise ValueError(f"expected texts, got {len(train_texts)} for training and {len(test_texts)} to test")
    train = ngram_features(train_texts, longest=longest, buckets=buckets)
    test = ngram_features(test_texts, longest=longest, buckets=buckets)
    scores = (train @ test.T).toarray()
    if similarity == "cosine":
        scores = scores / (_norms(train)[:, None] * _norms(test))
    provenance = {"similarity": similarity, "longest": longest, "buckets": buckets, "hash": "crc32"}
    return InfluenceScores(scores, "ngrams", provenance=provenance)


@method("ngrams", of_texts=True)
def _in_context(context: AttributionContext, *, progress: bool = False, **options: Any) -> InfluenceScores:
    return ngram_similarity(context.train_texts, context.test_texts, **options)


def ngram_features(texts: Sequence[str], *, longest: int = 2, buckets: int = 10_000) -> sparse.csr_array:
    """Counts of hashed n-grams, float [text, bucket]."""
    if longest < 1 or buckets < 1:
        raise ValueError(f"longest and buckets must be at least 1, got {longest} and {buckets}")
    hashed = [[crc32(gram.encode()) % buckets for gram in _ngrams(words(text), longest)] for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(row) for row in hashed])
    columns = np.array([bucket for row in hashed for bucket in row], dtype=np.int64)
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), (len(texts), buckets))  # sums repeats


def _ngrams(tokens: list[str], longest: int) -> Iterator[str]:
    for n in range(1, longest + 1):
        for start in range(len(tokens) - n + 1):
            yield " ".join(tokens[start : start + n])


def _norms(features: sparse.csr_array) -> np.ndarray:
    squares = np.asarray(features.multiply(features).sum(1)).ravel()
    return np.sqrt(np.where(squares > 0, squares, 1))
