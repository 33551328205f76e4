"""Solvers of (G + λI) x = q, for several q at once; G is the Gauss-Newton matrix, λ the damping.

    exact   Cholesky factors of the matrix itself                              parameters³ operations
    cg      conjugate gradients (Hestenes & Stiefel 1952), products with G over all examples
    lissa   x ← x + (q − (G_B + λI) x)/σ, products over a random batch B (Agarwal et al. 2017; Koh & Liang
            2017), where σ exceeds the largest eigenvalue

All report ‖q − (G + λI) x‖/‖q‖, measured at the end on all examples, and warn if it exceeds the tolerance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from simfluence.attribution.curvature import GaussNewton


class ConvergenceWarning(UserWarning):
    """A system of equations was not solved to the tolerance that was asked for."""


@dataclass(frozen=True)
class Solution:
    """x [vector, parameter], and how it was found."""

    vectors: Tensor
    report: dict[str, Any]


class Solver(Protocol):
    """Solves (G + λI) x = q for every row q of ``vectors``."""

    name: ClassVar[str]

    def solve(
        self, curvature: GaussNewton, vectors: Tensor, damping: float, *, progress: bool = False
    ) -> Solution: ...


@dataclass(frozen=True)
class Exact:
    """G in full, in float64, and its Cholesky factors.

    largest : more parameters than these are refused.
    """

    name: ClassVar[str] = "exact"
    largest: int = 20_000

    def solve(
        self, curvature: GaussNewton, vectors: Tensor, damping: float, *, progress: bool = False
    ) -> Solution:
        """Raises ValueError for too many parameters, or a matrix that is singular to rounding."""
        if curvature.size > self.largest:
            raise ValueError(
                f"an exact inverse of {curvature.size} parameters takes {curvature.size**2 / 2**27:.0f} GiB a"
                f" matrix; at most {self.largest} are allowed: choose fewer parameters, or solver='cg'"
            )
        matrix = curvature.dense().double()
        matrix.diagonal().add_(damping)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise ValueError(f"G + λI is not positive definite with damping {damping}: choose a larger one")
        solved = torch.cholesky_solve(vectors.double().T, factor).T
        residual = relative_norms(vectors.double() - solved @ matrix, vectors)
        return Solution(solved.to(vectors.dtype), {"solver": self.name, "residual": float(residual.max())})


@dataclass(frozen=True)
class ConjugateGradient:
    """Conjugate gradients, each vector until its residual is small.

    tolerance : of the relative residual. max_iterations : each is one pass over all examples.
    """

    name: ClassVar[str] = "cg"
    tolerance: float = 1e-4
    max_iterations: int = 1000

    def solve(
        self, curvature: GaussNewton, vectors: Tensor, damping: float, *, progress: bool = False
    ) -> Solution:
        """Warns ConvergenceWarning if a residual stays above the tolerance."""

        def product(some: Tensor) -> Tensor:
            return curvature.product(some) + damping * some

        x, residual, direction = torch.zeros_like(vectors), vectors.clone(), vectors.clone()
        square = residual.square().sum(1)
        goal = (self.tolerance / 2) ** 2 * square  # rounding makes the true residual a little larger
        iterations = 0
        with tqdm(total=self.max_iterations, desc=self.name, disable=not progress) as bar:
            while (active := square > goal).any() and iterations < self.max_iterations:
                p = direction[active]
                curved = product(p)
                step = (square[active] / (p * curved).sum(1))[:, None]
                x[active] += step * p
                residual[active] -= step * curved
                new = residual[active].square().sum(1)
                direction[active] = residual[active] + (new / square[active])[:, None] * p
                square[active] = new
                iterations += 1
                bar.set_postfix_str(f"residual {float(relative_norms(residual, vectors).max()):.1e}", False)
                bar.update()
        return _checked(x, vectors, product, self, {"iterations": iterations})


@dataclass(frozen=True)
class Lissa:
    """Stochastic iteration over random batches.

    batch_size : examples a step, drawn without replacement.
    depth : steps; None: σ/λ · log(1/tolerance), after which the slowest direction is within the tolerance,
        and as many again to average; never more than ``max_depth``.
    scale : σ; None: λ and the largest eigenvalue of G over all examples and over ``probed`` batches, a tenth
        added.
    averaged : the answer is the mean of the later half of the iterates (Polyak & Juditsky 1992), which has
        much less of the batches' noise than the last one, the published answer.
    repeats : independent repetitions whose answers are averaged.
    tolerance : of the relative residual; batches leave noise, so that it cannot be small.
    """

    name: ClassVar[str] = "lissa"
    batch_size: int = 32
    depth: int | None = None
    scale: float | None = None
    averaged: bool = True
    repeats: int = 1
    seed: int = 0
    tolerance: float = 0.1
    max_depth: int = 20_000
    probed: int = 5

    def solve(
        self, curvature: GaussNewton, vectors: Tensor, damping: float, *, progress: bool = False
    ) -> Solution:
        """Warns ConvergenceWarning if a residual stays above the tolerance; raises ArithmeticError if they
        grow without bounds."""
        generator = torch.Generator().manual_seed(self.seed)
        scale = self.scale or self._scale(curvature, damping, generator)
        wanted = math.ceil(scale / damping * math.log(1 / self.tolerance)) * (2 if self.averaged else 1)
        depth = self.depth or min(self.max_depth, max(1, wanted))
        bound = 10 * vectors.norm(dim=1) / damping  # ‖x‖ ≤ ‖q‖/λ
        first = depth // 2 if self.averaged else depth - 1  # of the iterates that are averaged
        x, total = torch.zeros_like(vectors), torch.zeros_like(vectors)
        with tqdm(total=self.repeats * depth, desc=self.name, disable=not progress) as bar:
            for step in [*range(depth)] * self.repeats:
                if step == 0:
                    x = torch.zeros_like(vectors)
                else:
                    rows = self._batch(curvature, generator)
                    x = x - (curvature.product(x, rows) + damping * x) / scale
                x = x + vectors / scale
                if not (x.norm(dim=1) <= bound).all():
                    raise ArithmeticError(
                        f"LiSSA diverges with scale {scale:.4g}: choose a larger scale or batch_size"
                    )
                if step >= first:
                    total += x / (depth - first)
                bar.update()
        return _checked(
            total / self.repeats, vectors, lambda some: curvature.product(some) + damping * some, self,
            {"depth": depth, "scale": scale},
        )  # fmt: skip

    def _scale(self, curvature: GaussNewton, damping: float, generator: torch.Generator) -> float:
        batches = [self._batch(curvature, generator) for _ in range(self.probed)]
        return 1.1 * max(curvature.largest_eigenvalue(rows) for rows in (None, *batches)) + damping

    def _batch(self, curvature: GaussNewton, generator: torch.Generator) -> list[int]:
        drawn = torch.randperm(len(curvature.examples), generator=generator)
        return drawn[: self.batch_size].tolist()


SOLVERS: dict[str, Callable[[], Solver]] = {"exact": Exact, "cg": ConjugateGradient, "lissa": Lissa}


def relative_norms(residuals: Tensor, vectors: Tensor) -> Tensor:
    """‖residual‖/‖vector‖ of each, [vector]; 0 for 0/0."""
    return residuals.norm(dim=1) / vectors.norm(dim=1).clamp_min(torch.finfo(vectors.dtype).tiny)


def _checked(
    x: Tensor, vectors: Tensor, product: Callable[[Tensor], Tensor], solver: Any, found: dict[str, Any]
) -> Solution:
    residuals = relative_norms(vectors - product(x), vectors)
    worst = float(residuals.max())
    if not worst <= solver.tolerance:
        late = int((~(residuals <= solver.tolerance)).sum())
        warnings.warn(
            f"{solver.name}: {late} of {len(vectors)} systems are not solved to {solver.tolerance:g}; the"
            f" worst has a relative residual of {worst:.2g} ({found}); allow more steps, or more damping",
            ConvergenceWarning,
            stacklevel=4,
        )
    return Solution(x, {"solver": solver.name, **asdict(solver), **found, "residual": worst})
