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
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum, count_matrix
from simfluence.runs import RunSet, Transitions, transitions
from simfluence.simulators import ridge
from simfluence.simulators.base import Array, Simulator
from simfluence.simulators.rollout import roll_out

Center = Literal["zero", "identity", "pooled"]
CENTERS: tuple[Center, ...] = ("zero", "identity", "pooled")
PENALTIES: tuple[float, ...] = tuple(float(value) for value in 10.0 ** np.arange(-4, 4.5, 0.5))

_GRAM_BYTES = 2**30  # Gram matrices held at once; test examples are taken in chunks of that size
_SIMULATION_BYTES = 2**28  # coefficients α, β of steps held at once; curricula likewise


class SimulationWarning(UserWarning):
    """Simulated losses that cannot be right."""


class MarkovSimulator(Simulator):
    """The family; use one of its three members.

    Parameters
    ----------
    penalty : λ ≥ 0 of the ridge regression. None chooses from ``PENALTIES`` by the rollout error
        (all-steps MSE) on validation runs, or without any by cross-validation over runs.
    center : what coefficients shrink towards.
        "zero": A_i → 0, B_i → 0, as published. "identity": A_i → 1/b, B_i → 0, nothing is learnt.
        "pooled": towards the average example's A and B, which are themselves not penalised.
    folds : of the cross-validation.

    Attributes
    ----------
    A_, B_ : float [train, test]
    penalty_ : the λ used. penalty_errors_ : λ → rollout error, where it was chosen.
    batch_size_ : b. rows_used_, left_out_ : transitions × test examples used, and not finite.
    singular_ : the number of test examples for which the fit has no unique solution.
    """

    free_slope: ClassVar[bool]
    free_intercept: ClassVar[bool]

    def __init__(self, penalty: float | None = None, center: Center = "zero", folds: int = 5) -> None:
        if penalty is not None and not (np.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"penalty must be a number ≥ 0, or None to choose it; got {penalty}")
        if center not in CENTERS:
            raise ValueError(f"center must be one of {CENTERS}, got {center!r}")
        if folds < 2:
            raise ValueError(f"cross-validation needs at least 2 folds, got {folds}")
        self.penalty = penalty
        self.center = center
        self.folds = folds

    # ------------------------------------------------------------------------------------ fitting

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self.batch_size_ = float(np.median(np.concatenate([c.batch_sizes for c in train.curricula])))
        rows = transitions(train.runs, self.batch_size_)
        if not rows.observed.any():
            raise ValueError("no recorded transition has finite losses on both sides: nothing to fit")
        self.loss_range_ = [float(f(train.loss[np.isfinite(train.loss)])) for f in (np.min, np.max)]
        self.rows_used_ = int(rows.observed.sum())
        self.left_out_ = rows.n_left_out
        self.penalty_errors_: dict[str, float] = {}
        self.penalty_ = self.penalty if self.penalty is not None else self._choose(train, rows, validation)

        outer = ridge.OuterProducts(rows.counts)
        solutions = [
            self._solve(self._normal_equations(outer, rows, chunk), self.penalty_)
            for chunk in self._chunks(1)
        ]
        self._set_coefficients(np.concatenate([solution.coefficients for solution in solutions]))
        self.singular_ = int(sum(solution.singular.sum() for solution in solutions))
        if self.singular_:
            warnings.warn(
                f"{type(self).__name__}: {self.singular_} of {self.n_test_} fits have no unique solution"
                f" (λ = {self.penalty_:g}, {rows.counts.shape[0]} rows); took the smallest",
                SimulationWarning,
                stacklevel=3,
            )

    def _choose(self, train: RunSet, rows: Transitions, validation: RunSet | None) -> float:
        """The λ with the smallest rollout error; ties go to the larger."""
        if validation is None and len(train) < 2:
            raise ValueError(
                "choosing a penalty takes validation runs, or at least two training runs to"
                " cross-validate over; give one of them, or a penalty"
            )
        if validation is not None:
            folds = [(np.zeros(len(train), bool), validation)]
        else:
            fold_of = np.arange(len(train)) % min(self.folds, len(train))
            folds = [(fold_of == k, train[np.flatnonzero(fold_of == k)]) for k in range(max(fold_of) + 1)]

        outer = ridge.OuterProducts(rows.counts)
        held_out_rows = [rows.of_runs(held_out) for held_out, _ in folds]
        held_out_outer = [ridge.OuterProducts(part.counts) for part in held_out_rows]
        errors = np.zeros((len(PENALTIES), self.n_test_))
        for chunk in self._chunks(2):
            whole = self._normal_equations(outer, rows, chunk)
            for fold, (_, scored) in enumerate(folds):
                left_out = self._normal_equations(held_out_outer[fold], held_out_rows[fold], chunk)
                equations = whole - left_out
                for number, penalty in enumerate(PENALTIES):
                    coefficients = self._solve(equations, penalty).coefficients
                    errors[number, chunk] += self._rollout_errors(coefficients, scored, chunk)
        mean = errors.mean(axis=1) / len(folds)
        mean[~np.isfinite(mean)] = np.inf
        if not np.isfinite(mean).any():
            raise ValueError("every penalty tried gives rollouts that leave the range of floats")
        self.penalty_errors_ = {f"{p:g}": float(e) for p, e in zip(PENALTIES, mean, strict=True)}
        best = len(mean) - 1 - int(np.argmin(mean[::-1]))
        return PENALTIES[best]

    def _rollout_errors(self, coefficients: Array, runs: RunSet, tests: npt.NDArray[np.int64]) -> Array:
        """float [test]: the all-steps MSE of rollouts under these coefficients, mean over runs."""
        slope, intercept = self._split(coefficients)
        losses = _simulate(runs.curricula, runs.initial_loss[:, tests], slope, intercept, self.batch_size_)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(losses - runs.loss[:, :, tests])
            known = np.isfinite(runs.loss[:, :, tests])
            return np.where(known, squares, 0.0).sum((0, 1)) / np.maximum(known.sum((0, 1)), 1)

    def _normal_equations(
        self, outer: ridge.OuterProducts, rows: Transitions, tests: npt.NDArray[np.int64]
    ) -> ridge.NormalEquations:
        observed = rows.observed[:, tests].astype(np.float64)
        previous, current = rows.previous[:, tests], rows.current[:, tests]
        scales = [previous] * self.free_slope + [observed] * self.free_intercept  # previous: 0 if unknown
        return ridge.normal_equations(outer, scales, current - previous)

    def _solve(self, equations: ridge.NormalEquations, penalty: float) -> ridge.Solution:
        n, blocks = self.n_train_, self.free_slope + self.free_intercept
        if self.center == "pooled":
            # min over the unpenalised mean ā of Σ_i (A_i − ā)² is ‖(I − 11ᵀ/n) A‖²
            centering = np.eye(n) - 1.0 / n
            metric: Array = np.kron(np.eye(blocks), centering)
            return ridge.solve(equations, penalty, metric=metric)
        center = np.zeros(blocks * n)
        if self.center == "zero" and self.free_slope:
            center[:n] = -1.0 / self.batch_size_  # A = 1/b + A' → 0
        return ridge.solve(equations, penalty, center=center)

    def _split(self, coefficients: Array) -> tuple[Array | None, Array | None]:
        """[test, p] → A' and B [train, test], None for those the model has not."""
        parts = np.split(coefficients.T, self.free_slope + self.free_intercept)
        return (parts[0] if self.free_slope else None), (parts[-1] if self.free_intercept else None)

    def _set_coefficients(self, coefficients: Array) -> None:
        slope, intercept = self._split(coefficients)
        shape = (self.n_train_, self.n_test_)
        self.A_ = 1 / self.batch_size_ + (np.zeros(shape) if slope is None else slope)
        self.B_ = np.zeros(shape) if intercept is None else np.ascontiguousarray(intercept)

    def _chunks(self, copies: int) -> Iterator[npt.NDArray[np.int64]]:
        """The test examples in chunks whose Gram matrices fit in memory."""
        columns = self.n_train_ * (self.free_slope + self.free_intercept)
        size = max(1, _GRAM_BYTES // ((2 + copies) * 8 * columns**2))
        return (np.arange(start, min(start + size, self.n_test_)) for start in range(0, self.n_test_, size))

    # --------------------------------------------------------------------------------- simulating

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        slope = self.A_ - 1 / self.batch_size_ if self.free_slope else None
        intercept = self.B_ if self.free_intercept else None
        losses = _simulate(curricula, initial_loss, slope, intercept, self.batch_size_)
        low, high = self.loss_range_
        margin = 10 * max(high - low, 1e-12)
        with np.errstate(invalid="ignore"):
            wild = ~((losses > low - margin) & (losses < high + margin)).all(axis=(1, 2))
        if wild.any():
            warnings.warn(
                f"{type(self).__name__}: {wild.sum()} of {len(curricula)} simulated runs leave the range"
                f" of recorded losses ({low:.3g} .. {high:.3g}) by more than ten times its width:"
                " the model is unstable there; a larger penalty or another center may help",
                SimulationWarning,
                stacklevel=3,
            )
        return losses


class LinearSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "linear"
    free_slope, free_intercept = True, True


class AdditiveSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "additive"
    free_slope, free_intercept = False, True


class MultiplicativeSimulator(MarkovSimulator):
    __doc__ = MarkovSimulator.__doc__
    name: ClassVar[str] = "multiplicative"
    free_slope, free_intercept = True, False


def _simulate(
    curricula: Sequence[Curriculum],
    initial_loss: Array,
    slope: Array | None,
    intercept: Array | None,
    batch_size: float,
) -> Array:
    """Rollouts [run, step + 1, test] under A' and B [train, test], a chunk of curricula at a time."""
    steps, tests = max(len(curriculum) for curriculum in curricula), initial_loss.shape[1]
    losses = np.empty((len(curricula), steps + 1, tests))
    size = max(1, _SIMULATION_BYTES // (2 * 8 * steps * tests))
    for start in range(0, len(curricula), size):
        part = curricula[start : start + size]
        counts = count_matrix(part, batch_size)
        effects = [None if c is None else _padded(counts @ c, part, steps) for c in (slope, intercept)]
        alpha = None if effects[0] is None else 1 + effects[0]
        losses[start : start + size] = roll_out(alpha, effects[1], initial_loss[start : start + size])
    return losses


def _padded(rows: Array, curricula: Sequence[Curriculum], steps: int) -> Array:
    """Rows of all curricula in turn [row, test] → [run, step, test], 0 after a curriculum's end."""
    lengths = np.array([len(curriculum) for curriculum in curricula])
    padded = np.zeros((len(curricula), steps, rows.shape[1]))
    padded[np.arange(steps) < lengths[:, None]] = rows
    return padded
