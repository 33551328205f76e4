"""Averages of what batches consumed, as an optimizer with momentum makes them (analysis/METHODS.md,
"Momentum").
"""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled


@compiled
def summed_counts(examples, offsets, counts, beta, bias_correction, rates, grid, n):  # type: ignore[no-untyped-def]
    """Σ_{t in an interval} r_t m̂_t for every interval of a grid of steps, float [interval, n].

        m_t = β m_{t-1} + (1 − β) u_t,     m̂_t = m_t / (1 − βᵗ) with bias correction, else m_t

    examples, offsets, counts : u of one run, the columns, rows and entries of a sparse [step, n].
    rates : r [step]. grid : int [point], ascending; an interval is (g_j, g_{j+1}].
    """
    rows = np.zeros((len(grid) - 1, n))
    moment = np.zeros(n)
    forgotten = 1.0
    row = 0
    for t in range(min(len(offsets) - 1, grid[-1])):
        while t >= grid[row + 1]:
            row += 1
        for i in range(n):
            moment[i] *= beta
        for use in range(offsets[t], offsets[t + 1]):
            moment[examples[use]] += (1.0 - beta) * counts[use]
        forgotten *= beta
        share = rates[t] / (1.0 - forgotten) if bias_correction else rates[t]
        out = rows[row]
        for i in range(n):
            out[i] += share * moment[i]
    return rows


@compiled
def average(values, beta, bias_correction):  # type: ignore[no-untyped-def]
    """m̂ of any series [step, column], in place."""
    steps, columns = values.shape
    moment = np.zeros(columns)
    forgotten = 1.0
    for t in range(steps):
        forgotten *= beta
        share = 1.0 / (1.0 - forgotten) if bias_correction else 1.0
        for c in range(columns):
            moment[c] = beta * moment[c] + (1.0 - beta) * values[t, c]
            values[t, c] = share * moment[c]
