"""The effects regression with effects that examples share by what they look like.

The same increments, drift, means and noise as in regression.py, for all test examples at once: effects
have a prior that knows both kinds of examples,

    B_i(z, t) = Σ_k φ_k(t) b_{k,i}(z),     cov(b_{k,i}(z), b_{k,i'}(z')) = K_{ii'} G_{zz'}

With K = h hᵀ and G = h hᵀ of frozen features this is the bilinear form B_i(z) = h_iᵀ W h_z with
W ~ N(0, 1), W integrated out (analysis/METHODS.md, "Features of unseen examples"); a part of the identity in
K or G adds free effects, for which features are then the prior. On whitened rows (N of them, m test examples)
the increments' covariance is

    R ⊗ G + λ I,     R = W [(X K Xᵀ) ∘ (Φ Φᵀ)] Wᵀ

and the drift, one value an interval and test example, is projected out: with Q₂ orthonormal and
orthogonal to the whitened indicators Z of the intervals, Q₂ᵀ R Q₂ = E diag(k) Eᵀ, U = Q₂ E and
G = V diag(g) Vᵀ,

    α = U [(Uᵀ (Y − H c) V) / (k gᵀ + λ)] Vᵀ,     effects = K Xᵀ diag(φ_k) Wᵀ α G

c, the coefficients of the means H, are shared by all test examples: generalised least squares in the same
basis. A run r left out (drift, effects; not c) has residuals e_r V_v = (U_r diag(1/(k g_v + λ)) U_rᵀ)⁻¹
α_r V_v for every v.

Test examples that were never seen, with kernel rows G* to those that were, have effects from α G*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import linalg

from simfluence.ridge import leave_run_out
from simfluence.simulators.effects.regression import EffectsFit, EffectsRegression

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BilinearRegression(EffectsRegression):
    """An ``EffectsRegression`` whose effects covary.

    train_kernel : K [train, train]. test_kernel : G [test, test]. Both positive semidefinite.
    """

    train_kernel: Array
    test_kernel: Array

    @cached_property
    def drift_rows(self) -> Array:
        """Z [row, interval], whitened."""
        indicators = (self.interval[:, None] == np.arange(self.intervals)).astype(np.float64)
        return self.whiten(indicators)

    @cached_property
    def row_spectrum(self) -> tuple[Array, Array]:
        """(k, U [row, component])"""
        rows, intervals = self.drift_rows.shape
        if rows <= intervals:  # a single run: all of it is drift
            return np.zeros(0), np.zeros((rows, 0))
        beside = linalg.qr(self.drift_rows)[0][:, intervals:]
        x = self.centered * self.scale
        kernel = (x @ self.train_kernel @ x.T) * (self.basis @ self.basis.T)
        kernel = self.whiten(self.whiten(kernel).T)
        values, vectors = linalg.eigh(beside.T @ kernel @ beside, driver="evd")
        return values.clip(0), beside @ vectors

    @cached_property
    def test_spectrum(self) -> tuple[Array, Array]:
        """(g, V [test, component])"""
        values, vectors = np.linalg.eigh(self.test_kernel)
        return values.clip(0), vectors

    @cached_property
    def rotated(self) -> tuple[Array, Array]:
        """(Uᵀ Y V, Uᵀ H V [component, q, component])"""
        (_, rows), (_, tests) = self.row_spectrum, self.test_spectrum
        own = np.einsum("rc,rqz,zv->cqv", rows, self.whiten(self.known_columns), tests, optimize=True)
        return rows.T @ self.whiten(self.increments) @ tests, own

    def dual(self, penalty: float) -> tuple[Array, Array]:
        """(α [row, test], c [q]) for λ = penalty."""
        (k, rows), (g, tests) = self.row_spectrum, self.test_spectrum
        target, own = self.rotated
        weights = 1 / (np.outer(k, g) + penalty)
        coefficients = np.zeros(own.shape[1])
        if own.size:
            weighted = own * weights[:, None]
            information = np.einsum("cqv,cpv->qp", weighted, own, optimize=True)
            information += 1e-9 * np.trace(information) * np.eye(len(information)) / len(information)
            moment = np.einsum("cqv,cv->q", weighted, target, optimize=True)
            coefficients = np.linalg.lstsq(information, moment, rcond=None)[0]
            target = target - np.einsum("cqv,q->cv", own, coefficients)
        return rows @ (target * weights) @ tests.T, coefficients

    def solve(self, penalty: float, leave_out: bool = True) -> EffectsFit:
        """As in ``EffectsRegression``."""
        if np.isinf(penalty):
            return super().solve(penalty, leave_out)
        alpha, shared = self.dual(penalty)
        coefficients = np.repeat(shared[:, None], len(self.test_kernel), axis=1)
        several = leave_out and len(self.levels) > 1
        left_out = self.left_out(alpha, penalty) if several else np.full_like(alpha, np.nan)
        return self.fit_of(leave_run_out.Solution(alpha, coefficients, left_out), several)

    def example_weights(self, solution: leave_run_out.Solution) -> Array:
        """T_k = Xᵀ diag(φ_k) Wᵀ α [k, train, test], times the scale of X, so that effects are K T G."""
        dual = self.whitener.T @ solution.dual
        rows = self.centered * self.scale**2
        return np.stack([rows.T @ (phi[:, None] * dual) for phi in self.basis.T])

    def effects_and_drift(self, solution: leave_run_out.Solution) -> tuple[Array, Array]:
        """(B [k, train, test], μ [interval, test]); the drift is what the rest leaves, by least squares."""
        effects = self.train_kernel @ self.example_weights(solution) @ self.test_kernel
        predicted = np.einsum("rqz,qz->rz", self.known_columns, solution.coefficients)
        for phi, effect in zip(self.basis.T, effects, strict=True):
            predicted += phi[:, None] * (self.centered @ effect)
        rest = self.whiten(self.increments - predicted)
        return effects, np.asarray(np.linalg.lstsq(self.drift_rows, rest, rcond=None)[0], np.float64)

    def left_out(self, alpha: Array, penalty: float) -> Array:
        """Residuals [row, test], whitened, of each run by a fit without it; c and s are those of all runs."""
        (k, rows), (g, tests) = self.row_spectrum, self.test_spectrum
        rotated = alpha @ tests
        residuals = np.zeros_like(rotated)
        levels, level_of = np.unique(np.round(g / max(g.max(), 1e-300), 9), return_inverse=True)
        for level in range(len(levels)):
            columns = np.flatnonzero(level_of == level)
            weights = 1 / (k * g[columns[0]] + penalty)
            for rows_of in self.data.recorded.rows:
                part = rows[rows_of]
                block = (part * weights) @ part.T
                block += 1e-10 * max(np.trace(block) / len(block), 1e-300) * np.eye(len(block))
                residuals[rows_of, columns] = linalg.solve(block, rotated[rows_of, columns], assume_a="pos")
        return residuals @ tests.T
