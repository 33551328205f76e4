"""Conjugate gradients, compiled: one call solves the systems of sixteen test examples on one thread.

ridge/iterative.py states the systems, ridge/problem.py the design X of a test example.

Vectors are flat [item, block, 16], of float32 or float64: an item is an example (primal) or a row (dual, with
one block), the last axis is the test example. Places in them are unsigned, for the compiler's sake.

``system`` is (design, dual, penalised). The design is (indices, counts, bounds, a, b): the sparse matrix U
(primal) or UUᵀ (dual), row r being the entries ``bounds[r] : bounds[r + 1]``, and the scales [row, 16], b
None where there is one block. ``penalised`` is how many numbers of a vector, from the first, are penalised.
"""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled
from simfluence.kernels.simd import double, load, spread, store
from simfluence.kernels.threads import SIMD_WIDTH

_W = np.uint64(SIMD_WIDTH)


@compiled
def add_primal_product(out, vectors, indices, counts, bounds, a, b):  # type: ignore[no-untyped-def]
    """out += XᵀX v, row by row of X. Returns vᵀXᵀX v, sixteen numbers."""
    long, squares = _W if b is None else _W + _W, spread(0.0)
    for row in range(len(bounds) - 1):
        here = np.uint64(row) * _W
        first = second = spread(vectors.dtype.type(0))
        for at in range(bounds[row], bounds[row + 1]):
            i, count = np.uint64(indices[at]) * long, spread(counts[at])
            first += count * load(vectors, i)
            if b is not None:
                second += count * load(vectors, i + _W)
        total = load(a, here) * first
        if b is not None:
            total += load(b, here) * second
            second = load(b, here) * total
        first = load(a, here) * total
        squares += double(total) * double(total)
        for at in range(bounds[row], bounds[row + 1]):
            i, count = np.uint64(indices[at]) * long, spread(counts[at])
            add(out, i, count * first)
            if b is not None:
                add(out, i + _W, count * second)
    return squares


@compiled
def add(out, at, values):  # type: ignore[no-untyped-def]
    """out[at : at + 16] += values"""
    store(out, at, load(out, at) + values)


@compiled
def add_dual_product(out, vectors, indices, counts, bounds, a, b):  # type: ignore[no-untyped-def]
    """out += XXᵀ v = (diag(a) UUᵀ diag(a) + diag(b) UUᵀ diag(b)) v. Returns vᵀXXᵀ v, sixteen numbers."""
    along = spread(0.0)
    for row in range(len(bounds) - 1):
        here = np.uint64(row) * _W
        first = second = spread(vectors.dtype.type(0))
        for at in range(bounds[row], bounds[row + 1]):
            i = np.uint64(indices[at]) * _W
            value = spread(counts[at]) * load(vectors, i)
            first += load(a, i) * value
            if b is not None:
                second += load(b, i) * value
        total = load(a, here) * first
        if b is not None:
            total += load(b, here) * second
        along += double(load(vectors, here)) * double(total)
        add(out, here, total)
    return along


@compiled
def apply(out, vectors, system, penalty):  # type: ignore[no-untyped-def]
    """out = (XᵀX + λP) v or (XXᵀ + λI) v; returns vᵀ out [16]."""
    design, dual, penalised = system
    curvature, squares, weight = np.empty(SIMD_WIDTH), spread(0.0), spread(vectors.dtype.type(penalty))
    for at in range(np.uint64(0), np.uint64(penalised), _W):
        v = load(vectors, at)
        store(out, at, weight * v)
        squares += double(v) * double(v)
    out[penalised:] = 0
    along = add_dual_product(out, vectors, *design) if dual else add_primal_product(out, vectors, *design)
    store(curvature, np.uint64(0), along + spread(penalty) * squares)
    return curvature


@compiled
def precondition(out, residual, applied, step, inverse):  # type: ignore[no-untyped-def]
    """r −= step · applied, out = M⁻¹ r; returns rᵀM⁻¹r [16].

    inverse : M⁻¹, a symmetric matrix for each item: flat [item, 1, 16] for one block, [item, 3, 16] for two,
    the entries (1, 1), (1, 2) and (2, 2).
    """
    size, total, a = np.empty(SIMD_WIDTH), spread(0.0), load(step, np.uint64(0))
    length, place = np.uint64(len(residual)), np.uint64(0)
    if len(inverse) == len(residual):
        for at in range(np.uint64(0), length, _W):
            r = load(residual, at) - a * load(applied, at)
            z = load(inverse, at) * r
            store(residual, at, r)
            store(out, at, z)
            total += double(r) * double(z)
    else:
        for at in range(np.uint64(0), length, _W + _W):
            r, q = load(residual, at) - a * load(applied, at), load(residual, at + _W)
            q -= a * load(applied, at + _W)
            cross = load(inverse, place + _W)
            z, w = load(inverse, place) * r + cross * q, cross * r + load(inverse, place + _W + _W) * q
            store(residual, at, r)
            store(residual, at + _W, q)
            store(out, at, z)
            store(out, at + _W, w)
            total += double(r) * double(z) + double(q) * double(w)
            place += _W + _W + _W
    store(size, np.uint64(0), total)
    return size


@compiled
def turn(found, direction, z, step, momentum):  # type: ignore[no-untyped-def]
    """found += step · direction, then direction = momentum · direction + z."""
    a, b = load(step, np.uint64(0)), load(momentum, np.uint64(0))
    for at in range(np.uint64(0), np.uint64(len(direction)), _W):
        v = load(direction, at)
        store(found, at, load(found, at) + a * v)
        store(direction, at, b * v + load(z, at))


@compiled
def conjugate_gradients(  # type: ignore[no-untyped-def]
    found, residual, system, penalty, inverse, target, limit
):
    """Solve for ``residual``, which becomes what is left; ``found`` [vector], zeros at first, is the answer.

    target : of rᵀM⁻¹r [16]; what has reached it rests. limit : of iterations. Returns how many it took.
    """
    kind = residual.dtype
    direction, applied = np.zeros_like(residual), np.zeros_like(residual)
    z = np.zeros_like(residual)
    step, momentum = np.zeros(SIMD_WIDTH, kind), np.zeros(SIMD_WIDTH, kind)
    size = precondition(z, residual, applied, step, inverse)
    for iteration in range(limit + 1):
        turn(found, direction, z, step, momentum)
        if not (size > target).any() or iteration == limit:
            return iteration
        curvature = apply(applied, direction, system, penalty)
        moves = (size > target) & (curvature > 0.0)
        step[:] = np.where(moves, size / curvature, 0.0)
        new = precondition(z, residual, applied, step, inverse)
        momentum[:] = np.where(moves, new / size, 0.0)
        size = np.where(moves, new, size)
    return limit
