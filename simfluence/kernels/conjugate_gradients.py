"""Conjugate gradients on a CPU, compiled: one call solves (G + λP) θ = m for sixteen test examples.

Vectors are flat [example, block, column], a column a system (sixteen of them, see simd.py): what belongs to
an example lies together. A call's columns belong to a thread. Places are unsigned, as vectors take them.

``rows`` are the design: (chosen, indices, counts, bounds, scales, scaled). chosen are the rows that
count. indices and counts are of all rows' entries, each row filled up to a multiple of four by zeros of
example 0, and begin at ``bounds``; scales are s [row, scaled block, column]; scaled [block] is the place of
a block among them, -1 for a block of ones.
"""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled
from simfluence.kernels.simd import absolute, aligned_zeros, double, load, spread, store
from simfluence.kernels.threads import SIMD_WIDTH

_W = np.uint64(SIMD_WIDTH)


@compiled
def add_gram(out, vectors, rows):  # type: ignore[no-untyped-def]
    """out += G v = Σ_j Uᵀ s_j (Σ_l s_l U v_l), row by row: nothing in between is kept. Returns vᵀGv."""
    chosen, indices, counts, bounds, scales, scaled = rows
    blocks = np.uint64(len(scaled))
    long, stride = blocks * _W, np.uint64((scaled >= 0).sum()) * _W
    nothing, squares = spread(vectors.dtype.type(0)), spread(0.0)
    for row in chosen:
        start, stop, here = bounds[row], bounds[row + 1], np.uint64(row) * stride
        total = nothing
        for block in range(blocks):
            shift, found = block * _W, nothing
            for at in range(start, stop, 4):
                i, j = np.uint64(indices[at]) * long + shift, np.uint64(indices[at + 1]) * long + shift
                k, m = np.uint64(indices[at + 2]) * long + shift, np.uint64(indices[at + 3]) * long + shift
                first = spread(counts[at]) * load(vectors, i) + spread(counts[at + 1]) * load(vectors, j)
                second = spread(counts[at + 2]) * load(vectors, k) + spread(counts[at + 3]) * load(vectors, m)
                found += first + second
            if scaled[block] >= 0:
                found = load(scales, here + np.uint64(scaled[block]) * _W) * found
            total += found
        squares += double(total) * double(total)
        for block in range(blocks):
            shift, weighted = block * _W, total
            if scaled[block] >= 0:
                weighted = load(scales, here + np.uint64(scaled[block]) * _W) * total
            for at in range(start, stop):
                if counts[at] != 0.0:
                    i = np.uint64(indices[at]) * long + shift
                    store(out, i, load(out, i) + spread(counts[at]) * weighted)
    return squares


@compiled
def add_linear_gram(out, vectors, rows):  # type: ignore[no-untyped-def]
    """The same for [diag(s) U, U], the linear model's design: half to two thirds of the time."""
    chosen, indices, counts, bounds, scales, _ = rows
    long, squares = np.uint64(2) * _W, spread(0.0)
    for row in chosen:
        start, stop = bounds[row], bounds[row + 1]
        first = second = spread(vectors.dtype.type(0))
        for at in range(start, stop, 4):
            i, j = np.uint64(indices[at]) * long, np.uint64(indices[at + 1]) * long
            k, m = np.uint64(indices[at + 2]) * long, np.uint64(indices[at + 3]) * long
            a, b = spread(counts[at]), spread(counts[at + 1])
            c, d = spread(counts[at + 2]), spread(counts[at + 3])
            first += (a * load(vectors, i) + b * load(vectors, j)) + (
                c * load(vectors, k) + d * load(vectors, m)
            )
            second += (a * load(vectors, i + _W) + b * load(vectors, j + _W)) + (
                c * load(vectors, k + _W) + d * load(vectors, m + _W)
            )
        scale = load(scales, np.uint64(row) * _W)
        total = scale * first + second
        squares += double(total) * double(total)
        weighted = scale * total
        for at in range(start, stop):
            i, a = np.uint64(indices[at]) * long, spread(counts[at])
            store(out, i, load(out, i) + a * weighted)
            store(out, i + _W, load(out, i + _W) + a * total)
    return squares


