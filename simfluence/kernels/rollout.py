"""The loops of rollout.py, compiled.

Tables are flat, [train + 1, column] row by row with a last row of zeros, and places in them unsigned: it
is what makes the compiler use whole vectors.
"""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled


@compiled
def step_of_four(now, slope, intercept, i, j, k, m, weight, low, high):  # type: ignore[no-untyped-def]
    """L_t from L_{t-1} in ``now`` [column], for four rows that begin at i, j, k, m; NaN stays NaN."""
    for z in range(np.uint64(len(now))):
        value = now[z]
        if slope is not None:
            value *= 1.0 + weight * ((slope[i + z] + slope[j + z]) + (slope[k + z] + slope[m + z]))
        if intercept is not None:
            value += weight * ((intercept[i + z] + intercept[j + z]) + (intercept[k + z] + intercept[m + z]))
        value = low if value < low else value
        now[z] = high if value > high else value


@compiled
def add_four(out, table, i, j, k, m):  # type: ignore[no-untyped-def]
    """The sum of four rows, added to ``out`` [column]."""
    for z in range(np.uint64(len(out))):
        out[z] += (table[i + z] + table[j + z]) + (table[k + z] + table[m + z])


@compiled
def step_of_sums(now, alpha, beta, weight, low, high):  # type: ignore[no-untyped-def]
    """L_t from L_{t-1} in ``now`` and from Σ A', Σ B, which it leaves at 0."""
    for z in range(np.uint64(len(now))):
        value = (1.0 + weight * alpha[z]) * now[z] + weight * beta[z]
        alpha[z] = beta[z] = 0.0
        value = low if value < low else value
        now[z] = high if value > high else value


@compiled
def roll_out_into(  # type: ignore[no-untyped-def]
    losses, columns, slope, intercept, examples, bounds, begins, weights, low, high
):
    """L_t = (1 + w_t Σ_{i∈c_t} A'_i) L_{t-1} + w_t Σ_{i∈c_t} B_i, in a range of columns.

    losses : [run, step + 1, column], step 0 is there. columns : (first, last + 1).
    slope, intercept : A', B; None for no such effect.
    examples : the batches of all runs, each filled up to a multiple of four by the row of zeros; not empty.
    bounds : where batches begin in ``examples``, and their end. weights : w. Both of all runs in turn.
    begins : [run + 1], a run's first batch.
    """
    runs, points, total = losses.shape[0], losses.shape[1], np.uint64(losses.shape[2])
    left, width = np.uint64(columns[0]), np.uint64(columns[1] - columns[0])
    flat = losses.reshape(-1)
    now, alpha, beta = np.empty(width), np.zeros(width), np.zeros(width)
    for run in range(runs):
        out = np.uint64(run * points) * total + left
        for z in range(width):
            now[z] = flat[out + z]
        for step in range(begins[run], begins[run] + points - 1):
            if step < begins[run + 1]:
                start, stop, weight = bounds[step], bounds[step + 1], weights[step]
                for at in range(start, stop, 4):
                    i = np.uint64(examples[at]) * total + left
                    j = np.uint64(examples[at + 1]) * total + left
                    k = np.uint64(examples[at + 2]) * total + left
                    m = np.uint64(examples[at + 3]) * total + left
                    if stop - start == 4:
                        step_of_four(now, slope, intercept, i, j, k, m, weight, low, high)
                        break
                    if slope is not None:
                        add_four(alpha, slope, i, j, k, m)
                    if intercept is not None:
                        add_four(beta, intercept, i, j, k, m)
                else:
                    step_of_sums(now, alpha, beta, weight, low, high)
            out += total
            for z in range(width):
                flat[out + z] = now[z]


@compiled
def roll_out_orders_into(  # type: ignore[no-untyped-def]
    losses, columns, slopes, intercept, examples, bounds, begins, weights, low, high
):
    """L_t = L_{t-1} + w_t Σ_{i∈c_t} (Σ_j A_ij L_{t-j} + B_i), in a range of columns; L before L_0 is L_0.

    slopes : A_j, [order, table], a table as above; those of L_{t-1} are A'. The others are as above.
    """
    orders, points, total = len(slopes), losses.shape[1], np.uint64(losses.shape[2])
    left, width = np.uint64(columns[0]), np.uint64(columns[1] - columns[0])
    flat = losses.reshape(-1)
    change, alpha = np.empty(width), np.empty(width)
    for run in range(losses.shape[0]):
        first = np.uint64(run * points) * total + left
        for step in range(points - 1):
            here = first + np.uint64(step) * total
            change[:] = 0.0
            if begins[run] + step < begins[run + 1]:
                at = begins[run] + step
                start, stop, weight = bounds[at], bounds[at + 1], weights[at]
                for order in range(orders):
                    past = first + np.uint64(max(step - order, 0)) * total
                    alpha[:] = 0.0
                    for place in range(start, stop):
                        i = np.uint64(examples[place]) * total + left
                        for z in range(width):
                            alpha[z] += slopes[order, i + z]
                    for z in range(width):
                        change[z] += weight * alpha[z] * flat[past + z]
                if intercept is not None:
                    for place in range(start, stop):
                        i = np.uint64(examples[place]) * total + left
                        for z in range(width):
                            change[z] += weight * intercept[i + z]
            for z in range(width):
                value = flat[here + z] + change[z]
                value = low if value < low else value
                flat[here + total + z] = high if value > high else value
