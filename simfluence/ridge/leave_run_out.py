"""Ridge regression of many responses on one shared kernel, left out run by run in closed form.

Rows are ordered by run. For each test example z

    y_z = H_z c_z + f_z + ε_z,     f_z ~ N(0, K),   ε_z ~ N(0, λ I),   c_z ~ N(c̄, I/τ)

K [row, row] is shared by all z; H_z [row, q] are a few columns of its own (the means). With
A = (K + λI)⁻¹ and Q_z = H_zᵀ A H_z + τI the solution and the residuals of the run r, had the fit not
seen it, are

    c_z = Q_z⁻¹ (H_zᵀ A y_z + τ c̄),     α_z = A (y_z − H_z c_z),
    e_r = (A_rr − V_r Q_z⁻¹ V_rᵀ)⁻¹ α_r,     V = A H_z,

the second being the block form of the leave-one-out formula of linear smoothers (c̄, the mean over the
test examples, is not left out). Everything float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """kernel [row, row]; target [row, test]; means [row, q, test] (q may be 0); runs: slices of rows."""

    kernel: Array
    target: Array
    means: Array
    runs: Sequence[slice]


@dataclass(frozen=True)
class Solution:
    """dual α [row, test]; coefficients c [q, test]; left_out [row, test], NaN if not asked for."""

    dual: Array
    coefficients: Array
    left_out: Array


def solve(problem: Problem, penalty: float, *, pooling: float = 0.01, leave_out: bool = True) -> Solution:
    """The solution for λ = penalty > 0; τ is ``pooling`` times the mean information on c.

    Raises ValueError if the penalty is too small for the kernel to be inverted.
    """
    system = problem.kernel + penalty * np.eye(len(problem.kernel))
    factor, failed = linalg.lapack.dpotrf(system, lower=1, overwrite_a=1)
    if failed:
        raise ValueError(f"the penalty {penalty:g} is too small: the system is numerically singular")
    dual = linalg.cho_solve((factor, True), problem.target)
    rows, q, tests = problem.means.shape
    coefficients = np.zeros((q, tests))
    carried, information = np.empty((rows, 0, tests)), np.empty((tests, 0, 0))
    if q:
        carried = linalg.cho_solve((factor, True), problem.means.reshape(rows, -1)).reshape(rows, q, tests)
        information = np.einsum("rqz,rpz->zqp", problem.means, carried, optimize=True)
        moment = np.einsum("rqz,rz->zq", carried, problem.target)
        strength = pooling * np.trace(information.mean(0)) / q + 1e-12
        shared = linalg.solve(information.sum(0) + strength * np.eye(q), moment.sum(0), assume_a="pos")
        information = information + strength * np.eye(q)
        coefficients = np.linalg.solve(information, (moment + strength * shared)[..., None])[..., 0].T
        dual = dual - np.einsum("rqz,qz->rz", carried, coefficients)
    left_out = np.full_like(dual, np.nan)
    if leave_out:  # blocks of the inverse, which lapack writes below the diagonal
        inverse, _ = linalg.lapack.dpotri(factor, lower=1, overwrite_c=1)
        for rows_of in problem.runs:
            block = np.tril(inverse[rows_of, rows_of])
            block += np.tril(block, -1).T
            left_out[rows_of] = _left_out(block, dual[rows_of], carried[rows_of], information)
    return Solution(dual, coefficients, left_out)


def _left_out(block: Array, dual: Array, carried: Array, information: Array) -> Array:
    """e_r by the formula above: one solve for all test examples, and Woodbury for the means."""
    factor = linalg.cho_factor(block)
    residuals = linalg.cho_solve(factor, dual)
    rows, q, tests = carried.shape
    if q == 0:
        return residuals
    solved = linalg.cho_solve(factor, carried.reshape(rows, -1)).reshape(rows, q, tests)
    inner = information - np.einsum("rqz,rpz->zqp", carried, solved, optimize=True)
    weights = np.linalg.solve(inner, np.einsum("rqz,rz->zq", carried, residuals)[..., None])[..., 0]
    return residuals + np.einsum("rqz,zq->rz", solved, weights)