@compiled
def block_means(vectors, blocks):  # type: ignore[no-untyped-def]
    """The mean over examples, flat [block, column]."""
    long, share = np.uint64(blocks) * _W, spread(blocks * SIMD_WIDTH / len(vectors))
    means = np.empty(long)
    for shift in range(np.uint64(0), long, _W):
        total = spread(0.0)
        for at in range(shift, np.uint64(len(vectors)), long):
            total += double(load(vectors, at))
        store(means, shift, share * total)
    return means.astype(vectors.dtype)


@compiled
def apply(out, curvature, vectors, rows, penalty, pooled):  # type: ignore[no-untyped-def]
    """out = (G + λP) v, curvature = vᵀ(G + λP) v [column].

    penalty : λ [column]. pooled : whether P v is v less the block's mean, in place of v.
    """
    blocks, weights, squares = len(rows[5]), load(penalty, np.uint64(0)), spread(0.0)
    long = np.uint64(blocks) * _W
    means = block_means(vectors, blocks) if pooled else np.zeros(blocks * SIMD_WIDTH, vectors.dtype)
    for shift in range(np.uint64(0), long, _W):
        mean = load(means, shift)
        for at in range(shift, np.uint64(len(vectors)), long):
            pull = load(vectors, at) - mean
            store(out, at, weights * pull)
            squares += double(pull) * double(pull)
    if pooled:  # rounding leaves an average, which the preconditioner would blow up
        means = block_means(out, blocks)
        for shift in range(np.uint64(0), long, _W):
            mean = load(means, shift)
            for at in range(shift, np.uint64(len(vectors)), long):
                store(out, at, load(out, at) - mean)
    linear = blocks == 2 and rows[5][0] == 0 and rows[5][1] < 0
    along = add_linear_gram(out, vectors, rows) if linear else add_gram(out, vectors, rows)
    store(curvature, np.uint64(0), along + double(weights) * squares)


@compiled
def advance(out, size, residual, applied, step, inverse, average):  # type: ignore[no-untyped-def]
    """r −= a (G + λP) v, then out = M⁻¹ r and size = rᵀM⁻¹ r [column], for steps a [column].

    inverse : the examples' own part of M⁻¹, [example, block, block, column].
    average : that of the blocks' averages [block, block, column], for pooled systems; else empty.
    """
    blocks = np.uint64(len(inverse)) // np.uint64(len(residual))
    long, length, start = blocks * _W, np.uint64(len(residual)), np.uint64(0)
    a, total = load(step, start), spread(0.0)
    for here in range(start, length, long):
        for at in range(here, here + long, _W):
            store(residual, at, load(residual, at) - a * load(applied, at))
        own = here * blocks
        for at in range(here, here + long, _W):
            z = load(inverse, own) * load(residual, here)
            own += _W
            for other in range(here + _W, here + long, _W):
                z += load(inverse, own) * load(residual, other)
                own += _W
            store(out, at, z)
            total += double(load(residual, at)) * double(z)
    if len(average):
        means = block_means(residual, blocks)
        for block in range(blocks):
            pull = spread(residual.dtype.type(0))
            for other in range(blocks):
                pull += load(average, (block * blocks + other) * _W) * load(means, other * _W)
            for at in range(block * _W, length, long):
                store(out, at, load(out, at) + pull)
                total += double(load(residual, at)) * double(pull)
    store(size, start, total)


@compiled
def measure(size, residual, inverse, average):  # type: ignore[no-untyped-def]
    """size = rᵀM⁻¹r [column]"""
    still = np.zeros(SIMD_WIDTH, residual.dtype)
    advance(np.empty_like(residual), size, residual, residual, still, inverse, average)


