"""Steps against torch's optimizers, and their transposed derivatives against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simfluence.attribution.update_rules import Adam, update_rule

OPTIMIZERS = [
    ("AdamW", {"weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
    ("Adam", {"weight_decay": 0.1}),
    ("SGD", {}),
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
]


def gradients(steps: int, size: int = 4) -> torch.Tensor:
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_steps_are_those_of_torch(name: str, options: dict) -> None:
    weight = torch.nn.Parameter(gradients(1)[0] + 1)
    rule = update_rule({"class": name, **options})
    state = rule.start(weight.detach().clone())
    optimizer = getattr(torch.optim, name)([weight], lr=0.1, **options)
    for step, gradient in enumerate(gradients(6)):
        optimizer.param_groups[0]["lr"] = rate = 0.1 / (1 + step)
        weight.grad = gradient.clone()
        optimizer.step()
        state = rule.step(state, gradient, rate, step + 1)
        np.testing.assert_allclose(state[0], weight.detach(), rtol=1e-12)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("number", [1, 3])
def test_derivatives_are_those_of_autograd(name: str, options: dict, number: int) -> None:
    rule = update_rule({"class": name, **options})
    state = rule.start(gradients(1)[0])
    for step, gradient in enumerate(gradients(number - 1) if number > 1 else []):
        state = rule.step(state, gradient, 0.1, step + 1)
    leaves = [part.clone().requires_grad_() for part in (*state, gradients(number + 1)[-1])]
    after = rule.step(tuple(leaves[:-1]), leaves[-1], 0.1, number)
    given = gradients(len(after)).unbind()
    *expected, by_gradient = torch.autograd.grad(after, leaves, given, materialize_grads=True)
    before, found = rule.pull_back(state, leaves[-1].detach(), 0.1, number)(tuple(given))
    np.testing.assert_allclose(found, by_gradient, rtol=1e-10)
    for one, other in zip(before, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-14)


def test_held_sizes_are_given_numbers() -> None:
    rule = Adam(hold_sizes=True, eps=1e-3)
    gradient = gradients(1)[0]
    before, by_gradient = rule.pull_back(rule.start(gradient), gradient, 0.1, 1)(
        (torch.ones_like(gradient), torch.zeros_like(gradient), torch.zeros_like(gradient))
    )
    np.testing.assert_allclose(by_gradient, -0.1 / (gradient.abs() + 1e-3), rtol=1e-10)
    np.testing.assert_array_equal(before[2], 0)


def test_numbers_without_a_gradient_have_finite_derivatives() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    rule = Adam()
    _, by_gradient = rule.pull_back(rule.start(zero), zero, 0.1, 1)((zero + 1, zero, zero))
    np.testing.assert_allclose(by_gradient, -0.1 / 1e-8)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({}, "this run has an optimizer that was not recorded"),
        ({"class": "torch.optim.RMSprop"}, "this run has RMSprop"),
        ({"class": "Adam", "amsgrad": True}, "amsgrad=True"),
        ({"class": "SGD", "groups": [{"parameters": ["a"]}, {"parameters": ["b"], "lr": 1.0}]}, "groups"),
    ],
)
def test_what_derivatives_do_not_go_through_is_said(optimizer: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update_rule(optimizer)
