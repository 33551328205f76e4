"""Influence functions against dattri."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from attribution.small import network, pairs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from simfluence.attribution.influence import influence

with warnings.catch_warnings():  # torch's, of torch.jit in dattri
    warnings.simplefilter("ignore")
    pytest.importorskip("dattri", reason="needs dattri")
    from dattri.algorithm.influence_function import IFAttributorCG, IFAttributorExplicit
    from dattri.task import AttributionTask

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
DAMPING = 0.05


def loaders(train, test) -> list[DataLoader]:
    """Whole sets as one batch: dattri takes the mean loss of a batch."""
    return [
        DataLoader(
            TensorDataset(torch.stack([x for x, _ in some]), torch.stack([y for _, y in some])), len(some)
        )
        for some in (train, test)
    ]


def task_of(module: nn.Module) -> AttributionTask:
    def loss(parameters, data):
        x, y = data
        outputs = torch.func.functional_call(module, parameters, (x,))
        return nn.functional.cross_entropy(outputs, y)

    return AttributionTask(loss_func=loss, model=module, checkpoints=module.state_dict())


@pytest.mark.parametrize(
    ("attributor", "options"),
    [(IFAttributorExplicit, {}), (IFAttributorCG, {"max_iter": 60, "tol": 1e-7})],
    ids=["explicit", "cg"],
)
def test_influence_of_a_linear_classifier(attributor, options) -> None:
    """Where the Gauss-Newton matrix is the Hessian, which dattri uses."""
    objective = network("classification", linear=True)
    train, test = pairs("classification", 12), pairs("classification", 4, seed=1)
    method = attributor(task_of(objective.module), regularization=DAMPING, **options)
    first, second = loaders(train, test)
    method.cache(first)
    theirs = method.attribute(first, second).detach().numpy()
    ours = influence(objective, train, test, solver="exact", damping=DAMPING).scores
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