@compiled
def turn(found, direction, z, step, momentum):  # type: ignore[no-untyped-def]
    """θ += a v, then v = b v + z, for steps a and momenta b [column]."""
    a, b = load(step, np.uint64(0)), load(momentum, np.uint64(0))
    for at in range(np.uint64(0), np.uint64(len(direction)), _W):
        v = load(direction, at)
        store(found, at, load(found, at) + a * v)
        store(direction, at, b * v + load(z, at))


@compiled
def conjugate_gradients(  # type: ignore[no-untyped-def]
    size, found, residual, rows, penalty, inverse, average, target, limit
):
    """Go on from θ in ``found`` and its residual r = m − (G + λP) θ in ``residual``; both are moved.

    size : where to write what is left of rᵀM⁻¹r, [column]. target : for that. limit : of iterations.
    Returns the iterations taken.
    """
    direction, applied = aligned_zeros(len(residual), residual), aligned_zeros(len(residual), residual)
    z, new, curvature = np.zeros(len(residual), residual.dtype), np.zeros(SIMD_WIDTH), np.zeros(SIMD_WIDTH)
    step, momentum = np.zeros(SIMD_WIDTH, residual.dtype), np.zeros(SIMD_WIDTH, residual.dtype)
    advance(z, size, residual, applied, step, inverse, average)
    for iteration in range(limit + 1):
        turn(found, direction, z, step, momentum)
        if not (size > target).any() or iteration == limit:
            return iteration
        apply(applied, curvature, direction, rows, penalty, len(average) > 0)
        for c in range(SIMD_WIDTH):
            moves = size[c] > target[c] and curvature[c] > 0.0
            step[c] = size[c] / curvature[c] if moves else 0.0
        advance(z, new, residual, applied, step, inverse, average)
        for c in range(SIMD_WIDTH):
            moves = size[c] > target[c]
            momentum[c] = new[c] / size[c] if moves else 0.0
            size[c] = new[c] if moves else size[c]
    return limit


@compiled
def path(thetas, done, side, rows, diagonal, penalties, tolerance, limit):  # type: ignore[no-untyped-def]
    """(G + λI) θ = side for every λ, each from the next larger one's θ, in the precision of ``side``.

    thetas, done : where to write θ [λ, vector], and whether its residual is as small as asked, [λ, column].
    diagonal : the examples' own blocks of G, as ``statistics`` finds them, in double precision.
    tolerance : of √(rᵀM⁻¹r), relative to its start.
    """
    none, size, target = np.empty(0, side.dtype), np.empty(SIMD_WIDTH), np.empty((len(penalties), SIMD_WIDTH))
    theta, residual, before = np.zeros_like(side), side.copy(), 0.0
    order = np.argsort(-penalties)
    for number in order:
        inverse, weights = shifted_inverse(diagonal, penalties[number], side)
        residual += side.dtype.type(before - penalties[number]) * theta
        measure(size, side, inverse, none)
        target[number] = tolerance**2 * size
        conjugate_gradients(size, theta, residual, rows, weights, inverse, none, target[number], limit)
        thetas[number], before = theta, penalties[number]
        done[number] = size <= target[number]
    # the recurrence of the residual drifts from the residual along the path: look back from its end
    for number in order[::-1]:
        inverse, weights = shifted_inverse(diagonal, penalties[number], side)
        apply(residual, size, thetas[number], rows, weights, False)
        residual = side - residual
        measure(size, residual, inverse, none)
        reached = size <= 3**2 * target[number]  # squares
        done[number] &= reached
        if reached.all():
            break


@compiled
def shifted_inverse(diagonal, penalty, like):  # type: ignore[no-untyped-def]
    """M⁻¹ for one λ, and λ [column]; in the precision of ``like``."""
    inverse, blocks = diagonal.copy(), len(diagonal) // len(like)
    invert_blocks(inverse, np.full(SIMD_WIDTH, penalty), blocks)
    return inverse.astype(like.dtype), np.full(SIMD_WIDTH, penalty, like.dtype)


