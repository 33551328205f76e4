"""Tail-patch: what one more step of the run's optimizer on chosen examples does to a test example's loss
(Chang et al. 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from simfluence.finetuning.experiment import Prepared


def tail_patch(
    prepared: Prepared,
    optimizer: torch.optim.Optimizer,
    chosen: npt.NDArray[np.integer],
    *,
    progress: bool = False,
) -> npt.NDArray[np.float64]:
    """How much a step on a test example's chosen training examples takes off its loss, float [test].

    Every test example has a step of its own, from the model's present weights and the optimizer's present
    state (momenta, learning rate); both are as before afterwards. Positive: the loss falls.

    Parameters
    ----------
    prepared : the task, and the model after training. optimizer : what trained it, over its parameters.
    chosen : int [k, test], rows of the training table: the batch of the step.

    Raises ValueError if ``chosen`` is not for all test examples.
    """
    model, task = prepared.model, prepared.task
    if chosen.ndim != 2 or chosen.shape[1] != len(task.test):
        raise ValueError(f"chosen must be [k, test] with {len(task.test)} test examples, got {chosen.shape}")
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights = [parameter.detach().clone() for parameter in trained]
    state = copy.deepcopy(optimizer.state_dict())
    falls = np.empty(len(task.test))
    for z, test in enumerate(tqdm(task.test, "tail-patch", unit="step", disable=not progress)):
        before = _loss(model, test)
        _step(model, optimizer, [task.train[row] for row in chosen[:, z]])
        falls[z] = before - _loss(model, test)
        _restore(trained, weights)
        optimizer.load_state_dict(copy.deepcopy(state))
    return falls


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[object]) -> None:
    model.train()
    loss = model.losses(batch).mean()  # type: ignore[operator]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _loss(model: torch.nn.Module, example: object) -> float:
    model.eval()
    return float(model.losses([example]))  # type: ignore[operator]


@torch.no_grad()
def _restore(parameters: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
