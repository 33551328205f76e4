"""The published simulators (Guu et al. 2023, arXiv 2303.08114): one Markov model per test example.

    L_t(z) = α(c_t) L_{t-1}(z) + β(c_t),    α(c) = Σ_{i∈c} A_i(z),    β(c) = Σ_{i∈c} B_i(z)

    linear            A and B free
    additive          α = 1
    multiplicative    β = 0

Fitted by ridge regression of each recorded loss on the one before it (teacher forcing). We write
A_i = 1/b + A'_i, b the usual batch size, so that the regression is one of loss *changes*,

    L_t − L_{t-1} = Σ_{i∈c_t} (A'_i L_{t-1} + B_i),

which is the same model, and which adds up over steps where losses were not recorded at each. A batch
of another size than b counts as b examples of its composition, since training averages over its
batch (METHODS: α is then still about 1); with batches of one size this changes nothing.

Sign: B_i(z) < 0 means that training on i lowers the loss of z. Arrays are [train, test].

With ``rate_scaled`` the right side is multiplied by the step's learning rate relative to the usual one.

With ``order`` J the losses of the last J steps matter (Chai et al. 2024, arXiv 2404.07840),

    L_t(z) = Σ_j α_j(c_t) L_{t-j}(z) + β(c_t),    α_j(c) = Σ_{i∈c} A_ij(z),    j = 1 .. J,

losses before the first being as the first; A above is then A_1, and the further A_j shrink to 0 (pooled: to
their average) in the same regression.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch

from simfluence import ridge
from simfluence.curriculum import Curriculum
from simfluence.devices import chosen_device
from simfluence.errors import RunDataError
from simfluence.runs import RunSet, Transitions, transitions
from simfluence.runs.schedule import as_schedule, mean_learning_rate
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.markov.diagnostics import FitDiagnostics, fit_diagnostics, largest_growth
from simfluence.simulators.markov.lags import earlier_losses
from simfluence.simulators.markov.penalty import (
    PENALTIES,
    Fold,
    choose_penalty,
    folds_over_runs,
    rollout_errors,
)
from simfluence.simulators.markov.rollout import simulate_linear

Center = Literal["zero", "identity", "pooled"]
Solver = Literal["auto", "primal", "dual", "iterative"]
CENTERS: tuple[Center, ...] = ("zero", "identity", "pooled")
SOLVERS: tuple[Solver, ...] = ("auto", "primal", "dual", "iterative")

_WIDTHS = 10.0  # simulated losses this many widths of the recorded range outside it are an alarm


class SimulationWarning(UserWarning):
    """Simulated losses that cannot be right."""


class MarkovSimulator(Simulator):
    """The family; use one of its three members.

    Parameters
    ----------
    penalty : λ ≥ 0 of the ridge regression. None chooses from ``penalties`` by the rollout error
        (all-steps MSE) on validation runs, or without any by cross-validation over runs.
    center : what coefficients shrink towards.
        "zero": A_i → 0, B_i → 0, as published. "identity": A_i → 1/b, B_i → 0, nothing is learnt.
        "pooled": towards the average example's A and B, which are themselves not penalised.
    folds : of the cross-validation.
    per_test : whether to choose a penalty for every test example instead of one for all.
    rate_scaled : whether effects are proportional to the step's learning rate.
    clip : "range" moves every simulated loss into the range of recorded ones, widened by a tenth;
        None only warns of those that leave it far.
    solver : "primal", "dual", "iterative" (see ``simfluence.ridge``), or "auto" for the one
        that should be fastest.
    device : where to solve, as torch names it; None is the GPU if torch finds one.
    penalties : what to choose from, all > 0; None is ``PENALTIES``, 1e-4 to 1e4.
    order : J ≥ 1, of how many steps before the losses matter; beyond 1 it takes runs with losses of every
        step, and a model with A.

    Attributes
    ----------
    A_, B_ : float [train, test]. A_lags_ : A_2, A_3, …, [order − 1, train, test], if the order is above 1.
    penalty_ : the λ used, a number, or [test] with ``per_test``. penalty_errors_ : λ → rollout error,
        where it was chosen.
    batch_size_ : b. rows_used_, left_out_ : transitions × test examples used, and not finite.
    singular_ : the number of test examples for which the fit has no unique solution.
    diagnostics_ : :class:`~simfluence.simulators.markov.diagnostics.FitDiagnostics`.
    learning_rate_ : [step], mean schedule of the training runs, with ``rate_scaled``; usual_rate_ : the
        rate at which A_ and B_ hold.
    """

    free_slope: ClassVar[bool]
    free_intercept: ClassVar[bool]
    fitted: ClassVar[tuple[str, ...]] = (
        "A_",
        "B_",
        "A_lags_",
        "penalty_",
        "penalty_errors_",
        "batch_size_",
        "rows_used_",
        "left_out_",
        "singular_",
        "diagnostics_",
        "loss_range_",
        "learning_rate_",
        "usual_rate_",
    )
    _weights: Array

    def __init__(
        self,
        penalty: float | None = None,
        center: Center = "zero",
        folds: int = 5,
        per_test: bool = False,
        rate_scaled: bool = False,
        clip: Literal["range"] | None = None,
        solver: Solver = "auto",
        device: str | None = None,
        penalties: Sequence[float] | None = None,
        order: int = 1,
    ) -> None:
        if penalty is not None and not (np.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"penalty must be a number ≥ 0, or None to choose it; got {penalty}")
        if penalties is not None and not (len(penalties) and all(0 < p < np.inf for p in penalties)):
            raise ValueError(f"penalties to choose from must be numbers > 0, got {penalties!r}")
        if center not in CENTERS:
            raise ValueError(f"center must be one of {CENTERS}, got {center!r}")
        if folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, got {folds}")
        if clip not in ("range", None):
            raise ValueError(f"clip must be 'range' or None, got {clip!r}")
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {SOLVERS}, got {solver!r}")
        if order < 1 or int(order) != order:
            raise ValueError(f"order must be a whole number ≥ 1, got {order!r}")
        if order > 1 and not self.free_slope:
            raise ValueError(f"{self.name!r} does not depend on earlier losses: order must be 1, got {order}")
        self.penalty = penalty
        self.center = center
        self.folds = folds
        self.per_test = per_test
        self.rate_scaled = rate_scaled
        self.clip = clip
        self.solver = solver
        self.device = device
        self.penalties = None if penalties is None else [float(value) for value in penalties]
        self.order = int(order)

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self, train: RunSet, validation: RunSet | None = None, *, weights: npt.ArrayLike | None = None
    ) -> Self:
        """As every simulator; ``weights`` ≥ 0, one a training run: 2 counts as the run given twice."""
        values = np.ones(len(train)) if weights is None else np.asarray(weights, np.float64)
        if values.shape != (len(train),) or not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(
                f"weights must be {len(train)} finite numbers ≥ 0, one a training run, got {weights!r}"
            )
        if len(train) and not values.any():
            raise ValueError("every training run has weight 0: nothing to fit")
        self._weights = values
        return super().fit(train, validation)

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self._measure(train)
        rows = transitions(train.runs, self.batch_size_, self._factors(train))
        rows, lags = earlier_losses(train, rows, self.order)
        if not rows.observed.any():
            raise ValueError("no recorded transition has finite losses on both sides: nothing to fit")
        self.rows_used_ = int(rows.observed.sum())
        self.left_out_ = rows.n_left_out
        problem = self._problem(rows, lags)
        self.penalty_errors_: dict[str, float] = {}
        self.penalty_: float | Array = (
            self.penalty if self.penalty is not None else self._choose(train, problem, rows, validation)
        )
        solver = None if self.solver == "auto" else self.solver
        solution = ridge.solve_ridge(problem, self.penalty_, solver, self._device())
        self._set_coefficients(solution.coefficients)
        growth = self._growth(train, *self._split(solution.coefficients)[:2])
        self.diagnostics_: FitDiagnostics = fit_diagnostics(solution, growth, self.rows_used_, self.left_out_)
        self.singular_ = self.diagnostics_["singular"]
        self._warn_of(solution)

    def refit(self, train: RunSet) -> Self:
        """A copy with the same penalty, fitted to other runs over the same examples."""
        self.check_examples(train)
        other = type(self)(**self.get_params())
        other.penalty = self.penalty_  # type: ignore[assignment]  # one a test example, with per_test
        other.fit(train)
        other.penalty = self.penalty
        return other

    def _measure(self, train: RunSet) -> None:
        """What is usual in the training runs: batch size, learning rates, losses."""
        steps = np.concatenate([np.diff(curriculum.offsets) for curriculum in train.curricula])
        weights = np.repeat(self._weights, [len(run) for run in train])
        self.batch_size_ = _weighted_median(steps, weights)
        ends = np.array([_finite_range(run.loss) for run in train])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN")
            self.loss_range_ = [float(np.nanmin(ends)), float(np.nanmax(ends))]
        self.usual_rate_, self.learning_rate_ = 1.0, np.empty(0)
        if self.rate_scaled:
            rates = np.concatenate([run.learning_rate for run in train])
            if not np.isfinite(rates).all():
                raise RunDataError(
                    "rate_scaled needs the learning rate of every step, but"
                    f" {np.sum(~np.isfinite(rates))} of {len(rates)} were not recorded"
                )
            self.usual_rate_ = _weighted_median(rates[rates > 0], weights[rates > 0])
            self.learning_rate_ = mean_learning_rate(train.runs, self._weights)

    def _factors(self, runs: RunSet) -> list[Array] | None:
        """ρ [step] of each run: its learning rates relative to the usual one."""
        return (
            [np.divide(run.learning_rate, self.usual_rate_, dtype=np.float64) for run in runs]
            if self.rate_scaled
            else None
        )

    def _problem(self, rows: Transitions, lags: list[Array]) -> ridge.RidgeProblem:
        """Regressions of the distance from what coefficients shrink towards, θ₀:

        L_t − L_{t-1} − design θ₀ = design (θ − θ₀),    design = [diag(L_{t-1}) U, diag(L_{t-2}) U, …, U]
        """
        weight = np.sqrt(self._weights[rows.run])[:, None]
        everywhere = rows.observed.all()
        towards = np.ones(len(weight))
        if self.center == "zero" and self.free_slope:  # A' = −1/b
            towards -= rows.counts.sum(axis=1) / self.batch_size_
        target = rows.current - towards[:, None] * rows.previous if towards.any() else rows.current
        scales: list[Array] = []
        if self.free_slope:  # 0 where unknown
            scales += [rows.previous, *lags]
        if self.free_intercept:
            scales.append(
                np.broadcast_to(1.0, target.shape) if everywhere else rows.observed.astype(np.float64)
            )
        if not self.free_slope and everywhere:
            scales = [np.ones_like(weight)]  # one design for all test examples
        if (weight != 1).any():
            target, scales = weight * target, [weight * scale for scale in scales]
        return ridge.RidgeProblem(rows.counts, scales, target, self.center == "pooled")

    def _growth(self, train: RunSet, slope: Array | None, lags: Array | None) -> Array:
        """How far a difference in the initial losses grows along recorded runs, [test]."""
        if slope is None:
            return np.ones(len(train.test))
        factors = self._factors(train)
        rates = None if factors is None else _padded(factors)
        return largest_growth(train.curricula, slope, lags, self.batch_size_, rates)

    def _choose(
        self, train: RunSet, problem: ridge.RidgeProblem, rows: Transitions, validation: RunSet | None
    ) -> float | Array:
        """The λ with the smallest rollout error."""
        if validation is None:
            folds = folds_over_runs(rows.run, len(train), self.folds)
            scored, weights = train, self._weights
        else:
            folds = [Fold(np.arange(len(rows.run)), np.arange(len(validation)))]
            scored, weights = validation, np.ones(len(validation))
        factors = self._factors(scored)

        def roll_out(runs: npt.NDArray[np.int64], coefficients: Array, initial_loss: Array) -> Array:
            slope, lags, intercept = self._split(coefficients)
            return simulate_linear(
                [scored.runs[run].curriculum for run in runs],
                initial_loss,
                slope,
                intercept,
                lags=lags,
                batch_size=self.batch_size_,
                rates=None if factors is None else _padded([factors[run] for run in runs]),
            )

        penalties = np.array(sorted(self.penalties or PENALTIES))
        grid, errors = rollout_errors(
            problem, folds, scored, roll_out, penalties, weights, self._device(), self.per_test
        )
        self.penalty_errors_ = {f"{p:g}": float(e) for p, e in zip(grid, errors.mean(axis=1), strict=True)}
        chosen = choose_penalty(errors, grid, self.per_test)
        return chosen if self.per_test else float(chosen)

    def _split(self, coefficients: Array) -> tuple[Array | None, Array | None, Array | None]:
        """Distances from the center [block, n, column] → A' [n, column], A_2 … [order − 1, n, column], and
        B [n, column]; None for what is missing."""
        slope = coefficients[0] if self.free_slope else None
        if slope is not None and self.center == "zero":
            slope = slope - 1 / self.batch_size_
        lags = coefficients[1 : self.order] if self.order > 1 else None
        return slope, lags, (coefficients[-1] if self.free_intercept else None)

    def _set_coefficients(self, coefficients: Array) -> None:
        slope, lags, intercept = self._split(coefficients)
        shape = coefficients.shape[1:]
        self.A_ = 1 / self.batch_size_ + (np.zeros(shape) if slope is None else slope)
        self.B_ = np.zeros(shape) if intercept is None else np.ascontiguousarray(intercept)
        self.A_lags_ = np.empty((0, *self.B_.shape)) if lags is None else np.ascontiguousarray(lags)

    def _device(self) -> torch.device:
        return chosen_device(self.device)

    def _warn_of(self, solution: ridge.RidgeSolution) -> None:
        name = type(self).__name__
        if self.singular_:
            warnings.warn(
                f"{name}: {self.singular_} of {len(solution.singular)} fits have no unique solution"
                f" ({self.rows_used_} rows in all, penalty {self.penalty_}); took the smallest",
                SimulationWarning,
                stacklevel=5,
            )
        if solution.convergence is not None and solution.convergence.failed:
            warnings.warn(
                f"{name}: the iterative solver did not reach its tolerance for {solution.convergence.failed}"
                f" of {len(solution.singular)} test examples (relative residual {solution.convergence.residual:.1e});"
                " take a larger penalty or another solver",
                SimulationWarning,
                stacklevel=5,
            )

    # --------------------------------------------------------------------------------- simulating

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        slope = self.A_ - 1 / self.batch_size_ if self.free_slope else None
        losses = simulate_linear(
            curricula,
            initial_loss,
            slope,
            self.B_ if self.free_intercept else None,
            lags=self.A_lags_ if self.order > 1 else None,
            batch_size=self.batch_size_,
            rates=self._rates(curricula, learning_rate),
            clip=None if self.clip is None else self._widened_range(0.1),
            progress=True,
        )
        if (wild := int(self._far_outside(losses).sum())) > 0:
            low, high = self.loss_range_
            warnings.warn(
                f"{type(self).__name__}: {wild} of {len(curricula)} simulated runs leave the range"
                f" of recorded losses ({low:.3g} .. {high:.3g}) by more than {_WIDTHS:g} times its width:"
                " the model is unstable there; a larger penalty, another center or clip='range' may help",
                SimulationWarning,
                stacklevel=3,
            )
        return losses

    def _rates(self, curricula: Sequence[Curriculum], learning_rate: npt.ArrayLike | None) -> Array | None:
        """ρ [run, step]: learning rates relative to the usual one; by default the training runs' mean."""
        if not self.rate_scaled:
            return None
        steps = max(len(curriculum) for curriculum in curricula)
        if learning_rate is None:  # after the last recorded step, the last rate
            learning_rate = self.learning_rate_[np.minimum(np.arange(steps), len(self.learning_rate_) - 1)]
        return as_schedule(learning_rate, len(curricula), steps) / self.usual_rate_

    def _widened_range(self, widths: float) -> tuple[float, float]:
        low, high = self.loss_range_
        margin = widths * max(high - low, 1e-12)
        return low - margin, high + margin

    def _far_outside(self, losses: Array) -> npt.NDArray[np.bool_]:
        """bool [run]"""
        low, high = self._widened_range(_WIDTHS)
        flat = losses.reshape(len(losses), -1)
        with np.errstate(invalid="ignore"):
            return ~((flat.min(axis=1) > low) & (flat.max(axis=1) < high))


@register
class LinearSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "linear"
    free_slope, free_intercept = True, True


@register
class AdditiveSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "additive"
    free_slope, free_intercept = False, True


@register
class MultiplicativeSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "multiplicative"
    free_slope, free_intercept = True, False


def _finite_range(losses: npt.NDArray[np.floating]) -> tuple[float, float]:
    """The smallest and the largest finite one; NaN if there is none."""
    low, high = (float(end) for end in (losses.min(initial=np.inf), losses.max(initial=-np.inf)))
    if np.isfinite([low, high]).all():  # where any is not, an end says so
        return low, high
    finite = losses[np.isfinite(losses)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


def _weighted_median(values: npt.ArrayLike, weights: Array) -> float:
    return float(np.quantile(np.asarray(values, np.float64), 0.5, weights=weights, method="inverted_cdf"))


def _padded(series: Sequence[Array]) -> Array:
    """[run, step], 0 after the end of each."""
    padded = np.zeros((len(series), max(len(values) for values in series)))
    for row, values in zip(padded, series, strict=True):
        row[: len(values)] = values
    return padded