@compiled
def statistics(moment, diagonal, mean, target, rows):  # type: ignore[no-untyped-def]
    """What one pass over the rows says, added to zeros:

    moment : Uᵀ s_j y, [example, block, column]. diagonal : the examples' own blocks of G,
    [example, block, block, column]. mean : NᵀGN, N = I_k ⊗ 1/√n, [block, block, column],
    unless it is empty.
    """
    chosen, indices, counts, bounds, scales, scaled = rows
    blocks = np.uint64(len(scaled))
    long, stride = blocks * _W, np.uint64((scaled >= 0).sum()) * _W
    n = len(moment) / long
    s = np.ones(long)
    for row in chosen:
        y = load(target, np.uint64(row) * _W)
        for block in range(blocks):
            if scaled[block] >= 0:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * _W
                store(s, block * _W, load(scales, here))
        size = counts[bounds[row] : bounds[row + 1]].sum()
        for a in range(blocks):
            scale = load(s, a * _W)
            for b in range(blocks):
                product, pair = scale * load(s, b * _W), (a * blocks + b) * _W
                if len(mean):
                    store(mean, pair, load(mean, pair) + spread(size * size / n) * product)
                for at in range(bounds[row], bounds[row + 1]):
                    place = np.uint64(indices[at]) * long * blocks + pair
                    square = spread(counts[at] * counts[at])
                    store(diagonal, place, load(diagonal, place) + square * product)
            for at in range(bounds[row], bounds[row + 1]):
                place = np.uint64(indices[at]) * long + a * _W
                store(moment, place, load(moment, place) + spread(counts[at]) * (scale * y))


@compiled
def absolute_row_sums(out, rows):  # type: ignore[no-untyped-def]
    """|X|ᵀ|X| 1 added to zeros, [example, block, column]."""
    chosen, indices, counts, bounds, scales, scaled = rows
    blocks = np.uint64(len(scaled))
    long, stride = blocks * _W, np.uint64((scaled >= 0).sum()) * _W
    s = np.ones(long)
    for row in chosen:
        total = spread(0.0)
        for block in range(blocks):
            shift = block * _W
            if scaled[block] >= 0:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * _W
                store(s, shift, absolute(load(scales, here)))
            total += load(s, shift)
        total = spread(counts[bounds[row] : bounds[row + 1]].sum()) * total
        for block in range(blocks):
            shift = block * _W
            weighted = load(s, shift) * total
            for at in range(bounds[row], bounds[row + 1]):
                i = np.uint64(indices[at]) * long + shift
                store(out, i, load(out, i) + spread(counts[at]) * weighted)


@compiled
def invert_blocks(blocks, penalty, size):  # type: ignore[no-untyped-def]
    """D ⪰ 0 becomes (D + λI)⁻¹, in place: k × k matrices [example, block, block, column], λ [column].

    Without pivoting, but what is collinear to rounding is kept positive; what is 0 stays so.
    """
    w, k = _W, np.uint64(size)
    pivot, floor, factor = np.empty(w), np.empty(k * w), np.empty(w)
    accuracy = 50 * 2.0**-52
    for i in range(np.uint64(len(blocks)) // (k * k * w)):
        here = i * k * k * w
        for a in range(k):
            at = here + (a * k + a) * w
            for z in range(w):
                blocks[at + z] += penalty[z]
                floor[a * w + z] = accuracy * blocks[at + z]
        for p in range(k):
            at = here + (p * k + p) * w
            for z in range(w):
                largest = max(blocks[at + z], floor[p * w + z])
                pivot[z] = 1.0 / largest if largest > 0.0 else 0.0
                blocks[at + z] = pivot[z]
            for b in range(k):
                if b != p:
                    at = here + (p * k + b) * w
                    for z in range(w):
                        blocks[at + z] *= pivot[z]
            for a in range(k):
                if a == p:
                    continue
                at = here + (a * k + p) * w
                for z in range(w):
                    factor[z] = blocks[at + z]
                    blocks[at + z] *= -pivot[z]
                for b in range(k):
                    if b != p:
                        to, of = here + (a * k + b) * w, here + (p * k + b) * w
                        for z in range(w):
                            blocks[to + z] -= factor[z] * blocks[of + z]
