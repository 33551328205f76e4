"""The loop of dynamics.py, compiled."""

from __future__ import annotations

import numpy as np

from simfluence.kernels.compile import compiled

_GAIN = (0.1, 10.0)  # what a may be: two layers can run away where rates are absurd


@compiled
def replay(  # type: ignore[no-untyped-def]
    indices, bounds, lengths, vectors, rates, kept, momentum, corrected, feedback, growth, start, points
):
    """x [run, point, k] after the steps ``points`` (ascending), after a run's end where it ended; ρ [use].

    indices, bounds : the batches of all runs, one after the other; lengths : their steps [run].
    vectors : u [example, k]. The rest as in ``TrainingDynamics``.
    """
    k = vectors.shape[1]
    found, left = np.zeros((len(lengths), len(points), k)), np.empty(len(indices))
    weights, gradient, moment = np.empty(k), np.empty(k), np.empty(k)
    batch = 0
    for run in range(len(lengths)):
        weights[:] = 0.0
        moment[:] = 0.0
        gain, gain_moment = 1.0, 0.0
        forgotten, point = 1.0, 0
        while point < len(points) and points[point] == 0:
            point += 1
        for t in range(lengths[run]):
            first, last = bounds[batch], bounds[batch + 1]
            batch += 1
            gradient[:] = 0.0
            for at in range(first, last):
                u = vectors[indices[at]]
                known = 0.0
                for c in range(k):
                    known += u[c] * weights[c]
                left[at] = (1.0 + np.exp(start)) / (1.0 + np.exp(start + feedback * gain * known))
                share = left[at] / (last - first)
                for c in range(k):
                    gradient[c] += share * u[c]
            forgotten *= momentum
            correction = 1.0 - forgotten if corrected else 1.0
            now = min(t, len(rates) - 1)
            step = rates[now] * gain / correction
            along = 0.0
            for c in range(k):
                along += weights[c] * gradient[c]
                moment[c] = momentum * moment[c] + (1.0 - momentum) * gradient[c]
                weights[c] = kept[now] * weights[c] + step * moment[c]
            gain_moment = momentum * gain_moment + (1.0 - momentum) * along
            gain = min(max(gain + growth * gain_moment / correction, _GAIN[0]), _GAIN[1])
            if point < len(points) and points[point] == t + 1:
                found[run, point] = gain * weights
                point += 1
        while point < len(points):
            found[run, point] = gain * weights
            point += 1
    return found, left
