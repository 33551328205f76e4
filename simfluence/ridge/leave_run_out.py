"""Ridge regression of many responses on one design, and the same without each run, in closed form.

Rows are ordered by run. For each test example z

    y_z = H_z c_z + Z θ_z + ε_z,     θ_z ~ N(0, I),   ε_z ~ N(0, λ I),   c_z ~ N(c̄, I/τ)

The design Z [row, column] is shared by all z; H_z [row, q] are a few columns of its own. With
A = (Z Zᵀ + λI)⁻¹ and Q_z = H_zᵀ A H_z + τI the solution and the residuals of run r, had the fit not seen it,
are

    c_z = Q_z⁻¹ (H_zᵀ A y_z + τ c̄),     α_z = A (y_z − H_z c_z),     θ_z = Zᵀ α_z
    e_r = (A_rr − V_r Q_z⁻¹ V_rᵀ)⁻¹ α_r,     V = A H_z,

the second being the block form of the leave-one-out formula of linear smoothers (c̄, the mean over the test
examples, is that of all runs). Where there are fewer columns than rows A is never formed:

    A = (I − WᵀW)/λ,     ZᵀZ + λI = L Lᵀ,     W = L⁻¹Zᵀ

Otherwise it is the inverse of the kernel Z Zᵀ + λI. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """What is given; what does not depend on λ is computed once.

    design : Z [row, column], or else kernel : Z Zᵀ [row, row]. target : y [row, test].
    own : H [row, q, test]; q may be 0. runs : slices of rows.
    """

    design: Array | None
    kernel: Array | None
    target: Array
    own: Array
    runs: Sequence[slice]

    @cached_property
    def sides(self) -> Array:
        """[y, H], [row, 1 + q, test]"""
        return np.concatenate([self.target[:, None], self.own], axis=1)

    @cached_property
    def gram(self) -> Array:
        """ZᵀZ"""
        assert self.design is not None
        return np.asarray(self.design.T @ self.design, np.float64)

    @cached_property
    def moments(self) -> Array:
        """Zᵀ[y, H], [column, side · test]"""
        assert self.design is not None
        return np.asarray(self.design.T @ self.sides.reshape(len(self.sides), -1), np.float64)

    @cached_property
    def products(self) -> Array:
        """[y, H]ᵀ[y, H], [test, side, side]"""
        return _products(self.sides, self.sides)


@dataclass(frozen=True)
class Solution:
    """dual α [row, test]; coefficients c [q, test]; left_out e [row, test], NaN if not asked for."""

    dual: Array
    coefficients: Array
    left_out: Array


def solve(problem: Problem, penalty: float, *, pooling: float = 0.01, leave_out: bool = True) -> Solution:
    """The solution for λ = penalty > 0; τ is ``pooling`` times the mean information on c.

    Raises ValueError if the penalty is too small for the system to be factorized.
    """
    inverse: _ByColumns | _ByRows = (
        _ByRows(problem, penalty) if problem.design is None else _ByColumns(problem, penalty)
    )
    q, tests = problem.own.shape[1:]
    coefficients, information = np.zeros((q, tests)), np.zeros((tests, q, q))
    if q:
        products = inverse.products()
        information, moment = products[:, 1:, 1:], products[:, 1:, 0]
        strength = pooling * np.trace(information.mean(0)) / q + 1e-12
        shared = linalg.solve(information.sum(0) + strength * np.eye(q), moment.sum(0), assume_a="pos")
        information = information + strength * np.eye(q)
        coefficients = np.linalg.solve(information, (moment + strength * shared)[..., None])[..., 0].T
    dual = inverse.dual(np.concatenate([np.ones((1, tests)), -coefficients]))
    left_out = np.full_like(dual, np.nan)
    if leave_out:
        for rows, (block, carried) in zip(problem.runs, inverse.of_runs(), strict=True):
            left_out[rows] = _left_out(block, dual[rows], carried, information)
    return Solution(dual, coefficients, left_out)


class _ByColumns:
    """A through M = ZᵀZ + λI = L Lᵀ."""

    def __init__(self, problem: Problem, penalty: float) -> None:
        self._problem, self._penalty = problem, penalty
        self._factor = _cholesky(problem.gram, penalty)
        self._solved = linalg.solve_triangular(self._factor, problem.moments, lower=True, check_finite=False)

    def products(self) -> Array:
        """[y, H]ᵀ A [y, H], [test, side, side]"""
        sides = self._solved.reshape(-1, *self._problem.sides.shape[1:])
        return (self._problem.products - _products(sides, sides)) / self._penalty

    def dual(self, weights: Array) -> Array:
        """A Σ_side weights · side, for weights [side, test]."""
        sides = self._problem.sides
        combined = np.einsum("ksz,sz->kz", self._solved.reshape(-1, *sides.shape[1:]), weights)
        back = linalg.solve_triangular(self._factor, combined, lower=True, trans=1, check_finite=False)
        rest = np.einsum("rsz,sz->rz", sides, weights) - self._problem.design @ back
        return np.asarray(rest / self._penalty, np.float64)

    def of_runs(self) -> Iterator[tuple[Array, Array]]:
        """(A_rr, V_r [row of the run, q, test]) of every run."""
        own = self._solved.reshape(-1, *self._problem.sides.shape[1:])[:, 1:]
        flat = np.ascontiguousarray(own).reshape(len(own), -1)
        for rows in self._problem.runs:
            assert self._problem.design is not None
            part = linalg.solve_triangular(
                self._factor, self._problem.design[rows].T, lower=True, check_finite=False
            ).T
            block = (np.eye(len(part)) - part @ part.T) / self._penalty
            carried = self._problem.own[rows] - (part @ flat).reshape(len(part), *own.shape[1:])
            yield block, carried / self._penalty


class _ByRows:
    """A through the kernel Z Zᵀ + λI itself."""

    def __init__(self, problem: Problem, penalty: float) -> None:
        assert problem.kernel is not None
        self._problem = problem
        self._factor = _cholesky(problem.kernel, penalty)
        flat = problem.sides.reshape(len(problem.sides), -1)
        self._solved = linalg.cho_solve((self._factor, True), flat).reshape(problem.sides.shape)

    def products(self) -> Array:
        """[y, H]ᵀ A [y, H], [test, side, side]"""
        return _products(self._problem.sides, self._solved)

    def dual(self, weights: Array) -> Array:
        """A Σ_side weights · side, for weights [side, test]."""
        return np.einsum("rsz,sz->rz", self._solved, weights)

    def of_runs(self) -> Iterator[tuple[Array, Array]]:
        """(A_rr, V_r [row of the run, q, test]) of every run."""
        inverse, _ = linalg.lapack.dpotri(self._factor, lower=1)  # below the diagonal
        for rows in self._problem.runs:
            block = np.tril(inverse[rows, rows])
            yield block + np.tril(block, -1).T, self._solved[rows, 1:]


def _cholesky(system: Array, penalty: float) -> Array:
    """The lower factor of system + λI; ValueError if there is none."""
    shifted = system + penalty * np.eye(len(system))
    factor, failed = linalg.lapack.dpotrf(shifted, lower=1, overwrite_a=1, clean=1)
    if failed:
        raise ValueError(f"the penalty {penalty:g} is too small: the system is numerically singular")
    return np.asarray(factor, np.float64)


def _products(left: Array, right: Array) -> Array:
    """leftᵀ right of every test example: [row, side, test] each → [test, side, side]"""
    return np.asarray(np.matmul(left.transpose(2, 1, 0), right.transpose(2, 0, 1)), np.float64)


def _left_out(block: Array, dual: Array, carried: Array, information: Array) -> Array:
    """e_r by the formula above: one solve for all test examples, Woodbury for the columns of their own."""
    factor = linalg.cho_factor(block, check_finite=False)
    residuals = linalg.cho_solve(factor, dual, check_finite=False)
    rows, q, tests = carried.shape
    if q == 0:
        return np.asarray(residuals, np.float64)
    solved = linalg.cho_solve(factor, carried.reshape(rows, -1), check_finite=False).reshape(rows, q, tests)
    inner = information - _products(carried, solved)
    moment = np.einsum("rqz,rz->zq", carried, residuals)
    weights = np.linalg.solve(inner, moment[..., None])[..., 0]
    return np.asarray(residuals + np.einsum("rqz,zq->rz", solved, weights), np.float64)
