"""Losses from how much of each group a run has consumed (analysis/METHODS.md, "Mixtures").

    log(L_t(z) − f(z)) = a_t(z) + h_t,z(x_t),      x_t = Σ_{s ≤ t} s^κ c_s / (c̄ Σ_{s ≤ t} s^κ)

c_s [group] is what step s consumes, in units, and c̄ the mean over steps and training runs of what a step
consumes in all: of a run with constant shares and the usual units, x are the shares. κ > 0 lets late steps
count more. f is a part of the least loss recorded. At each step t that was evaluated, h is a kernel ridge
regression over runs, with

    k(x, y) = xᵀy + √xᵀ√y + 0.1 exp(−½ |x − y|²)

that is, ridge regression on x and √x, since returns of a group diminish with use, and a little of a smooth
function, since groups act together. All steps and test examples share λ, f / min L and κ; chosen are those of
the least leave-one-run-out error (in closed form). λ = ∞, the mean trajectory, is among them.

Exponential mixing laws, log(L − f) = a + bᵀx (Ye et al. 2024, arXiv 2403.16952), are the case of the first
term alone; regressions on shares are also what RegMix fits (Liu et al. 2024, arXiv 2407.01492).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, IntArray, of_shares
from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.state import saved

PENALTIES = (np.inf, *10.0 ** np.arange(1.0, -4.5, -0.5))
FLOORS = (0.0, 0.5, 0.8, 0.9)
RECENCIES = (0.0, 1.0, 3.0)
GAIN = 2.0
"""The part of the mean trajectory's error that a regression must save to be taken, times the runs."""
BEYOND = 1.0
"""How far predictions may lie outside the range of a regression's targets, in widths of that range."""
FEW_RUNS = 12
"""With fewer, they may not."""


@saved
@dataclass(frozen=True)
class ShareRegression:
    """The regression of one step.

    step : t. base : the number of the regression whose predictions it adds to, −1 for none.
    consumed : x of the runs it is fitted to, [run, group]. coefficients : [run, test]. level : [test].
    low, high : what it predicts at least and at most, [test].
    """

    step: int
    base: int
    consumed: Array
    coefficients: Array
    level: Array
    low: Array
    high: Array


