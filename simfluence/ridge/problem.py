"""What all solvers solve, and what they answer.

For each test example z a ridge regression with a design of k blocks over the same sparse counts:

    design_z = [diag(s_1z) U, …, diag(s_kz) U],     minimise ‖design_z θ − y_z‖² + λ_z θᵀ P θ

U the counts [row, n], s_jz the scale of block j [row] (0 leaves a row out), P the identity or, with
``pooled``, I_k ⊗ (I − 11ᵀ/n): distances from the block's average coefficient, itself unpenalised.

Shapes: blocks k, examples n, columns p = k n; all float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
SolverName = Literal["primal", "dual", "iterative"]


@dataclass(frozen=True)
class RidgeProblem:
    """The regressions of many test examples.

    Parameters
    ----------
    counts : U, sparse [row, n].
    scales : s, one [row, test] a block; [row, 1] if all test examples have the same design, which
        solvers then factorize once.
    target : y, [row, test], finite everywhere and 0 where the row is left out.
    pooled : whether P is I − 11ᵀ/n in every block instead of the identity.
    """

    counts: sparse.csr_array
    scales: Sequence[Array]
    target: Array
    pooled: bool = False

    @property
    def blocks(self) -> int:
        return len(self.scales)

    @property
    def n(self) -> int:
        return self.counts.shape[1]

    @property
    def columns(self) -> int:
        return self.blocks * self.n

    @property
    def n_tests(self) -> int:
        return self.target.shape[1]

    @property
    def shared(self) -> bool:
        """Whether several test examples have one design, which it pays to factorize."""
        return self.scales[0].shape[1] == 1 and self.n_tests > 1

    def tests(self, chosen: slice | npt.NDArray[np.int64]) -> RidgeProblem:
        """The regressions of these test examples."""
        scales = self.scales if self.shared else [scale[:, chosen] for scale in self.scales]
        return replace(self, scales=scales, target=self.target[:, chosen])

    def rows(self, chosen: npt.NDArray[np.int64]) -> RidgeProblem:
        """The same regressions on these rows."""
        scales = [scale[chosen] for scale in self.scales]
        return replace(self, counts=self.counts[chosen], scales=scales, target=self.target[chosen])


@dataclass(frozen=True)
class Convergence:
    """What an iterative solver reached.

    tolerance : asked for, of the preconditioned residual relative to its start.
    iterations : taken, by the slowest system.
    residual : the largest true relative residual, ‖m − (G + λP) θ‖ / ‖m‖ over test examples.
    failed : how many test examples did not reach the tolerance.
    """

    tolerance: float
    iterations: int
    residual: float
    failed: int


@dataclass(frozen=True)
class RidgeSolution:
    """θ, by which solver, and how well.

    coefficients : [block, n, test].
    solver : "primal", "dual" or "iterative".
    singular : [test], where no unique solution exists; coefficients are then the smallest.
    degrees_of_freedom : [test], tr((G + λP)⁻¹ G), estimated from one random probe a test example.
    condition : [test], estimate of the condition number of G + λP, from the same probe (inf if singular).
    convergence : of the iterative solver.
    """

    coefficients: Array
    solver: SolverName
    singular: BoolArray
    degrees_of_freedom: Array
    condition: Array
    convergence: Convergence | None = None


def probes(p: int, tests: int) -> npt.NDArray[np.int8]:
    """Random signs [p, test], the same at every call: one probe a test example."""
    return 2 * np.random.default_rng(0).integers(0, 2, (p, tests), np.int8) - np.int8(1)


def norm_bound(problem: RidgeProblem) -> Array:
    """‖|X|ᵀ|X|‖_∞ ≥ ‖G‖₂, [test] ([1] if shared); nearly equal where all losses have one sign."""
    total = np.asarray(problem.counts.sum(axis=1)).reshape(-1, 1)
    rows: Array = np.abs(np.stack(problem.scales)).sum(0, dtype=np.float64) * total
    sums: list[Array] = [(problem.counts.T @ (np.abs(s) * rows)).max(0) for s in problem.scales]
    return np.asarray(np.max(np.stack(sums), axis=0), np.float64)


def penalised_rank(problem: RidgeProblem) -> int:
    """rank P = tr P"""
    return problem.columns - (problem.blocks if problem.pooled else 0)


def off_mean(vectors: torch.Tensor, blocks: int) -> torch.Tensor:
    """P v for pooled problems: [..., p, c] less the mean of each block."""
    split = vectors.unflatten(-2, (blocks, -1))
    return (split - split.mean(-2, keepdim=True)).flatten(-3, -2)
