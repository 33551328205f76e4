"""Conjugate gradients on a CPU, compiled: one call solves (G + λP) θ = m for a few test examples.

Vectors are flat [example, block, column], a column a system: what belongs to an example lies together.
Places are unsigned, which is what makes the compiler use whole vectors. A call's columns belong to a thread.

``rows`` are the design: (chosen, indices, counts, bounds, scales, scaled, width). chosen are the rows that
count. indices and counts are of all rows' entries, each row filled up to a multiple of four by zeros of
example 0, and begin at ``bounds``; scales are s [row, scaled block, column]; scaled [block] is the place of
a block among them, -1 for a block of ones.
"""

from __future__ import annotations

import numpy as np

from simfluence.simulators.compiled import compiled


@compiled
def add_gram(out, vectors, rows):  # type: ignore[no-untyped-def]
    """out += G v = Σ_j Uᵀ s_j (Σ_l s_l U v_l), row by row: nothing in between is kept."""
    chosen, indices, counts, bounds, scales, scaled, width = rows
    w, blocks = np.uint64(width), len(scaled)
    long, stride = np.uint64(blocks) * w, np.uint64((scaled >= 0).sum()) * w
    sums, total = np.empty(long, vectors.dtype), np.empty(w, vectors.dtype)
    for row in chosen:
        start, stop = bounds[row], bounds[row + 1]
        sums[:] = 0
        for at in range(start, stop, 4):
            i, j = np.uint64(indices[at]) * long, np.uint64(indices[at + 1]) * long
            k, m = np.uint64(indices[at + 2]) * long, np.uint64(indices[at + 3]) * long
            a, b, c, d = counts[at], counts[at + 1], counts[at + 2], counts[at + 3]
            for z in range(long):
                first = a * vectors[i + z] + b * vectors[j + z]
                sums[z] += first + (c * vectors[k + z] + d * vectors[m + z])
        total[:] = 0
        for block in range(blocks):
            shift = np.uint64(block) * w
            if scaled[block] < 0:
                for z in range(w):
                    total[z] += sums[shift + z]
            else:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * w
                for z in range(w):
                    total[z] += scales[here + z] * sums[shift + z]
        for block in range(blocks):
            shift = np.uint64(block) * w
            if scaled[block] < 0:
                for z in range(w):
                    sums[shift + z] = total[z]
            else:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * w
                for z in range(w):
                    sums[shift + z] = scales[here + z] * total[z]
        for at in range(start, stop):
            a, i = counts[at], np.uint64(indices[at]) * long
            if a != 0.0:
                for z in range(long):
                    out[i + z] += a * sums[z]


@compiled
def block_means(vectors, blocks, width):  # type: ignore[no-untyped-def]
    """The mean over examples, [block × column]."""
    long = np.uint64(blocks * width)
    n = np.uint64(len(vectors)) // long
    means = np.zeros(long, np.float64)
    for i in range(n):
        for z in range(long):
            means[z] += vectors[i * long + z]
    return (means / n).astype(vectors.dtype)


