"""Training dynamics, step by step, and their derivatives (the equations stand in
simulators/dynamics/model.py).

Derivatives are taken forward, beside the recursion, by parameters in the order log κ, logit β, η, q, those of
log γ, those of log α. A name that begins with ``d_`` holds derivatives, its first axis is the parameter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simfluence.kernels.arguments import BETA, ETA, GAIN, KAPPA, POWER, RATES
from simfluence.kernels.compile import compiled_sums


class State(NamedTuple):
    """y [k], the gradient and its moment m [k], the gain a and its moment n; and the derivatives of each."""

    y: np.ndarray
    gradient: np.ndarray
    moment: np.ndarray
    gain: np.ndarray
    d_y: np.ndarray
    d_gradient: np.ndarray
    d_moment: np.ndarray
    d_gain: np.ndarray


@compiled_sums
def train(batches, dynamics, parameters, points):  # type: ignore[no-untyped-def]
    """Simulate the training of every run (``Batches``, ``Dynamics``, ``Parameters``); returns (X, ∂X, ρ).

    X [run, point, k] is the state x = a y after each of the steps ``points`` (ascending; a run that ended
    before keeps its last state). ∂X has the parameters before these axes. ρ [use] is the share of its first
    gradient that an example still has when a step uses it.
    """
    k, n, runs = dynamics.factors.shape[1], len(parameters.begins), len(batches.lengths)
    found, d_found = np.zeros((runs, len(points), k)), np.zeros((n, runs, len(points), k))
    residuals = np.empty(len(batches.indices))
    batch = 0
    for run in range(runs):
        state = State(
            np.zeros(k), np.zeros(k), np.zeros(k), np.array([1.0, 0.0]),
            np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, k)), np.zeros((n, 2)),
        )  # fmt: skip
        point = np.searchsorted(points, 1)
        for t in range(batches.lengths[run]):
            _set_gradient(state, batches, batch, residuals, dynamics, parameters, t)
            batch += 1
            _step(state, dynamics, parameters, run, t)
            while point < len(points) and (points[point] == t + 1 or t + 1 == batches.lengths[run]):
                found[run, point] = state.gain[0] * state.y
                for p in range(n):
                    d_found[p, run, point] = state.d_gain[p, 0] * state.y + state.gain[0] * state.d_y[p]
                point += 1
    return found, d_found, residuals


@compiled_sums
def _set_gradient(state, batches, batch, residuals, dynamics, parameters, t):  # type: ignore[no-untyped-def]
    """g = 1/|c| Σ ρ_i u_i over a batch, and its derivatives; and the residuals."""
    k, at_start, gain = len(state.y), 1.0 + np.exp(dynamics.start), state.gain[0]
    first, last = batches.bounds[batch], batches.bounds[batch + 1]
    state.gradient[:] = 0.0
    state.d_gradient[:] = 0.0
    for use in range(first, last):
        u = dynamics.factors[batches.indices[use]]
        known, d_known_power = 0.0, 0.0
        for c in range(k):
            product = u[c] * dynamics.metric[c] * state.y[c]
            known += product
            d_known_power += product * parameters.log_metric[c]
        odds = np.exp(min(dynamics.start + dynamics.feedback * gain * known, 300.0))
        residuals[use] = at_start / (1.0 + odds)
        share = residuals[use] / (last - first)
        for c in range(k):
            state.gradient[c] += share * u[c]
        slope = -share * odds / (1.0 + odds) * dynamics.feedback
        for p in range(len(parameters.begins)):
            if t < parameters.begins[p]:
                continue
            d_known = d_known_power if p == POWER else 0.0
            for c in range(k):
                d_known += u[c] * dynamics.metric[c] * state.d_y[p, c]
            d_share = state.d_gain[p, 0] * known + gain * d_known
            if p == KAPPA:
                d_share += gain * known
            for c in range(k):
                state.d_gradient[p, c] += slope * d_share * u[c]


@compiled_sums
def _step(state, dynamics, parameters, run, t):  # type: ignore[no-untyped-def]
    """The optimizer's step with the gradient g, and its derivatives."""
    k, beta, gain = len(state.y), dynamics.beta, state.gain[0]
    kept, d_beta = dynamics.kept[min(t, len(dynamics.kept) - 1)], beta * (1.0 - beta)
    correction = 1.0 - beta ** (t + 1) if dynamics.bias_correction else 1.0
    d_correction = -(t + 1) * beta**t * d_beta if dynamics.bias_correction else 0.0
    size = dynamics.rates[run, t] / correction
    along, d_along_power = 0.0, 0.0
    for c in range(k):
        product = dynamics.metric[c] * state.y[c] * state.gradient[c]
        along += product
        d_along_power += product * parameters.log_metric[c]
    gain_moment = beta * state.gain[1] + (1.0 - beta) * along
    grown = gain + dynamics.growth * gain_moment / correction
    n_rates = parameters.log_rates.shape[1]
    for p in range(len(parameters.begins)):
        if t < parameters.begins[p]:
            continue
        d_along, d_log_size, d_kept = 0.0, 0.0, 0.0
        for c in range(k):
            d_product = state.d_y[p, c] * state.gradient[c] + state.y[c] * state.d_gradient[p, c]
            d_along += dynamics.metric[c] * d_product
        if p == BETA:
            d_log_size = -d_correction / correction
        elif p == POWER:
            d_along += d_along_power
        elif RATES <= p < RATES + n_rates:
            d_log_size = parameters.log_rates[min(t, len(parameters.log_rates) - 1), p - RATES]
        elif p >= RATES + n_rates:
            own = p - RATES - n_rates
            d_kept = kept * parameters.log_kept[min(t, len(parameters.log_kept) - 1), own]
        d_size = size * (gain * d_log_size + state.d_gain[p, 0])
        d_now = d_beta if p == BETA else 0.0
        for c in range(k):
            new = beta * state.moment[c] + (1.0 - beta) * state.gradient[c]
            d_new = beta * state.d_moment[p, c] + (1.0 - beta) * state.d_gradient[p, c]
            d_new += d_now * (state.moment[c] - state.gradient[c])
            state.d_moment[p, c] = d_new
            state.d_y[p, c] = (
                kept * state.d_y[p, c] + d_kept * state.y[c] + d_size * new + size * gain * d_new
            )
        d_gain_moment = beta * state.d_gain[p, 1] + (1.0 - beta) * d_along + d_now * (state.gain[1] - along)
        state.d_gain[p, 1] = d_gain_moment
        state.d_gain[p, 0] += dynamics.growth * d_gain_moment / correction
        if p == BETA:
            state.d_gain[p, 0] -= dynamics.growth * gain_moment * d_correction / correction**2
        elif p == ETA:
            state.d_gain[p, 0] += gain_moment / correction
        if grown < GAIN[0] or grown > GAIN[1]:
            state.d_gain[p, 0] = 0.0
    for c in range(k):
        state.moment[c] = beta * state.moment[c] + (1.0 - beta) * state.gradient[c]
        state.y[c] = kept * state.y[c] + size * gain * state.moment[c]
    state.gain[0], state.gain[1] = min(max(grown, GAIN[0]), GAIN[1]), gain_moment
