"""A fitted effects model, and the losses that it predicts (the equation stands in regression.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.links import LOSS_FLOOR, Link, link, unlink
from simfluence.simulators.effects.momentum import Momentum
from simfluence.simulators.state import saved

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SCORE_ORDERS, INITIAL_ORDERS = 3, 2
"""How many Legendre polynomials of training progress the coefficients of scores and initial losses have."""


@saved
@dataclass(frozen=True)
class EffectsSettings:
    """What is fixed before an effects model is fitted. See ``EffectsSimulator`` for the meanings."""

    momentum: Momentum
    noise_correlation: float = 0.9
    decay: float = 0.1
    link: Link = "log_odds"
    with_rates: bool = True


@saved
@dataclass(frozen=True)
class EffectsModel:
    """What a fit found. Everything is on the scale of the link.

    effects : B [k, train, test], coefficients of the progress basis.
    center : float [train], what the average recorded step consumes. batch_size : the usual one.
    scores : S [array, train, test]. coefficients : c [q, test], of the scores, then of the initial losses.
    drift : μ [interval, test]. grid : int [point].
    average : mean over the runs [point, test]. initial : mean initial losses [test].
    calibration : [point], see ``calibrated`` in regression.py.
    prior_average, prior_slope : Ḡ [step, test] and c [point] of the prior prediction; empty without one.
    """

    settings: EffectsSettings
    effects: Array
    center: Array
    batch_size: float
    scores: Array
    coefficients: Array
    drift: Array
    grid: npt.NDArray[np.int64]
    average: Array
    initial: Array
    calibration: Array
    prior_average: Array
    prior_slope: Array

    @property
    def total(self) -> int:
        """The steps of the longest recorded run."""
        return int(self.grid[-1])

    @property
    def with_initial(self) -> bool:
        """Whether initial losses that differ from the mean are a predictor."""
        return len(self.coefficients) > SCORE_ORDERS * len(self.scores)

    def simulate(
        self,
        curricula: Sequence[Curriculum],
        initial_loss: Array,
        rates: Array,
        prior: Array | None = None,
        use_weights: Sequence[Array] | None = None,
    ) -> Array:
        """Losses [run, step + 1, test]. After the recorded steps the drift stands still.

        rates : relative learning rates [run, step]. prior : G, the losses of a prior prediction, [run, step +
            1,
        test], if the model was fitted with one. use_weights : [use] a curriculum, what a use counts; None is
            1.
        """
        steps = max(len(curriculum) for curriculum in curricula)
        at = np.arange(1, steps + 1)
        start = link(initial_loss, self.settings.link)
        interval = np.minimum(np.searchsorted(self.grid, at), len(self.grid) - 1) - 1
        drift = self.drift[interval] / np.diff(self.grid)[interval, None]
        drift[at > self.total] = 0.0
        basis = progress_basis(at, self.total, self.settings.decay)
        powers = legendre(at, self.total)
        levels = np.empty((len(curricula), steps + 1, start.shape[1]))
        levels[:, 0] = start
        for run, curriculum in enumerate(curricula):
            change = drift.copy()
            counts = count_matrix([curriculum], self.batch_size, use_weights[run] if use_weights else None)
            for phi, effects in zip(basis.T, self.effects, strict=True):
                change += phi[:, None] * self._acting(counts, effects, rates[run])
            for q, scores in enumerate(self.scores):
                own = self.coefficients[q * SCORE_ORDERS : (q + 1) * SCORE_ORDERS]
                change += self._acting(counts, scores, rates[run]) * (powers[:, :SCORE_ORDERS] @ own)
            if self.with_initial:
                own = self.coefficients[SCORE_ORDERS * len(self.scores) :]
                change += (start[run] - self.initial) * (powers[:, :INITIAL_ORDERS] @ own)
            levels[run, 1:] = start[run] + np.cumsum(change, axis=0)
        inside = np.minimum(np.arange(steps + 1), self.total)
        average = np.stack([np.interp(inside, self.grid, values) for values in self.average.T], axis=1)
        calibration = np.interp(inside, self.grid, self.calibration)[:, None]
        levels = average + calibration * (levels - average)
        if prior is not None:
            deviation = link(prior, self.settings.link) - self.prior_average[inside]
            levels += np.interp(inside, self.grid, self.prior_slope)[:, None] * deviation
        return unlink(levels, self.settings.link)

    def _acting(self, counts: sparse.csr_array, effects: Array, rates: Array) -> Array:
        """Σ_i (r_t m̂_{t,i} − center_i) effects_i(z) of every step, [step, test].

        Averaging over steps and summing over examples commute, so momentum is applied to sums of effects.
        """
        from simfluence.kernels.momentum import average  # compiled when first used

        steps = len(rates)
        acting = np.zeros((steps, effects.shape[1]))
        acting[: counts.shape[0]] = counts @ effects
        average(acting, self.settings.momentum.beta, self.settings.momentum.bias_correction)
        return acting * rates[:, None] - self.center @ effects

    def use_effects(self, curriculum: Curriculum, rates: Array, steps: IntArray, examples: IntArray) -> Array:
        """What a use of an example in a step that counts 1 adds to the link of the loss at the end of a
        curriculum, float [use, test].

        rates : relative learning rates [step]. steps, examples : int [use].
        """
        at = np.arange(1, len(curriculum) + 1)
        basis = self._acting_later(progress_basis(at, self.total, self.settings.decay), rates)
        found = np.zeros((len(steps), self.initial.shape[0]))
        for phi, effects in zip(basis.T, self.effects, strict=True):
            found += phi[steps, None] * effects[examples]
        powers = legendre(at, self.total)[:, :SCORE_ORDERS]
        for q, scores in enumerate(self.scores):
            own = self.coefficients[q * SCORE_ORDERS : (q + 1) * SCORE_ORDERS]
            found += self._acting_later(powers @ own, rates)[steps] * scores[examples]
        inside = min(len(curriculum), self.total)
        weight = self.batch_size / curriculum.consumed[steps]
        return np.asarray(
            np.interp(inside, self.grid, self.calibration) * weight[:, None] * found, np.float64
        )

    def prior_slope_at(self, step: int) -> float:
        """c after a step."""
        return float(np.interp(min(step, self.total), self.grid, self.prior_slope))

    def _acting_later(self, values: Array, rates: Array) -> Array:
        """Σ_s r_s values_s × (what a use in step t counts in m̂_s), [step t, column]."""
        from simfluence.kernels.momentum import average  # compiled when first used

        momentum, steps = self.settings.momentum, len(rates)
        share = np.ones(steps)
        if momentum.bias_correction:
            share = 1 / (1 - momentum.beta ** np.arange(1, steps + 1))
        backward = np.ascontiguousarray((values * (rates * share)[:, None])[::-1])
        average(backward, momentum.beta, False)
        return backward[::-1]

    def average_effects(self) -> Array:
        """B on log(eᴸ − 1) of one use of each training example, averaged over training, float [train, test].

        The example's own effect and that of the scores. Effects on losses are carried over at the initial
        losses: dL = (1 − e⁻ᴸ) d log(eᴸ − 1).
        """
        steps = np.arange(1, self.total + 1)
        basis = progress_basis(steps, self.total, self.settings.decay).mean(0)
        effects = np.tensordot(basis, self.effects, axes=1)
        powers = legendre(steps, self.total).mean(0)[:SCORE_ORDERS]
        for q, scores in enumerate(self.scores):
            effects += scores * (powers @ self.coefficients[q * SCORE_ORDERS : (q + 1) * SCORE_ORDERS])
        if self.settings.link == "identity":
            effects /= 1 - np.exp(-np.maximum(self.initial, LOSS_FLOOR))
        return np.asarray(effects, np.float64)


def progress(steps: npt.ArrayLike, total: int) -> Array:
    """Training progress at steps counted from 1: (t − ½)/total, mapped to −1 … 1."""
    return np.clip((2 * np.asarray(steps, np.float64) - 1) / total - 1, -1.0, 1.0)


def legendre(steps: npt.ArrayLike, total: int) -> Array:
    """P_k of training progress, float [step, k]."""
    orders = max(SCORE_ORDERS, INITIAL_ORDERS)
    return np.asarray(np.polynomial.legendre.legvander(progress(steps, total), orders - 1), np.float64)


def progress_basis(steps: npt.ArrayLike, total: int, decay: float) -> Array:
    """How effects vary with training progress: φ_k(t) = √(decayᵏ (2k + 1)) P_k(2τ − 1), normalised.

    P_k are Legendre polynomials of progress τ. An effect Σ_k φ_k(t) b_k with b_k ~ N(0, 1) then has variance
    1 on average over training, and is the smoother the smaller ``decay`` is (0: constant). Orders with less
    than a thousandth of the variance, and those from the sixth on, are left out.

    Returns float [step, k], for steps counted from 1 (step t leads to L_t).
    """
    norms = basis_norms(decay)
    polynomials = np.polynomial.legendre.legvander(progress(steps, total), len(norms) - 1)
    return np.asarray(polynomials * norms, np.float64)


def basis_norms(decay: float) -> Array:
    """The factors of the Legendre polynomials P_k in ``progress_basis``, float [k]."""
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"decay must lie in 0 ≤ decay < 1, got {decay}")
    variance = decay ** np.arange(6)
    variance = variance[variance >= 1e-3 * variance.sum()]
    return np.asarray(np.sqrt(variance / variance.sum() * (2 * np.arange(len(variance)) + 1)), np.float64)
