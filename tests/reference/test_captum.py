"""TracIn and influence functions against captum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution.small import network, pairs
from torch import nn
from torch.utils.data import TensorDataset

from simfluence.attribution import Checkpoint, influence, tracin

pytest.importorskip("captum", reason="needs captum")


def stacked(examples) -> list[torch.Tensor]:
    return [torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])]


def load(module: nn.Module, state) -> float:
    module.load_state_dict(state)
    return 1.0


def test_tracin_over_two_checkpoints() -> None:
    """captum sums gradient dot products times the rates that loading returns."""
    from captum.influence import TracInCP

    objective = network("classification")
    train, test = pairs("classification", 12), pairs("classification", 4, seed=1)
    states = [network("classification", seed=seed).module.state_dict() for seed in (1, 2)]
    rates = (0.5, 0.25)
    captum = TracInCP(
        objective.module,
        TensorDataset(*stacked(train)),
        iter(list(zip(states, rates, strict=True))),
        lambda module, part: load(module, part[0]) * part[1],
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=5,
    )
    theirs = captum.influence(tuple(stacked(test))).T.numpy()
    checkpoints = [
        Checkpoint(step, rate, lambda module, state=state: load(module, state))
        for step, (rate, state) in enumerate(zip(rates, states, strict=True))
    ]
    ours = tracin(objective, train, test, checkpoints).scores
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_influence_of_a_linear_classifier() -> None:
    """captum forms the Hessian of the summed losses, adds hessian_reg to its diagonal and keeps the
    projection_dim largest eigenvalues: with all of them, it is (N G + λ)⁻¹."""
    from captum.influence import NaiveInfluenceFunction

    objective = network("classification", linear=True)
    train, test = pairs("classification", 12), pairs("classification", 4, seed=1)
    captum = NaiveInfluenceFunction(
        objective.module,
        TensorDataset(*stacked(train)),
        checkpoint=objective.module.state_dict(),
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=5,
        projection_dim=12,
        hessian_reg=0.6,
        hessian_inverse_tol=-1e9,
    )
    theirs = captum.influence(tuple(stacked(test))).T.numpy()
    ours = influence(objective, train, test, solver="exact", damping=0.6 / 12).scores
    np.testing.assert_allclose(theirs * 12, ours, rtol=1e-5, atol=1e-6)
