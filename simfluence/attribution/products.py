"""Inner products between the gradients of two sets of examples, by parameter.

    ⟨G_i, G_z⟩ = Σ_{t,s} (a_t·a_s)(g_t·g_s)         linear maps, without either matrix
    ⟨G_i, G_z⟩ = Σ_{t,s: r_t = r_s} g_t·g_s          embeddings
    ⟨G_i, G_z⟩ = Σ_{t,s} g_t[r_s] (a_t·g_s)          an embedding tied to a linear map

or with the matrices, where these are cheaper. z are the ``queries``, i the ``train`` examples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from simfluence.attribution.buffers import fresh
from simfluence.attribution.gradient_parts import GradientPart, Outer, Rows, Summed, dense, merged, stacked
from simfluence.attribution.layers import wide_type
from simfluence.attribution.tracing import Traced

Queries = Mapping[str, Sequence[GradientPart]]
"""parameter → its parts, the first axis being that of the queries."""

_CHUNK = 2**26
"""Numbers that a temporary array may have (256 MB in float32)."""


def held(batches: Sequence[Traced]) -> Queries:
    """Gradients of several batches as queries, in the form that makes inner products cheap."""
    names = dict.fromkeys(name for batch in batches for name in batch.parts)
    found: dict[str, list[GradientPart]] = {}
    for name in names:
        by_batch = [merged(batch.parts[name]) for batch in batches if name in batch.parts]
        forms = {tuple(map(type, parts)) for parts in by_batch}
        if len(by_batch) != len(batches) or len(forms) > 1:  # some batches use the parameter in other ways
            one = dense(by_batch[0])[:1]
            matrices = [
                dense(b.parts[name]) if name in b.parts else one.new_zeros(len(b.losses), *one.shape[1:])
                for b in batches
            ]
            by_batch = [[Summed(matrix[:, None])] for matrix in matrices]
        found[name] = [_cheapest(part) for part in stacked(by_batch)]
    return found


def scores(queries: Queries, train: Traced, count: int) -> Tensor:
    """⟨G_i, G_z⟩ [train, query] over all parameters; count : of the queries."""
    total = train.losses.new_zeros(len(train.losses), count, dtype=wide_type(train.losses))
    for name, parts in queries.items():
        if name in train.parts:
            total = total + inner_products(parts, train.parts[name])
    return total


def inner_products(queries: Sequence[GradientPart], train: Sequence[GradientPart]) -> Tensor:
    """⟨G_i, G_z⟩ [train, query] of one parameter."""
    total: Tensor | None = None
    for part in merged(train):
        for query in queries:
            product = _inner(query, part)
            total = product if total is None else total + product
    assert total is not None
    return total


def self_products(parts: Sequence[GradientPart]) -> Tensor:
    """⟨G_i, G_i⟩ [example] of one parameter."""
    parts = merged(parts)
    part = parts[0]
    if len(parts) == 1 and isinstance(part, Outer):
        (n_out, n_in), tokens = (part.left.shape[-1], part.right.shape[-1]), part.shape[1]
        if tokens * (n_out + n_in) < n_out * n_in:
            left = part.left @ part.left.transpose(1, 2)
            return (left * (part.right @ part.right.transpose(1, 2))).sum((1, 2))
    if len(parts) == 1 and isinstance(part, Rows):
        same = part.ids[:, :, None] == part.ids[:, None]
        return (part.values @ part.values.transpose(1, 2) * same).sum((1, 2))
    matrices = [dense([p.each(_Sliced(c)) for p in parts]) for c in _chunks(parts[0])]
    return torch.cat([matrix.flatten(1).square().sum(1) for matrix in matrices])


def by_token(queries: Sequence[GradientPart], part: GradientPart) -> Tensor:
    """The same, apart for every token of the training examples, [train, token, query]."""
    examples, tokens = part.shape
    apart = part.each(lambda values: values.reshape(examples * tokens, 1, *values.shape[2:]))
    total = sum(_inner(query, apart) for query in queries)
    return torch.as_tensor(total).reshape(examples, tokens, -1)


def _inner(query: GradientPart, train: GradientPart) -> Tensor:
    if isinstance(train, Outer):
        if isinstance(query, Outer):
            return _outer_outer(query, train)
        return _outer_rows(train, query).T if isinstance(query, Rows) else _dense_outer(query, train)
    if isinstance(train, Rows):
        if isinstance(query, Outer):
            return _outer_rows(query, train)
        return _rows_rows(query, train) if isinstance(query, Rows) else _dense_rows(query, train)
    if isinstance(query, Summed):
        return train.dense().flatten(1) @ query.dense().flatten(1).T
    matrix = train.dense().flatten(1)
    return torch.cat([matrix @ query.each(_Sliced(c)).dense().flatten(1).T for c in _chunks(query)], 1)


def _outer_outer(query: Outer, train: Outer) -> Tensor:
    if _prefer_pairs(query, train.shape):
        return torch.cat([_pairs(query.each(_Sliced(c)), train) for c in _pair_chunks(query, train)], 1)
    found = [_dense_outer(Summed(query.each(_Sliced(c)).dense()[:, None]), train) for c in _chunks(query)]
    return torch.cat(found, 1)


def _prefer_pairs(query: Outer, train: Sequence[int]) -> bool:
    """Whether pairs of tokens take less than the matrices: multiplications a training example."""
    queries, tokens = query.shape
    n_out, n_in = query.left.shape[-1], query.right.shape[-1]
    pairs = queries * tokens * train[1] * (n_out + n_in + 2)
    matrices = n_out * n_in * (train[1] + queries + queries * tokens / max(train[0], 1))
    return pairs < matrices


def _pairs(query: Outer, train: Outer) -> Tensor:
    """Σ_{t,s} (a_t·a_s)(g_t·g_s)."""
    examples, queries = train.shape[0], query.shape[0]
    left = train.left.flatten(0, 1) @ query.left.flatten(0, 1).T
    right = train.right.flatten(0, 1) @ query.right.flatten(0, 1).T
    return (left * right).reshape(examples, train.shape[1], queries, query.shape[1]).sum((1, 3))


def _dense_outer(query: Summed, train: Outer) -> Tensor:
    """⟨P_z, Σ_t g_t a_tᵀ⟩ with the matrices of both, some rows [out] at a time."""
    flat, width = query.dense().flatten(1), train.right.shape[-1]
    height = max(1, min(128, _CHUNK // (train.shape[0] * width)))
    total = flat.new_zeros(train.shape[0], len(flat))
    room = fresh(flat, train.shape[0] * height * width)  # once: memory can cost more than the arithmetic
    for start in range(0, train.left.shape[-1], height):
        left = train.left[..., start : start + height].transpose(1, 2)
        rows = room[: train.shape[0] * left.shape[1] * width].view(train.shape[0], -1, width)
        torch.bmm(left, train.right, out=rows)
        total.addmm_(rows.flatten(1), flat[:, start * width : (start + height) * width].T)
    return total


def _rows_rows(query: Rows, train: Rows) -> Tensor:
    """Σ_{t,s: r_t = r_s} g_t·g_s, of the rows that both have."""
    shared = torch.isin(train.ids, query.ids.unique())
    where, _ = shared.nonzero(as_tuple=True)
    ids, values = train.ids[shared], train.values[shared]
    products = values @ query.values.flatten(0, 1).T
    products *= ids[:, None] == query.ids.flatten()
    by_query = products.reshape(len(ids), *query.shape).sum(2)
    return by_query.new_zeros(train.shape[0], query.shape[0]).index_add_(0, where, by_query)


def _dense_rows(query: Summed, train: Rows) -> Tensor:
    """Σ_t P_z[r_t] · g_t."""
    matrices, found = query.dense(), []
    for chunk in _chunks(train, matrices.shape[0] * train.shape[1] * matrices.shape[-1]):
        ids, values = train.ids[chunk], train.values[chunk]
        found.append(torch.einsum("qxti,xti->xq", matrices[:, ids], values))
    return torch.cat(found)


def _outer_rows(outer: Outer, rows: Rows) -> Tensor:
    """Σ_{t,s} g_t[r_s] (a_t·g_s) of matrices [rows, in], [example of rows, example of outer]."""
    values = rows.values.flatten(0, 1)
    found = []
    for chunk in _chunks(outer, outer.shape[1] * len(values)):
        left, right = outer.left[chunk], outer.right[chunk]
        products = left[..., rows.ids.flatten()] * (right @ values.T)
        found.append(products.sum(1).reshape(len(left), *rows.shape).sum(2))
    return torch.cat(found).T


def _cheapest(part: GradientPart) -> GradientPart:
    """Matrices in place of tokens, where these will be asked for (by examples of as many tokens) and are
    not much more to keep."""
    if isinstance(part, Outer) and not _prefer_pairs(part, (10**9, part.shape[1])):
        n_out, n_in = part.left.shape[-1], part.right.shape[-1]
        if n_out * n_in <= 8 * part.shape[1] * (n_out + n_in):
            return Summed(part.dense()[:, None])
    return part


def _size(part: GradientPart) -> int:
    """Numbers in one example's matrix."""
    if isinstance(part, Outer):
        return part.left.shape[-1] * part.right.shape[-1]
    return part.rows * part.values.shape[-1] if isinstance(part, Rows) else part.values[0, 0].numel()


def _chunks(part: GradientPart, size: int | None = None) -> Iterator[slice]:
    """Of examples, so that temporary arrays with so many numbers an example are not too large."""
    step = max(1, _CHUNK // max(size or _size(part), 1))
    for start in range(0, part.shape[0], step):
        yield slice(start, start + step)


def _pair_chunks(query: Outer, train: Outer) -> Iterator[slice]:
    return _chunks(query, query.shape[1] * train.shape[0] * train.shape[1])


class _Sliced:
    """Called with an array, it takes a slice of the examples."""

    def __init__(self, which: slice) -> None:
        self.which = which

    def __call__(self, values: Tensor) -> Tensor:
        return values[self.which]
