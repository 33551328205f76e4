"""The published simulators (Guu et al. 2023, arXiv 2303.08114): one Markov model per test example z.

    L_t(z) = α(c_t) L_{t-1}(z) + β(c_t),    α(c) = Σ_{i∈c} A_i(z),    β(c) = Σ_{i∈c} B_i(z)

    linear            A and B are fitted
    additive          α = 1
    multiplicative    β = 0

They are fitted by ridge regression of each recorded loss on the one before it. We write A_i = 1/b + A'_i, b
being the usual batch size, so that the regression is one of loss *changes*,

    L_t − L_{t-1} = Σ_{i∈c_t} (A'_i L_{t-1} + B_i).

This is the same model, and it adds up over steps where losses were not recorded at each. A batch of another
size than b counts as b examples of its composition, since training averages over its batch (METHODS: α then
stays about 1).

Sign: B_i(z) < 0 means that training on i lowers the loss of z. Arrays are [train, test].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence import ridge
from simfluence.curriculum import Curriculum, count_matrix, usual_batch_size
from simfluence.devices import chosen_device
from simfluence.runs import RunSet, Transitions, transitions
from simfluence.simulators.base import Array, Simulator, register
from simfluence.simulators.markov.diagnostics import fit_diagnostics, largest_growth
from simfluence.simulators.markov.penalty import PENALTIES, choose_penalty, folds_over_runs, rollout_errors
from simfluence.simulators.markov.rollout import simulate_linear

Center = Literal["zero", "identity", "pooled"]

_WIDTHS = 10.0
"""Simulated losses that leave the recorded range by more than so many of its widths cause a warning."""


class SimulationWarning(UserWarning):
    """Simulated losses that cannot be right."""


class MarkovSimulator(Simulator):
    """The family; use one of its three members.

    Parameters
    ----------
    penalty : λ ≥ 0 of the ridge regression. None chooses from ``penalties`` by the mean squared error of
        simulations of the validation runs or, without any, by cross-validation over the training runs.
    center : what coefficients shrink towards.
        "zero": A_i → 0, B_i → 0, as published. "identity": A_i → 1/b, B_i → 0, nothing is learnt.
        "pooled": towards the average example's A and B, which are themselves not penalised.
    solver : "iterative", "cholesky" (see ``simfluence.ridge``), or "auto" for the one that should be faster.
    device : where to factorize, as torch names it; None is the GPU if torch finds one.
    penalties : what to choose from, all > 0; None is ``PENALTIES``, 1e-4 to 1e4.

    Attributes
    ----------
    A_, B_ : float [train, test]. batch_size_ : b.
    penalty_ : the λ used. penalty_errors_ : λ → error of simulations, of those compared on all test examples.
    diagnostics_ : :func:`~simfluence.simulators.markov.diagnostics.fit_diagnostics`.
    loss_range_ : the smallest and the largest recorded loss.
    """

    free_slope: ClassVar[bool]
    free_intercept: ClassVar[bool]
    fitted: ClassVar[tuple[str, ...]] = (
        "A_",
        "B_",
        "penalty_",
        "penalty_errors_",
        "batch_size_",
        "diagnostics_",
        "loss_range_",
    )

    def __init__(
        self,
        penalty: float | None = None,
        center: Center = "zero",
        solver: ridge.Solver = "auto",
        device: str | None = None,
        penalties: Sequence[float] | None = None,
    ) -> None:
        if penalty is not None and not (np.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"penalty must be a number ≥ 0, or None to choose it; got {penalty}")
        if penalties is not None and not (len(penalties) and all(0 < p < np.inf for p in penalties)):
            raise ValueError(f"penalties to choose from must be numbers > 0, got {penalties!r}")
        for name, value, choices in (("center", center, Center), ("solver", solver, ridge.Solver)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {value!r}")
        self.penalty = penalty
        self.center = center
        self.solver = solver
        self.device = device
        self.penalties = None if penalties is None else [float(value) for value in penalties]

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self.batch_size_ = usual_batch_size(train.curricula)
        rows = transitions(train.runs, self.batch_size_)
        if not rows.observed.any():
            raise ValueError("no recorded transition has finite losses on both sides: nothing to fit")
        finite = train.loss[np.isfinite(train.loss)]
        self.loss_range_ = [float(finite.min()), float(finite.max())]
        problem, device = self._problem(rows), chosen_device(self.device)
        self.penalty_errors_: dict[str, float] = {}
        given = self.penalty
        self.penalty_ = self._choose(train, problem, rows, validation) if given is None else float(given)
        solution = ridge.solve_ridge(problem, [self.penalty_], device, self.solver)
        if self.solver == "auto":
            ridge.replace_unconverged(problem, self.penalty_, solution, device)
        slope, intercept = self._split(solution.coefficients[0])
        shape = len(train.train), len(train.test)
        self.A_ = np.full(shape, 1 / self.batch_size_) + (0.0 if slope is None else slope)
        self.B_ = np.zeros(shape) if intercept is None else np.ascontiguousarray(intercept)
        growth = np.ones(shape[1])
        if slope is not None:
            growth = largest_growth(train.curricula, slope, self.batch_size_)
        self.diagnostics_ = fit_diagnostics(rows, solution, growth)
        self._warn_of(solution)

    def refit(self, train: RunSet) -> Self:
        """A copy with the same penalty, fitted to other runs over the same examples."""
        self.check_examples(train)
        other = type(self)(**self.get_params() | {"penalty": self.penalty_}).fit(train)
        other.penalty = self.penalty
        return other

    def _problem(self, rows: Transitions) -> ridge.RidgeProblem:
        """Regressions of the distance θ from what coefficients shrink towards.

            L_t − τ_t L_{t-1} = Σ_{i∈c_t} (θ_i1 L_{t-1} + θ_i2)

        τ is 1, as coefficients shrink towards A' = 0 and B = 0; for "zero", towards A' = −1/b, it is
        1 − |c_t| / b. For "pooled" one more example, which is not penalised, occurs in a row as often as all
        others together: its coefficients are those of the average example.
        """
        counts = rows.counts
        size = np.asarray(counts.sum(axis=1))[:, None]
        to_zero = self.center == "zero" and self.free_slope
        target = rows.current - (1 - size / self.batch_size_ * to_zero) * rows.previous
        scales = [rows.previous] if self.free_slope else []  # 0, as is the target, where losses are unknown
        if self.free_intercept:
            scales.append(np.ones_like(size) if rows.observed.all() else rows.observed.astype(np.float64))
        if self._pools():
            counts = sparse.hstack([counts, sparse.csr_array(size)]).tocsr()
        return ridge.RidgeProblem(counts, scales, target, int(self._pools()))

    def _pools(self) -> bool:
        """Whether there is an average example; without a penalty nothing shrinks towards it."""
        return self.center == "pooled" and self.penalty != 0

    def _split(self, coefficients: Array) -> tuple[Array | None, Array | None]:
        """θ [block, n, column] → A' and B, each [train, column]; None for what is not fitted."""
        if self._pools():
            coefficients = coefficients[:, :-1] + coefficients[:, -1:]
        slope = coefficients[0] if self.free_slope else None
        if slope is not None and self.center == "zero":
            slope = slope - 1 / self.batch_size_
        return slope, (coefficients[-1] if self.free_intercept else None)

    def _choose(
        self, train: RunSet, problem: ridge.RidgeProblem, rows: Transitions, validation: RunSet | None
    ) -> float:
        """The λ whose simulations are best."""
        if validation is None:
            folds, scored = folds_over_runs(rows.run, len(train)), train
        else:
            folds = [(np.arange(len(rows.run)), np.arange(len(validation)))]
            scored = validation
        curricula = scored.curricula

        def roll_out(runs: npt.NDArray[np.int64], coefficients: Array, initial_loss: Array) -> Array:
            some = [curricula[run] for run in runs]
            return simulate_linear(some, initial_loss, *self._split(coefficients), self.batch_size_)

        errors = rollout_errors(problem, folds, scored.loss, roll_out, chosen_device(self.device))
        penalty, known = choose_penalty(errors, self.penalties or PENALTIES)
        self.penalty_errors_ = {f"{value:g}": error for value, error in known.items()}
        return penalty

    def _warn_of(self, solution: ridge.RidgeSolution) -> None:
        said, tests = self.diagnostics_, len(solution.singular)
        if said["singular"]:
            self._warn(
                f"{said['singular']} of {tests} fits have no unique solution ({said['rows_used']} rows in"
                f" all, penalty {self.penalty_}); took the smallest"
            )
        if failed := int((solution.residual > ridge.EXACT).sum()):
            self._warn(
                f"iterations did not reach their tolerance for {failed} of {tests} test examples (relative"
                f" residual {said['residual']:.1e}); take a larger penalty, or solver='cholesky'"
            )

    # --------------------------------------------------------------------------------- simulating

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        losses = simulate_linear(
            curricula,
            initial_loss,
            self.A_ - 1 / self.batch_size_ if self.free_slope else None,
            self.B_ if self.free_intercept else None,
            self.batch_size_,
            progress=True,
        )
        smallest, largest = self.loss_range_
        margin = _WIDTHS * max(largest - smallest, 1e-12)
        flat = losses.reshape(len(losses), -1)
        with np.errstate(invalid="ignore"):
            inside = (flat.min(axis=1) > smallest - margin) & (flat.max(axis=1) < largest + margin)
        if not inside.all():
            self._warn(
                f"{np.sum(~inside)} of {len(curricula)} simulated runs leave the range of recorded losses"
                f" ({smallest:.3g} .. {largest:.3g}) by more than {_WIDTHS:g} times its width: the model is"
                " unstable there; a larger penalty or another center may help"
            )
        return losses

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array:
        """What one more use changes to first order (:meth:`Simulator.first_order`).

        A use in step t adds b / |c_t| (A'_i L_{t-1} + B_i) to L_t, and a change of L_t is multiplied by the
        1 + b / |c_s| Σ_{i∈c_s} A'_i of all later steps s.
        """
        before = self.simulate([curriculum], initial_loss)[0][steps]
        slope = self.A_ - 1 / self.batch_size_ if self.free_slope else np.zeros_like(self.B_)
        growth = 1 + count_matrix([curriculum], self.batch_size_) @ slope
        later = np.ones_like(growth)
        later[:-1] = np.cumprod(growth[:0:-1], axis=0)[::-1]
        weight = (self.batch_size_ / curriculum.consumed)[steps, None]
        return np.asarray(weight * later[steps] * (slope[examples] * before + self.B_[examples]), np.float64)

    def _warn(self, message: str) -> None:
        warnings.warn(f"{type(self).__name__}: {message}", SimulationWarning, stacklevel=5)


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
