"""Training dynamics, step by step, and their derivatives (the equations stand in
simulators/dynamics/model.py).

State of a run: y [k], its moment m [k], the gain a and its moment n. Arguments that the loops share:

    indices, bounds, lengths : the batches of all runs, one after the other; ``lengths`` are the steps of each
        run
    factors : u [example, k], before the power of the spectrum. metric : σ^{2q} [k]
    rates, kept : γ [run, step] and α [step]. points : int, ascending: the steps after which the state is
        wanted
"""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled_sums

GAIN = (0.1, 10.0)
"""Bounds of the gain a: two layers can run away where rates are absurd."""


@compiled_sums
def train(  # type: ignore[no-untyped-def]
    indices,
    bounds,
    lengths,
    factors,
    metric,
    rates,
    kept,
    beta,
    bias_correction,
    feedback,
    growth,
    start,
    points,
):
    """Simulate the training of every run; return its states [run, point, k] and the residuals [use].

    A state is x = a y, the gain times the linear state, after the steps listed in ``points``; a run that
    ended before such a step keeps its last state. A residual ρ is the share of its first gradient that an
    example still has when a step uses it. analysis/METHODS.md has the equations.
    """
    k = factors.shape[1]
    found, residuals = np.zeros((len(lengths), len(points), k)), np.empty(len(indices))
    y, gradient, moment = np.empty(k), np.empty(k), np.empty(k)
    at_start = 1.0 + np.exp(start)
    batch = 0
    for run in range(len(lengths)):
        y[:] = 0.0
        moment[:] = 0.0
        gain, gain_moment, forgotten, point = 1.0, 0.0, 1.0, 0
        while point < len(points) and points[point] == 0:
            point += 1
        for t in range(lengths[run]):
            first, last = bounds[batch], bounds[batch + 1]
            batch += 1
            gradient[:] = 0.0
            for use in range(first, last):
                u = factors[indices[use]]
                known = 0.0
                for c in range(k):
                    known += u[c] * metric[c] * y[c]
                residuals[use] = at_start / (1.0 + np.exp(min(start + feedback * gain * known, 300.0)))
                share = residuals[use] / (last - first)
                for c in range(k):
                    gradient[c] += share * u[c]
            forgotten *= beta
            correction = 1.0 - forgotten if bias_correction else 1.0
            now = min(t, len(kept) - 1)
            size = rates[run, t] * gain / correction
            along = 0.0
            for c in range(k):
                along += metric[c] * y[c] * gradient[c]
                moment[c] = beta * moment[c] + (1.0 - beta) * gradient[c]
                y[c] = kept[now] * y[c] + size * moment[c]
            gain_moment = beta * gain_moment + (1.0 - beta) * along
            gain = min(max(gain + growth * gain_moment / correction, GAIN[0]), GAIN[1])
            if point < len(points) and points[point] == t + 1:
                found[run, point] = gain * y
                point += 1
        while point < len(points):
            found[run, point] = gain * y
            point += 1
    return found, residuals


