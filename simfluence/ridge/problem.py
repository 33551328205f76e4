"""What is solved: for each test example z a ridge regression on one or two blocks of the same counts.

    minimise ‖X_z θ − y_z‖² + λ ‖Pθ‖²,    X_z = [diag(a_z) U] or [diag(a_z) U, diag(b_z) U]

U are the counts [row, n], a and b the scales [row] of the blocks; a row whose scales and target are 0 is left
out. P is the identity, or leaves out the last example if that is not penalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RidgeProblem:
    """The regressions of many test examples.

    Parameters
    ----------
    counts : U, sparse [row, n].
    scales : one or two float arrays, [row, test], or [row, 1] where all test examples have the same.
    target : y, float [row, test], finite.
    free : how many examples, 0 or 1, are not penalised; it is the last one.
    """

    counts: sparse.csr_array
    scales: Sequence[Array]
    target: Array
    free: int = 0

    @property
    def blocks(self) -> int:
        """How many coefficients an example has."""
        return len(self.scales)

    @property
    def n(self) -> int:
        """How many examples there are."""
        return self.counts.shape[1]

    @property
    def columns(self) -> int:
        """How many coefficients a test example has."""
        return self.blocks * self.n

    @property
    def n_tests(self) -> int:
        """How many test examples there are."""
        return self.target.shape[1]

    @property
    def shared(self) -> bool:
        """Whether several test examples have the same design."""
        return self.n_tests > 1 and all(scale.shape[1] == 1 for scale in self.scales)

    def tests(self, chosen: slice | IntArray) -> RidgeProblem:
        """The regressions of these test examples."""
        scales = [scale if scale.shape[1] == 1 else scale[:, chosen] for scale in self.scales]
        return replace(self, scales=scales, target=self.target[:, chosen])

    def rows(self, chosen: IntArray) -> RidgeProblem:
        """The same regressions on these rows."""
        scales = [scale[chosen] for scale in self.scales]
        return replace(self, counts=self.counts[chosen], scales=scales, target=self.target[chosen])

    def from_dual(self, alpha: Array) -> Array:
        """θ = Xᵀα: [row, test] → [block, n, test]."""
        return np.stack([self.counts.T @ (scale * alpha) for scale in self.scales])


def uses_dual(problem: RidgeProblem) -> bool:
    """Whether the dual system is the smaller one, and equivalent under every positive penalty."""
    return problem.counts.shape[0] < problem.columns and not problem.free


def system_size(problem: RidgeProblem) -> int:
    """Rows of the system to factorize."""
    return problem.counts.shape[0] if uses_dual(problem) else problem.columns


@dataclass(frozen=True)
class RidgeSolution:
    """The coefficients for every penalty, and how they were found.

    coefficients : float [penalty, block, n, test].
    solver : "iterative" or "cholesky".
    singular : bool [test], where there is no unique solution; coefficients are then the smallest.
    residual : float [penalty, test], of the normal equations, relative to that at zero, as the iterations
        measure it; 0 where the system was factorized.
    iterations : int, of the slowest system; 0 where all systems were factorized.
    """

    coefficients: Array
    solver: str
    singular: BoolArray
    residual: Array
    iterations: int