@compiled
def apply(out, vectors, rows, penalty, pooled):  # type: ignore[no-untyped-def]
    """out = (G + λP) v; ``penalty`` is λ [column], P = I or, pooled, v less the block's mean."""
    blocks, w = len(rows[5]), np.uint64(rows[6])
    means = block_means(vectors, blocks, rows[6]) if pooled else np.zeros(blocks * rows[6], vectors.dtype)
    for i in range(np.uint64(len(vectors)) // (np.uint64(blocks) * w)):
        for block in range(np.uint64(blocks)):
            here, mean = (i * np.uint64(blocks) + block) * w, block * w
            for z in range(w):
                out[here + z] = penalty[z] * (vectors[here + z] - means[mean + z])
    if pooled:  # rounding leaves an average, which the preconditioner would blow up
        means = block_means(out, blocks, rows[6])
        for i in range(np.uint64(len(vectors)) // np.uint64(len(means))):
            for z in range(np.uint64(len(means))):
                out[i * np.uint64(len(means)) + z] -= means[z]
    add_gram(out, vectors, rows)


@compiled
def advance(  # type: ignore[no-untyped-def]
    out, size, found, residual, direction, applied, step, inverse, average
):
    """θ += a v, r −= a (G + λP) v, then out = M⁻¹ r and size = rᵀM⁻¹ r [column], for steps a [column].

    inverse : the examples' own part of M⁻¹, [example, block, block, column].
    average : that of the blocks' averages [block, block, column], for pooled systems; else empty.
    """
    w = np.uint64(len(step))
    k = np.uint64(len(inverse)) // np.uint64(len(residual))
    long = k * w
    size[:] = 0.0
    for i in range(np.uint64(len(residual)) // long):
        here = i * long
        for block in range(k):
            at = here + block * w
            for z in range(w):
                found[at + z] += step[z] * direction[at + z]
            for z in range(w):
                residual[at + z] -= step[z] * applied[at + z]
        for a in range(k):
            at, first = here + a * w, (here + a * w) * k
            for z in range(w):
                out[at + z] = inverse[first + z] * residual[here + z]
            for b in range(np.uint64(1), k):
                for z in range(w):
                    out[at + z] += inverse[first + b * w + z] * residual[here + b * w + z]
            for z in range(w):
                size[z] += residual[at + z] * out[at + z]
    if len(average):
        means, pull = block_means(residual, k, w), np.zeros(long, out.dtype)
        for a in range(k):
            for b in range(k):
                for z in range(w):
                    pull[a * w + z] += average[(a * k + b) * w + z] * means[b * w + z]
        for i in range(np.uint64(len(residual)) // long):
            for a in range(k):
                for z in range(w):
                    out[i * long + a * w + z] += pull[a * w + z]
                    size[z] += residual[i * long + a * w + z] * pull[a * w + z]


@compiled
def conjugate_gradients(  # type: ignore[no-untyped-def]
    size, found, residual, rows, penalty, inverse, average, target, limit
):
    """Go on from θ in ``found`` and its residual r = m − (G + λP) θ in ``residual``; both are moved.

    size : where to write what is left of rᵀM⁻¹r, [column]. target : for that. limit : of iterations.
    Returns the iterations taken.
    """
    w, length = np.uint64(len(penalty)), len(residual)
    direction, applied = np.zeros(length, residual.dtype), np.zeros(length, residual.dtype)
    z_, step = np.zeros(length, residual.dtype), np.zeros(len(penalty), residual.dtype)
    new, curvature = np.zeros(len(penalty)), np.zeros(len(penalty))
    advance(z_, size, found, residual, direction, applied, step, inverse, average)
    for iteration in range(limit + 1):
        for i in range(np.uint64(length) // w):  # step is 0 at first: z
            for z in range(w):
                direction[i * w + z] = step[z] * direction[i * w + z] + z_[i * w + z]
        active = 0
        for z in range(w):
            active += size[z] > target[z]
        if active == 0 or iteration == limit:
            return iteration
        apply(applied, direction, rows, penalty, len(average) > 0)
        curvature[:] = 0.0
        for i in range(np.uint64(length) // w):
            for z in range(w):
                curvature[z] += direction[i * w + z] * applied[i * w + z]
        for z in range(w):
            moves = size[z] > target[z] and curvature[z] > 0.0
            step[z] = size[z] / curvature[z] if moves else 0.0
        advance(z_, new, found, residual, direction, applied, step, inverse, average)
        for z in range(w):
            moves = size[z] > target[z]
            step[z] = new[z] / size[z] if moves else 0.0
            size[z] = new[z] if moves else size[z]
    return limit


@compiled
def statistics(moment, diagonal, mean, target, rows):  # type: ignore[no-untyped-def]
    """What one pass over the rows says, added to zeros:

    moment : Uᵀ s_j y, [example, block, column]. diagonal : the examples' own blocks of G,
    [example, block, block, column]. mean : NᵀGN, N = I_k ⊗ 1/√n, [block, block, column],
    unless it is empty.
    """
    chosen, indices, counts, bounds, scales, scaled, width = rows
    w, k = np.uint64(width), np.uint64(len(scaled))
    stride, n = np.uint64((scaled >= 0).sum()) * w, len(moment) / (k * w)
    s, products = np.ones(k * w), np.empty(k * k * w)
    for row in chosen:
        y = np.uint64(row) * w
        for block in range(k):
            if scaled[block] >= 0:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * w
                for z in range(w):
                    s[block * w + z] = scales[here + z]
        size = counts[bounds[row] : bounds[row + 1]].sum()
        for a in range(k):
            for b in range(k):
                pair = (a * k + b) * w
                for z in range(w):
                    products[pair + z] = s[a * w + z] * s[b * w + z]
                if len(mean):
                    for z in range(w):
                        mean[pair + z] += size * size / n * products[pair + z]
        for at in range(bounds[row], bounds[row + 1]):
            c, i = counts[at], np.uint64(indices[at]) * k * w
            if c == 0.0:
                continue
            for a in range(k):
                for z in range(w):
                    moment[i + a * w + z] += c * s[a * w + z] * target[y + z]
            for z in range(k * k * w):
                diagonal[i * k + z] += c * c * products[z]


@compiled
def absolute_row_sums(out, rows):  # type: ignore[no-untyped-def]
    """|X|ᵀ|X| 1 added to zeros, [example, block, column]."""
    chosen, indices, counts, bounds, scales, scaled, width = rows
    w, k = np.uint64(width), np.uint64(len(scaled))
    stride = np.uint64((scaled >= 0).sum()) * w
    s, weight = np.ones(k * w), np.empty(w)
    for row in chosen:
        weight[:] = 0.0
        for block in range(k):
            if scaled[block] >= 0:
                here = np.uint64(row) * stride + np.uint64(scaled[block]) * w
                for z in range(w):
                    s[block * w + z] = abs(scales[here + z])
            for z in range(w):
                weight[z] += s[block * w + z]
        size = counts[bounds[row] : bounds[row + 1]].sum()
        for at in range(bounds[row], bounds[row + 1]):
            c, i = counts[at], np.uint64(indices[at]) * k * w
            for a in range(k):
                for z in range(w):
                    out[i + a * w + z] += c * size * s[a * w + z] * weight[z]


@compiled
def invert_blocks(blocks, penalty, size):  # type: ignore[no-untyped-def]
    """D ⪰ 0 becomes (D + λI)⁻¹, in place: k × k matrices [example, block, block, column], λ [column].

    Without pivoting, but what is collinear to rounding is kept positive; what is 0 stays so.
    """
    w, k = np.uint64(len(penalty)), np.uint64(size)
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