@compiled_sums
def train_with_derivatives(  # type: ignore[no-untyped-def]
    indices,
    bounds,
    lengths,
    factors,
    metric,
    rates,
    kept,
    beta,
    bias_correction,
    feedback,
    growth,
    start,
    points,
    log_metric,
    d_log_rates,
    d_log_kept,
    begins,
):
    """(x, ∂x/∂parameter [parameter, run, point, k]), forward derivatives beside the recursion of ``train``.

    The parameters are log κ, logit β, η, q, then those of log γ, then those of log α.

    log_metric : ∂ log σ^{2q} / ∂q = 2 log σ [k].
    d_log_rates, d_log_kept : [step, parameter of log γ] and [step, parameter of log α], their derivatives.
    begins : int [parameter], the first step at which a parameter has an effect.
    """
    k, n_rates, n_kept = factors.shape[1], d_log_rates.shape[1], d_log_kept.shape[1]
    n = 4 + n_rates + n_kept
    found = np.zeros((len(lengths), len(points), k))
    derivatives = np.zeros((n, len(lengths), len(points), k))
    y, gradient, moment = np.empty(k), np.empty(k), np.empty(k)
    dy, d_gradient, d_moment = np.empty((n, k)), np.empty((n, k)), np.empty((n, k))
    d_gain, d_gain_moment = np.empty(n), np.empty(n)
    at_start, d_beta = 1.0 + np.exp(start), beta * (1.0 - beta)
    batch = 0
    for run in range(len(lengths)):
        y[:] = 0.0
        moment[:] = 0.0
        dy[:] = 0.0
        d_moment[:] = 0.0
        d_gain[:] = 0.0
        d_gain_moment[:] = 0.0
        gain, gain_moment, forgotten, point = 1.0, 0.0, 1.0, 0
        while point < len(points) and points[point] == 0:
            point += 1
        for t in range(lengths[run]):
            first, last = bounds[batch], bounds[batch + 1]
            batch += 1
            gradient[:] = 0.0
            d_gradient[:] = 0.0
            for use in range(first, last):
                u = factors[indices[use]]
                known, d_known_power = 0.0, 0.0
                for c in range(k):
                    product = u[c] * metric[c] * y[c]
                    known += product
                    d_known_power += product * log_metric[c]
                odds = np.exp(min(start + feedback * gain * known, 300.0))
                residual = at_start / (1.0 + odds)
                share = residual / (last - first)
                for c in range(k):
                    gradient[c] += share * u[c]
                slope = -share * odds / (1.0 + odds) * feedback
                for p in range(n):
                    if t < begins[p]:
                        continue
                    d_known = 0.0
                    for c in range(k):
                        d_known += u[c] * metric[c] * dy[p, c]
                    if p == 3:
                        d_known += d_known_power
                    d_share = d_gain[p] * known + gain * d_known
                    if p == 0:
                        d_share += gain * known
                    d_share *= slope
                    for c in range(k):
                        d_gradient[p, c] += d_share * u[c]
            before = forgotten
            forgotten *= beta
            correction = 1.0 - forgotten if bias_correction else 1.0
            d_correction = -(t + 1) * before * d_beta if bias_correction else 0.0
            now = min(t, len(kept) - 1)
            size = rates[run, t] / correction
            along, d_along_power = 0.0, 0.0
            for c in range(k):
                product = metric[c] * y[c] * gradient[c]
                along += product
                d_along_power += product * log_metric[c]
            for p in range(n):
                if t < begins[p]:
                    continue
                d_along = d_along_power if p == 3 else 0.0
                for c in range(k):
                    d_along += metric[c] * (dy[p, c] * gradient[c] + y[c] * d_gradient[p, c])
                d_log_size = 0.0
                if p == 1:
                    d_log_size = -d_correction / correction
                elif 4 <= p < 4 + n_rates:
                    d_log_size = d_log_rates[min(t, len(d_log_rates) - 1), p - 4]
                d_keep = kept[now] * d_log_kept[now, p - 4 - n_rates] if p >= 4 + n_rates else 0.0
                d_size = size * (gain * d_log_size + d_gain[p])
                for c in range(k):
                    d_moment[p, c] = beta * d_moment[p, c] + (1.0 - beta) * d_gradient[p, c]
                    if p == 1:
                        d_moment[p, c] += d_beta * (moment[c] - gradient[c])
                    new = beta * moment[c] + (1.0 - beta) * gradient[c]
                    dy[p, c] = (
                        kept[now] * dy[p, c] + d_keep * y[c] + d_size * new + size * gain * d_moment[p, c]
                    )
                d_gain_moment[p] = beta * d_gain_moment[p] + (1.0 - beta) * d_along
                if p == 1:
                    d_gain_moment[p] += d_beta * (gain_moment - along)
            gain_moment = beta * gain_moment + (1.0 - beta) * along
            grown = gain + growth * gain_moment / correction
            for p in range(n):
                if t < begins[p]:
                    continue
                d_gain[p] += growth * d_gain_moment[p] / correction
                if p == 1:
                    d_gain[p] -= growth * gain_moment * d_correction / correction**2
                elif p == 2:
                    d_gain[p] += gain_moment / correction
                if grown < GAIN[0] or grown > GAIN[1]:
                    d_gain[p] = 0.0
            for c in range(k):
                moment[c] = beta * moment[c] + (1.0 - beta) * gradient[c]
                y[c] = kept[now] * y[c] + size * gain * moment[c]
            gain = min(max(grown, GAIN[0]), GAIN[1])
            if point < len(points) and points[point] == t + 1:
                found[run, point] = gain * y
                for p in range(n):
                    for c in range(k):
                        derivatives[p, run, point, c] = d_gain[p] * y[c] + gain * dy[p, c]
                point += 1
        while point < len(points):
            found[run, point] = gain * y
            for p in range(n):
                for c in range(k):
                    derivatives[p, run, point, c] = d_gain[p] * y[c] + gain * dy[p, c]
            point += 1
    return found, derivatives