@register
class ShareSimulator(Simulator):
    """Kernel ridge regressions on what groups have given so far, with diminishing returns.

    Between the steps that have one, predictions are interpolated; after the last, its own goes on. Where
    fewer than half of the runs were evaluated, the difference to the last step with more is regressed.

    Parameters
    ----------
    penalty : λ over the mean variance of the kernel over runs; np.inf for the mean trajectory.
    floor : f / min L, from 0 to below 1. Where not all losses are above 0, they are regressed as they are.
    recency : κ, at least 0.
    max_rows : evaluated steps are thinned until all runs have about that many together.

    Each of the first three is chosen if it is None.

    Attributes
    ----------
    penalty_, floor_, recency_ : as chosen. mean_error_ : the mean square error of the mean trajectory on runs
        that were left out. error_ : that of what was chosen, over it. Both NaN for one run.
    least_ : min L [test]; None where not all are above 0. unit_ : c̄. regressions_ : one a step.
    """

    name: ClassVar[str] = "shares"
    takes_shares: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = (
        "penalty_",
        "floor_",
        "recency_",
        "mean_error_",
        "error_",
        "least_",
        "unit_",
        "regressions_",
    )

    def __init__(
        self,
        penalty: float | None = None,
        floor: float | None = None,
        recency: float | None = None,
        max_rows: int = 2000,
    ) -> None:
        if penalty is not None and not penalty > 0:
            raise ValueError(f"penalty must be above 0, got {penalty}")
        if floor is not None and not 0 <= floor < 1:
            raise ValueError(f"floor must lie in 0 ≤ floor < 1, got {floor}")
        if recency is not None and not 0 <= recency < np.inf:
            raise ValueError(f"recency must be at least 0, got {recency}")
        self.penalty = penalty
        self.floor = floor
        self.recency = recency
        self.max_rows = max_rows

    def refit(self, train: RunSet) -> Self:
        """A copy with the same λ, floor and κ, fitted to other runs over the same examples."""
        self.check_examples(train)
        chosen = {"penalty": self.penalty_, "floor": self.floor_, "recency": self.recency_}
        other = type(self)(**self.get_params() | chosen).fit(train)
        other.penalty, other.floor, other.recency = self.penalty, self.floor, self.recency
        return other

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        of_shares(train.curricula)
        steps, losses = _evaluated(train, self.max_rows)
        least = np.nanmin(losses, axis=(0, 1))
        self.least_ = least if (least > 0).all() else None
        self.unit_ = float(np.concatenate([curriculum.consumed for curriculum in train.curricula]).mean())
        known = np.isfinite(losses).any(2).sum(0)
        common = known >= known.max() / 2
        self._choose(train.curricula, steps[common], losses[:, common])
        consumed = self._consumed(train.curricula, steps, self.recency_)
        self.regressions_: list[ShareRegression] = []
        base = -1
        for number, step in enumerate(steps):
            if common[number] or base >= 0:
                below = -1 if common[number] else base
                self.regressions_.append(
                    self._regression(int(step), below, consumed[:, number], losses[:, number])
                )
                base = len(self.regressions_) - 1 if common[number] else base

    def _choose(self, curricula: Sequence[Curriculum], steps: IntArray, losses: Array) -> None:
        """Set λ, floor and κ to those of the least error on runs that are left out, where they are not given.

        losses : [run, step, test], NaN where they are not known.
        """
        penalties = PENALTIES if self.penalty is None else (self.penalty,)
        floors = FLOORS if self.floor is None else (self.floor,)
        floors = floors[:1] if self.least_ is None else floors
        candidates: dict[tuple[float, float, float], float] = {}
        plain = self._consumed(curricula, steps, 0.0)
        for recency in RECENCIES if self.recency is None else (self.recency,):
            consumed = self._consumed(curricula, steps, recency)
            if self.recency is None and recency > 0 and np.allclose(consumed, plain, equal_nan=True):
                continue  # shares do not change over steps
            for number in range(len(steps)):
                for runs, tests in _complete(losses[:, number]):
                    spectrum = _Spectrum.of(consumed[runs, number])
                    known = losses[:, number][np.ix_(runs, tests)]
                    for floor in floors:
                        for penalty in penalties:
                            error = self._left_out_error(spectrum, known, tests, floor, penalty)
                            key = (recency, floor, penalty)
                            candidates[key] = candidates.get(key, 0.0) + error
        mean = _mean_error(losses)
        best = min(candidates, key=candidates.__getitem__)
        if self.penalty is None and not candidates[best] < (1 - GAIN / len(curricula)) * mean:
            best = (0.0 if self.recency is None else self.recency, floors[0], np.inf)
        self.recency_, self.floor_, self.penalty_ = best
        self.mean_error_ = mean / np.isfinite(losses).sum() if mean > 0 else np.nan
        self.error_ = candidates[best] / mean if mean > 0 else np.nan

    def _left_out_error(
        self, spectrum: _Spectrum, losses: Array, tests: IntArray, floor: float, penalty: float
    ) -> float:
        """The sum of squares over runs and tests, each run predicted from the others; losses [run, test]."""
        if len(losses) < 2:
            return 0.0
        if np.isinf(penalty):
            return _mean_error(losses)
        targets = self._link(losses, floor, tests)
        predicted = targets - spectrum.left_out(targets, penalty)
        return float(np.square(self._unlink(predicted, floor, tests) - losses).sum())

    def _regression(self, step: int, base: int, consumed: Array, losses: Array) -> ShareRegression:
        """That of one step; consumed [run, group] and losses [run, test] of all runs."""
        coefficients, (level, low, high) = np.zeros_like(losses), np.zeros((3, losses.shape[1]))
        for runs, tests in _complete(losses):
            known = losses[np.ix_(runs, tests)]
            targets = self._link(known, self.floor_, tests)
            if base >= 0:
                targets = targets - self._predict(base, consumed[runs])[:, tests]
            beyond = (BEYOND if len(runs) >= FEW_RUNS else 0.0) * np.ptp(targets, axis=0)
            low[tests], high[tests] = targets.min(0) - beyond, targets.max(0) + beyond
            if np.isinf(self.penalty_) or len(runs) < 2:
                whole = self._link(known.mean(0), self.floor_, tests)
                level[tests] = whole if base < 0 else targets.mean(0)
                continue
            spectrum = _Spectrum.of(consumed[runs])
            solved = spectrum.solve(targets, self.penalty_)
            coefficients[np.ix_(runs, tests)] = solved
            level[tests] = targets.mean(0) - kernel(consumed[runs], consumed[runs]).mean(0) @ solved
        used = np.isfinite(losses).any(1)
        return ShareRegression(step, base, consumed[used], coefficients[used], level, low, high)

    # --------------------------------------------------------------------------------- predictions

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        steps = max(len(curriculum) for curriculum in curricula)
        losses = np.full((len(curricula), steps + 1, initial_loss.shape[1]), np.nan)
        knots = [0, *(regression.step for regression in self.regressions_)]
        for run, curriculum in enumerate(curricula):
            consumed = consumed_shares(curriculum, self.unit_, self.recency_)
            for number, (low, high) in enumerate(pairwise(knots)):
                at = np.arange(low + 1, min(high, len(curriculum)) + 1)
                if len(at):
                    rows, passed = consumed[at - 1], ((at - low) / (high - low))[:, None]
                    before = initial_loss[run] if number == 0 else self._losses(number - 1, rows)
                    losses[run, at] = (1 - passed) * before + passed * self._losses(number, rows)
            if len(curriculum) > knots[-1]:
                later = slice(knots[-1] + 1, len(curriculum) + 1)
                losses[run, later] = self._losses(len(self.regressions_) - 1, consumed[knots[-1] :])
        return losses

    def _losses(self, number: int, consumed: Array) -> Array:
        """The losses that a regression predicts, [row, test]."""
        values = self._predict(number, consumed)
        return self._unlink(values, self.floor_, np.arange(values.shape[1]))

    def _predict(self, number: int, consumed: Array) -> Array:
        """The same on the regressions' scale."""
        one = self.regressions_[number]
        added = np.clip(one.level + kernel(consumed, one.consumed) @ one.coefficients, one.low, one.high)
        return added if one.base < 0 else added + self._predict(one.base, consumed)

    def _consumed(self, curricula: Sequence[Curriculum], steps: IntArray, recency: float) -> Array:
        """x at these steps, [run, step, group]; NaN after a run's end."""
        found = np.full((len(curricula), len(steps), curricula[0].n_examples), np.nan)
        for run, curriculum in enumerate(curricula):
            reached = steps <= len(curriculum)
            found[run, reached] = consumed_shares(curriculum, self.unit_, recency)[steps[reached] - 1]
        return found

    def _link(self, losses: Array, floor: float, tests: IntArray) -> Array:
        return losses if self.least_ is None else np.log(losses - floor * self.least_[tests])

    def _unlink(self, values: Array, floor: float, tests: IntArray) -> Array:
        if self.least_ is None:
            return values
        return np.asarray(np.exp(np.minimum(values, 700.0)) + floor * self.least_[tests])  # e⁷⁰⁰ is finite


