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
    factor = _cholesky(problem.gram if problem.kernel is None else problem.kernel, penalty)
    solved = _solved(problem, factor, penalty)
    q, tests = problem.own.shape[1:]
    coefficients, information = np.zeros((q, tests)), np.zeros((tests, q, q))
    if q:
        products = _products(problem.own, solved)
        information, moment = products[..., 1:], products[..., 0]
        strength = pooling * np.trace(information.mean(0)) / q + 1e-12
        shared = linalg.solve(information.sum(0) + strength * np.eye(q), moment.sum(0), assume_a="pos")
        information = information + strength * np.eye(q)
        coefficients = np.linalg.solve(information, (moment + strength * shared)[..., None])[..., 0].T
    dual = solved[:, 0] - np.einsum("rqz,qz->rz", solved[:, 1:], coefficients)
    left_out = np.full_like(dual, np.nan)
    if leave_out:
        for rows, block in zip(problem.runs, _blocks(problem, factor, penalty), strict=True):
            left_out[rows] = _left_out(block, dual[rows], solved[rows, 1:], information)
    return Solution(dual, coefficients, left_out)


def _solved(problem: Problem, factor: Array, penalty: float) -> Array:
    """A [y, H], [row, 1 + q, test]"""
    if problem.design is None:
        flat = problem.sides.reshape(len(problem.sides), -1)
        return np.asarray(linalg.cho_solve((factor, True), flat).reshape(problem.sides.shape))
    back = linalg.cho_solve((factor, True), problem.moments, check_finite=False)
    return (problem.sides - (problem.design @ back).reshape(problem.sides.shape)) / penalty


def _blocks(problem: Problem, factor: Array, penalty: float) -> Iterator[Array]:
    """A_rr of every run."""
    if problem.design is None:
        inverse, _ = linalg.lapack.dpotri(factor, lower=1)  # below the diagonal
        for rows in problem.runs:
            block = np.tril(inverse[rows, rows])
            yield block + np.tril(block, -1).T
        return
    for rows in problem.runs:
        part = linalg.solve_triangular(factor, problem.design[rows].T, lower=True, check_finite=False).T
        yield (np.eye(len(part)) - part @ part.T) / penalty


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
