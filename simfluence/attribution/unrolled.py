"""Unrolled differentiation without curvature: every gradient of the run, through the optimizer to the end.

    score(i, z) = (1/|c_s|) Σ_{s: i ∈ c_s} ⟨D_s ∇L(i; θ_s), ∇L(z; θ_T)⟩,      D_s = −∂θ_T/∂g_s, diagonal

g_s is the gradient of the step's batch. D_s is how the optimizer carries it to the last weights: of plain SGD
the learning rate, of SGD with momentum the rates of the steps after it times how much of it is left, of Adam
the same over √v̂ + ε at each of these steps, less what the gradient does to v itself.

This is the metagradient (metagradients.py) with the Hessian left out: that other weights have other gradients
later on is neglected, and nothing else. It is exact where losses are linear in the weights, and near where
rates times curvature times steps are small; where a run goes far, what is learnt early is overstated, since
later steps would have learnt it too. No Hessian-vector product is needed, and all test examples share D_s.
Bae et al. 2024 (SOURCE, arXiv 2405.12186) approximate the Hessian in segments of an SGD run instead.

With ``hold_sizes`` v is taken as it was in the run, so that D_s is positive: "what if Adam's step sizes had
been the same". Then a gradient that is in step with the run's counts in full, though Adam, whose steps do not
grow with the gradients, would have made the same step of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from simfluence.attribution.gradients import flat
from simfluence.attribution.metagradients import of_recorded_run
from simfluence.attribution.objective import Objective
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.tracing import tracer
from simfluence.attribution.training import Training
from simfluence.attribution.update_rules import Adam, update_rule
from simfluence.curriculum import Curriculum
from simfluence.scores import InfluenceScores


def unrolled(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    curriculum: Curriculum,
    *,
    optimizer: Mapping[str, Any],
    rates: npt.ArrayLike,
    hold_sizes: bool = False,
    keep_every: int | None = None,
    progress: bool = False,
) -> InfluenceScores:
    """Derivatives of the test losses after training, the Hessian neglected.

    hold_sizes : of Adam, whether gradients leave v as it was in the run. Other parameters, what is raised and
    the provenance are as of :func:`.metagradients.metagradients`, without ``hessian_products``.
    """
    rule = update_rule(optimizer)
    if hold_sizes and isinstance(rule, Adam):
        rule = replace(rule, hold_sizes=True)
    run = Training(objective, train, curriculum, rule, rates)
    if not len(test):
        raise ValueError("expected test examples, got none")
    found = np.zeros((len(train), len(test)))
    with run.ready(), tracer(objective, [train[0], test[0]]) as trace:
        states = run.backward(keep_every, progress)
        _, end = next(states)
        losses, of_test = run.test_gradients(test, end[0])
        carried = torch.ones_like(end[0]), *(torch.zeros_like(average) for average in end[1:])
        for step, state in states:
            rows = np.asarray(curriculum[step])
            run.put(state[0])
            batches = list(trace.batches([train[row] for row in rows], len(rows)))
            of_train = torch.cat([flat(trace, trace(batch)) for batch in batches]).to(end[0].dtype)
            run.gradients += len(rows)
            back = run.rule.pull_back(state, of_train.mean(0), float(run.rates[step]), step + 1)
            carried, by_gradient = back(carried)
            products = (of_train * by_gradient) @ of_test.T / len(rows)
            np.subtract.at(found, rows, products.cpu().numpy())
    return InfluenceScores(
        found,
        "unrolled",
        "fall of the loss per unit of weight",
        tuple(run.parameters),
        {
            "run_steps": len(run),
            "hold_sizes": hold_sizes,
            "final_losses": losses.tolist(),
            "gradients": run.gradients,
            **trace.about,
        },
        coverage=1.0,
    )


@method("unrolled", of_whole_run=True)
def _in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    return of_recorded_run(unrolled, context, **options)
