"""Inner products in every form against those of the matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import CASES, naive_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simfluence.attribution import gradient_similarity, products, selected_parameters
from simfluence.attribution.gradient_parts import GradientPart, Outer, Rows, Summed, dense, merged, stacked
from simfluence.attribution.products import by_token, inner_products, self_products


def made(kind: str, examples: int, tokens: int, draw: torch.Generator) -> GradientPart:
    """A part of matrices [5, 3]."""

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    if kind == "outer":
        return Outer(numbers(examples, tokens, 5), numbers(examples, tokens, 3))
    if kind == "rows":
        ids = torch.randint(5, (examples, tokens), generator=draw)
        return Rows(ids, numbers(examples, tokens, 3), 5)
    return Summed(numbers(examples, tokens, 5, 3))


KINDS = st.lists(st.sampled_from(["outer", "rows", "summed"]), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(KINDS, KINDS, *[st.integers(1, 4)] * 4, st.integers(0, 1000))
def test_inner_products(
    mine: list[str], theirs: list[str], queries: int, train: int, tokens: int, others: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    of_queries = [made(kind, queries, tokens, draw) for kind in mine]
    of_train = [made(kind, train, others, draw) for kind in theirs]
    a, b = dense(of_queries).flatten(1), dense(of_train).flatten(1)
    torch.testing.assert_close(inner_products(of_queries, of_train), b @ a.T)
    torch.testing.assert_close(inner_products(merged(of_queries), of_train), b @ a.T)
    torch.testing.assert_close(self_products(of_train), b.square().sum(1))
    apart = sum(by_token(of_queries, part) for part in of_train)
    torch.testing.assert_close(apart.sum(1), b @ a.T)


@pytest.mark.parametrize("chunk", [1, 10, 2**26])
def test_in_chunks(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_CHUNK", chunk)
    draw = torch.Generator().manual_seed(0)
    for mine in ("outer", "rows", "summed"):
        for theirs in ("outer", "rows", "summed"):
            queries, train = made(mine, 4, 2, draw), made(theirs, 3, 30, draw)
            expected = train.dense().flatten(1) @ queries.dense().flatten(1).T
            torch.testing.assert_close(inner_products([queries], [train]), expected)


def test_batches_of_different_lengths() -> None:
    draw = torch.Generator().manual_seed(0)
    for kind in ("outer", "rows", "summed"):
        parts = [[made(kind, n, t, draw)] for n, t in ((2, 3), (1, 5))]
        torch.testing.assert_close(dense(stacked(parts)), torch.cat([dense(part) for part in parts]))


@pytest.mark.parametrize("case", CASES)
def test_similarities_equal_those_of_naive_gradients(case: str) -> None:
    objective, examples = CASES[case]()
    gradients = naive_gradients(objective, examples, selected_parameters(objective.module))
    train, test = gradients[:3], gradients[3:]
    options: dict[str, Any] = {"batch_size": 2}
    found = gradient_similarity(objective, examples[:3], examples[3:], **options).scores
    np.testing.assert_allclose(found, train @ test.T, rtol=1e-9, atol=1e-12)
    train, test = (part / part.norm(dim=1, keepdim=True) for part in (train, test))
    found = gradient_similarity(objective, examples[:3], examples[3:], similarity="cosine", **options).scores
    np.testing.assert_allclose(found, train @ test.T, rtol=1e-9, atol=1e-12)
