"""The loop of surrogate.py, compiled."""

from __future__ import annotations

import numpy as np

from simfluence.simulators.compiled import compiled


@compiled
def replay(  # type: ignore[no-untyped-def]
    indices, bounds, lengths, vectors, rates, memory, corrected, feedback, start, points
):
    """x [run, point, k] after the steps ``points`` (ascending), after a run's end where it ended; ρ [use].

    indices, bounds : the batches of all runs, one after the other; lengths : their steps [run].
    vectors : u [example, k]. The rest as in ``Surrogate``.
    """
    k = vectors.shape[1]
    found, left = np.zeros((len(lengths), len(points), k)), np.empty(len(indices))
    position, moment = np.empty(k), np.empty(k)
    batch = 0
    for run in range(len(lengths)):
        position[:] = 0.0
        moment[:] = 0.0
        forgotten, point = 1.0, 0
        while point < len(points) and points[point] == 0:
            point += 1
        for t in range(lengths[run]):
            first, last = bounds[batch], bounds[batch + 1]
            batch += 1
            for c in range(k):
                moment[c] *= memory
            for at in range(first, last):
                u = vectors[indices[at]]
                known = 0.0
                for c in range(k):
                    known += u[c] * position[c]
                left[at] = (1.0 + np.exp(start)) / (1.0 + np.exp(start + feedback * known))
                share = left[at] * (1.0 - memory) / (last - first)
                for c in range(k):
                    moment[c] += share * u[c]
            forgotten *= memory
            step = rates[min(t, len(rates) - 1)]
            if corrected:
                step /= 1.0 - forgotten
            for c in range(k):
                position[c] += step * moment[c]
            if point < len(points) and points[point] == t + 1:
                found[run, point] = position
                point += 1
        while point < len(points):
            found[run, point] = position
            point += 1
    return found, left
