"""Training dynamics, pulled back: what one more use of an example changes at the end, to first order.

One pass forward along a curriculum keeps the states; one pass backward takes the derivatives of the end by
every state (adjoints), and from them by how much each use counts. The equations stand in model.py; a bar is
the derivative of what is asked for by what it stands over:

    m̄_t += γ_t a_{t-1} / (1 − βᵗ) ȳ_t,      ȳ_{t-1} += α_t ȳ_t,      ā_{t-1} += γ_t / (1 − βᵗ) ⟨m_t, ȳ_t⟩
    n̄_t += η / (1 − βᵗ) ā_t,                ā_{t-1} += ā_t
    ḡ_t = (1 − β) (m̄_t + n̄_t Λ y_{t-1}),    ȳ_{t-1} += (1 − β) n̄_t Λ g_t,    m̄_{t-1} = β m̄_t,  n̄_{t-1} = β n̄_t
    ρ̄_i = ⟨ḡ_t, u_i⟩ / |c_t| + the derivative by ρ_i itself, through which
    ȳ_{t-1} and ā_{t-1} take part in        ρ_i = σ(−f_i) / σ(−f_0),    f_i = f_0 + κ a ⟨u_i, Λ y⟩

A use that counts ω in place of 1 multiplies its ρ_i: the derivative by ω is ρ_i ρ̄_i.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.kernels.arguments import GAIN
from simfluence.simulators.dynamics.model import TrainingDynamics

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class States:
    """A training, step by step: y, Λ y, m and g [step, k], the gain a and its next value before it is bounded
    [step]; all as they are in step t, y and a before it, m and g of it. y_end, a_end : after the last step.
    """

    y: Array
    moment: Array
    gradient: Array
    gain: Array
    grown: Array
    y_end: Array
    a_end: float


def states(dynamics: TrainingDynamics, curriculum: Curriculum, gammas: Array) -> States:
    """The states of a training. gammas : γ [step]."""
    steps, k = len(curriculum), dynamics.train.shape[1]
    y, moments, gradients = np.zeros((steps + 1, k)), np.zeros((steps, k)), np.zeros((steps, k))
    gains, grown = np.ones(steps + 1), np.ones(steps)
    beta, moment, gain_moment = dynamics.momentum.beta, np.zeros(k), 0.0
    for t, batch in enumerate(curriculum):
        u = dynamics.train[batch]
        metric_y = dynamics.metric * y[t]
        gradients[t] = residuals(dynamics, u @ metric_y, gains[t]) @ u / len(batch)
        moment = beta * moment + (1 - beta) * gradients[t]
        gain_moment = beta * gain_moment + (1 - beta) * float(metric_y @ gradients[t])
        correction = 1 - beta ** (t + 1) if dynamics.momentum.bias_correction else 1.0
        moments[t] = moment
        y[t + 1] = _kept(dynamics, t) * y[t] + gammas[t] / correction * gains[t] * moment
        grown[t] = gains[t] + dynamics.growth * gain_moment / correction
        gains[t + 1] = min(max(grown[t], GAIN[0]), GAIN[1])
    return States(y[:-1], moments, gradients, gains[:-1], grown, y[-1], float(gains[-1]))


def residuals(dynamics: TrainingDynamics, known: Array, gain: float) -> Array:
    """ρ of examples with these ⟨u_i, Λ y⟩."""
    odds = np.exp(np.minimum(dynamics.start + dynamics.feedback * gain * known, 300.0))
    return np.asarray((1 + np.exp(dynamics.start)) / (1 + odds), np.float64)


def pull_back(
    dynamics: TrainingDynamics,
    curriculum: Curriculum,
    gammas: Array,
    end: Array,
    own: Array | None,
    asked: tuple[IntArray, IntArray],
    own_asked: Array | None,
) -> Array:
    """The derivatives of several targets by how much uses count, float [asked use, target].

    Parameters
    ----------
    gammas : γ [step].
    end : float [target, k], the derivatives of the targets by the last state x = a y.
    own, own_asked : float [use, target] and [asked use, target], the derivatives of the targets by ρ of the
        uses of the curriculum and of those asked about, where targets depend on ρ beside the last state.
    asked : steps and examples of the uses that are asked about, which need not be in the curriculum.
    """
    found = states(dynamics, curriculum, gammas)
    steps, examples = asked
    order = np.argsort(steps, kind="stable")
    bounds = np.searchsorted(steps[order], np.arange(len(curriculum) + 1))
    beta, metric = dynamics.momentum.beta, dynamics.metric
    y_bar = found.a_end * end
    a_bar = end @ found.y_end
    m_bar, n_bar = np.zeros_like(end), np.zeros(len(end))
    answers = np.zeros((len(steps), len(end)))
    for t in range(len(curriculum) - 1, -1, -1):
        batch, gain, metric_y = curriculum[t], found.gain[t], metric * found.y[t]
        correction = 1 - beta ** (t + 1) if dynamics.momentum.bias_correction else 1.0
        size = gammas[t] / correction
        if not GAIN[0] <= found.grown[t] <= GAIN[1]:
            a_bar = np.zeros_like(a_bar)
        n_bar = n_bar + dynamics.growth / correction * a_bar
        m_bar = m_bar + size * gain * y_bar
        a_bar = a_bar + size * (y_bar @ found.moment[t])
        g_bar = (1 - beta) * (m_bar + n_bar[:, None] * metric_y)
        y_bar = _kept(dynamics, t) * y_bar + (1 - beta) * n_bar[:, None] * (metric * found.gradient[t])
        m_bar, n_bar = beta * m_bar, beta * n_bar

        rows = order[bounds[t] : bounds[t + 1]]
        if len(rows):
            u = dynamics.train[examples[rows]]
            rho_bar = u @ g_bar.T / len(batch) + (0.0 if own_asked is None else own_asked[rows])
            answers[rows] = residuals(dynamics, u @ metric_y, gain)[:, None] * rho_bar

        u = dynamics.train[batch]
        known = u @ metric_y
        first, last = curriculum.offsets[t : t + 2]
        rho_bar = u @ g_bar.T / len(batch) + (0.0 if own is None else own[first:last])
        odds = np.exp(np.minimum(dynamics.start + dynamics.feedback * gain * known, 300.0))
        slope = -residuals(dynamics, known, gain) * odds / (1 + odds) * dynamics.feedback
        f_bar = rho_bar * slope[:, None]
        y_bar = y_bar + gain * (f_bar.T @ u) * metric
        a_bar = a_bar + known @ f_bar
    return answers


def _kept(dynamics: TrainingDynamics, t: int) -> float:
    return float(dynamics.kept[min(t, len(dynamics.kept) - 1)])