# -------------------------------------------------------------------------------------- formulas


def consumed_shares(curriculum: Curriculum, unit: float, recency: float) -> Array:
    """x after every step, float [step, group]: what was consumed so far, over ``unit`` a step.

    ``recency`` is κ.
    """
    weights = np.arange(1.0, len(curriculum) + 1) ** recency
    total = np.cumsum(curriculum.counts().toarray() * weights[:, None], axis=0)
    return np.asarray(total / (unit * np.cumsum(weights))[:, None])


def kernel(a: Array, b: Array) -> Array:
    """k of every row of a, at least 0, and every row of b: [row, group], [other, group] → [row, other]."""
    from scipy.spatial.distance import cdist  # takes long to import

    together = np.exp(-0.5 * cdist(a, b, "sqeuclidean"))
    return np.asarray(a @ b.T + np.sqrt(a) @ np.sqrt(b).T + 0.1 * together)


@dataclass(frozen=True)
class _Spectrum:
    """The eigenvalues and -vectors of a kernel matrix over runs, centred, and the mean of the eigenvalues."""

    values: Array
    vectors: Array
    mean: float

    @classmethod
    def of(cls, consumed: Array) -> _Spectrum:
        gram = kernel(consumed, consumed)
        gram = gram - gram.mean(0)
        values, vectors = np.linalg.eigh(gram - gram.mean(1, keepdims=True))
        values = values.clip(0.0)
        return cls(values, vectors, max(float(values.mean()), 1e-12))

    def solve(self, targets: Array, penalty: float) -> Array:
        """(K + λ)⁻¹ (targets − mean), [run, test]."""
        centred = self.vectors.T @ (targets - targets.mean(0))
        return np.asarray(self.vectors @ (centred / (self.values + penalty * self.mean)[:, None]))

    def left_out(self, targets: Array, penalty: float) -> Array:
        """Targets less what a fit to the other runs predicts of them, [run, test], the mean refitted too.

        Of a linear smoother S, residuals divided by 1 − S_ii.
        """
        shrunk = penalty * self.mean / (self.values + penalty * self.mean)
        residuals = penalty * self.mean * self.solve(targets, penalty)
        own = (self.vectors**2 @ shrunk) - 1 / len(targets)
        return np.asarray(residuals / own[:, None])


def _evaluated(train: RunSet, max_rows: int) -> tuple[IntArray, Array]:
    """(the steps after which every test example has a finite loss in some run, thinned; losses
    [run, step, test], NaN where they are not finite)
    """
    losses = train.loss[:, 1:]
    known = np.isfinite(losses)
    losses[~known] = np.nan
    steps: IntArray = 1 + np.flatnonzero(np.all(known.any(axis=0), axis=1))
    if not len(steps):
        z = int(np.argmin(known.any(0).sum(0)))
        raise RunDataError(
            "no step after the first losses has a finite loss of every test example in some run; there are"
            f" fewest of {train.test.ids[z]!r}"
        )
    stride = max(round(int(known.any(2).sum()) / max(max_rows, 1)), 1)
    steps = np.unique(np.append(steps[::stride], steps[-1]))
    return steps, losses[:, steps - 1]


def _complete(losses: Array) -> Iterator[tuple[IntArray, IntArray]]:
    """The runs and the tests of parts of losses [run, test] without NaN, that hold all of every test's."""
    patterns, part = np.unique(np.isfinite(losses), axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        yield np.flatnonzero(patterns[:, number]), np.flatnonzero(part.ravel() == number)


def _mean_error(losses: Array) -> float:
    """The squared errors of predicting each run by the mean of the others, summed; NaN does not count."""
    count = np.isfinite(losses).sum(0)
    deviations = losses - np.nansum(losses, axis=0) / np.maximum(count, 1)
    left_out = deviations * count / np.maximum(count - 1, 1)
    return float(np.nansum(np.where(count > 1, np.square(left_out), 0.0)))
