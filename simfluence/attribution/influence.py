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

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.curvature import GaussNewton, positive_damping
from simfluence.attribution.dual import LARGEST, dual_influence, outputs_in_all
from simfluence.attribution.gradients import flat, followed
from simfluence.attribution.inverse import SOLVERS, Solver
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import share_of_trained
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.tracing import tracer
from simfluence.scores import InfluenceScores


def influence(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    solver: Literal["auto", "dual", "exact", "cg", "lissa"] | Solver = "auto",
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
    solver : "dual", exact among the outputs of all examples (:mod:`.dual`), where these are few: the outputs
        of classifiers and regressions. "exact", "cg" and "lissa" have their defaults; or one with its
        settings (:mod:`.inverse`): all test gradients are solved for at once and held, [test, parameter].
        "auto": dual up to 4096 outputs, else cg.
    damping : λ > 0; None: a tenth of G's mean eigenvalue, which is exact with "dual", otherwise Hutchinson's
        estimate.
    curvature : the examples that G is the mean over, N of them; by default the training examples.
    parameters : as in :func:`.parameters.selected_parameters`; the others are held fixed.
    batch_size : examples in a pass; changes time and memory alone.
    seed : of the random numbers in the estimate of the mean eigenvalue.

    Returns
    -------
    Scores whose provenance has the damping, the solver's settings and its worst relative residual.

    Raises
    ------
    ValueError : there are no parameters or no examples, damping ≤ 0, or weights are in half precision.

    Warns
    -----
    ConvergenceWarning : a system was not solved to the solver's tolerance.
    """
    if isinstance(solver, str) and solver not in ("auto", "dual", *SOLVERS):
        raise ValueError(f"solver must be one of {['auto', 'dual', *SOLVERS]}, or a solver, got {solver!r}")
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    examples = train if curvature is None else curvature
    matrix = GaussNewton(objective, examples, parameters=parameters, batch_size=batch_size)
    if solver == "auto":
        solver = "dual" if outputs_in_all(matrix) <= LARGEST else "cg"
    if solver == "dual":
        found, report = dual_influence(matrix, train, test, damping, progress=progress)
    else:
        method = SOLVERS[solver]() if isinstance(solver, str) else solver
        found, report = _through_parameters(matrix, method, train, test, damping, seed, progress)
    return InfluenceScores(
        found.to(matrix.dtype).cpu().numpy(),
        "influence",
        "loss per weight of an example in the training mean",
        tuple(matrix.parameters),
        {
            "weights_fingerprint": weights_fingerprint(objective.module),
            "curvature_examples": len(examples),
            **report,
        },
        weighing="run",
        coverage=share_of_trained(objective.module, matrix.parameters),
    )


@method("influence")
def _in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    return context.at_last_checkpoint(influence, **{"curvature": context.curvature, **options})


def _through_parameters(
    matrix: GaussNewton,
    method: Solver,
    train: Sequence[Any],
    test: Sequence[Any],
    damping: float | None,
    seed: int,
    progress: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """Scores [train, test], and a report, from the solutions of all test gradients."""
    λ = positive_damping(damping, lambda: matrix.mean_eigenvalue(seed=seed))
    with tracer(matrix.objective, [train[0], test[0]], list(matrix.parameters)) as trace:
        batches = trace.batches(test, matrix.batch_size)
        of_tests = torch.cat([flat(trace, trace(batch)) for batch in batches]).to(matrix.dtype)
        solution = method.solve(matrix, of_tests, λ, progress=progress)
        batches = trace.batches(train, matrix.batch_size)
        parts = [
            flat(trace, trace(batch)).to(matrix.dtype) @ solution.vectors.T
            for batch in followed(batches, len(train), progress, "influence")
        ]
    return torch.cat(parts), {"damping": λ, **solution.report, **trace.about}
