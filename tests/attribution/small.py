"""Small models in float64 whose Jacobians and Hessians autograd gives in full."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from simfluence.attribution.objective import Classification, Regression

Pair = tuple[Tensor, Tensor]


def pairs(kind: str, count: int, seed: int = 0, features: int = 3) -> list[Pair]:
    """Examples for ``regression`` (two targets) or ``classification`` (three classes)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator, dtype=torch.float64)
    if kind == "regression":
        y = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(0, 3, (count,), generator=generator)
    return list(zip(x, y, strict=True))


def network(kind: str, linear: bool = False, seed: int = 0, features: int = 3) -> Classification | Regression:
    """A linear map or a network with one hidden layer, as an objective."""
    torch.manual_seed(seed)
    outputs = 2 if kind == "regression" else 3
    layers = (
        [nn.Linear(features, outputs)]
        if linear
        else [nn.Linear(features, 4), nn.Tanh(), nn.Linear(4, outputs)]
    )
    module = nn.Sequential(*layers).double()
    return Regression(module) if kind == "regression" else Classification(module)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def outputs_at(objective, theta: Tensor, x: Tensor) -> Tensor:
    """h(θ, x), of flat parameters."""
    names, shapes = zip(*[(n, p.shape) for n, p in objective.module.named_parameters()], strict=True)
    parts = theta.split([shape.numel() for shape in shapes])
    values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
    return functional_call(objective.module, values, (x,))


def loss_at(objective, theta: Tensor, example: Pair) -> Tensor:
    return objective.output_losses(outputs_at(objective, theta, example[0])[None], [example])[0]


def dense_gauss_newton(objective, examples: list[Pair]) -> Tensor:
    """(1/N) Σ Jᵀ H J with Jacobians and Hessians by autograd, example by example."""
    theta = flat(objective.module)
    total = torch.zeros(len(theta), len(theta), dtype=theta.dtype)
    for x, y in examples:
        jacobian = torch.autograd.functional.jacobian(lambda t, x=x: outputs_at(objective, t, x), theta)
        hessian = torch.autograd.functional.hessian(
            lambda h, x=x, y=y: objective.output_losses(h[None], [(x, y)])[0], outputs_at(objective, theta, x)
        )
        total += jacobian.T @ hessian @ jacobian
    return total / len(examples)


def dense_hessian(objective, examples: list[Pair]) -> Tensor:
    theta = flat(objective.module)

    def mean(t: Tensor) -> Tensor:
        return torch.stack([loss_at(objective, t, example) for example in examples]).mean()

    return torch.autograd.functional.hessian(mean, theta)


def dense_gradients(objective, examples: list[Pair]) -> Tensor:
    """[example, parameter]"""
    theta = flat(objective.module)
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda t, e=example: loss_at(objective, t, e), theta)
            for example in examples
        ]
    )
