"""Influence functions with the damped Gauss-Newton matrix (Koh & Liang 2017; Bae et al. 2022).

    score(i, z) = ∇L(z; θ)ᵀ (G + λI)⁻¹ ∇L(i; θ)      [train, test], units: loss per weight

It is −dL(z; θ(ε))/dε of the proximal Bregman response θ(ε), where ε is the weight with which i is added to
the mean training loss of N examples (:mod:`.pbrf`). Positive: more of i lowers the loss of z. Removing i is
ε = −1/N: to first order it raises the loss of z by score/N.

For a linear model with squared error or cross-entropy, G is the Hessian of the mean loss, and this is the
influence of Koh & Liang with damping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.curvature import GaussNewton
from simfluence.attribution.gradients import example_gradients
from simfluence.attribution.inverse import SOLVERS, Solver
from simfluence.attribution.objective import Objective
from simfluence.attribution.scores import InfluenceScores


def influence(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    solver: Literal["exact", "cg", "lissa"] | Solver = "cg",
    damping: float | None = None,
    curvature: Sequence[Any] | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> InfluenceScores:
    """Influence of every training example on the loss of every test example.

    Parameters
    ----------
    solver : by name with its defaults, or one with its settings (:mod:`.inverse`). All test gradients are
        solved for at once and held, [test, parameter]; training gradients pass by.
    damping : λ > 0; None: a tenth of G's mean eigenvalue, by Hutchinson's estimate.
    curvature : the examples that G is the mean over, N of them; by default the training examples.
    parameters : as in :func:`.parameters.selected_parameters`; the others are held fixed.
    batch_size : examples in a pass; changes time and memory alone.
    seed : of the estimate of the mean eigenvalue.

    Returns
    -------
    Scores whose provenance has the damping, the solver's settings and its worst relative residual.

    Raises
    ------
    ValueError : nothing to differentiate by, no examples, damping ≤ 0, weights in half precision.

    Warns
    -----
    ConvergenceWarning : a system was not solved to the solver's tolerance.
    """
    if not isinstance(solver, str):
        method = solver
    elif solver in SOLVERS:
        method = SOLVERS[solver]()
    else:
        raise ValueError(f"solver must be one of {list(SOLVERS)}, or a solver, got {solver!r}")
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    examples = train if curvature is None else curvature
    matrix = GaussNewton(objective, examples, parameters=parameters, batch_size=batch_size)
    damping = checked_damping(matrix, damping, seed)
    chosen: dict[str, Any] = {"parameters": parameters, "batch_size": batch_size}
    of_tests = torch.cat(list(example_gradients(objective, test, **chosen))).to(matrix.dtype)
    solution = method.solve(matrix, of_tests, damping)
    parts: list[Tensor] = []
    with tqdm(total=len(train), desc="influence", disable=not progress, unit="example") as bar:
        for gradients in example_gradients(objective, train, **chosen):
            parts.append(gradients.to(matrix.dtype) @ solution.vectors.T)
            bar.update(len(gradients))
    return InfluenceScores(
        torch.cat(parts).cpu().numpy(),
        f"influence_{method.name}",
        "loss per weight of an example in the training mean",
        tuple(matrix.parameters),
        {
            "weights_fingerprint": weights_fingerprint(objective.module),
            "damping": damping,
            "curvature_examples": len(examples),
            **solution.report,
        },
        weighing="run",
    )


def checked_damping(matrix: GaussNewton, damping: float | None, seed: int = 0) -> float:
    """λ, by default a tenth of the mean eigenvalue. Raises ValueError if it is not positive."""
    if damping is None:
        damping = 0.1 * matrix.mean_eigenvalue(seed=seed)
        if not damping > 0:
            raise ValueError(
                "the Gauss-Newton matrix is zero, so that a tenth of its mean eigenvalue is no damping: the"
                " losses have no curvature here; give damping"
            )
    if not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    return float(damping)
