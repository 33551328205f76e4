"""Steps of optimizers as functions, and how derivatives go back through them.

A state is a tuple of flat tensors, the weights θ first, then the optimizer's averages. A step takes a state
and a gradient g = ∇L(θ) to the next state, number by number as torch's optimizers do:

    Adam, AdamW    m′ = β₁m + (1 − β₁)g     v′ = β₂v + (1 − β₂)g²
                   θ′ = (1 − ηλ)θ − η m̂/(√v̂ + ε),    m̂ = m′/(1 − β₁ᵗ),  v̂ = v′/(1 − β₂ᵗ)
    SGD            u′ = μu + (1 − d)g (g in the first step)     θ′ = θ − ηu′,  Nesterov: θ − η(g + μu′)

λ is AdamW's decoupled weight decay; that of Adam and SGD is part of the gradient, g + λθ. Since every number
is stepped by itself, the derivatives are diagonal: a few factors a number (Kingma & Ba 2015; Loshchilov &
Hutter 2019; torch.optim).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from simfluence.attribution.groups import class_name

State: TypeAlias = tuple[Tensor, ...]
"""θ and the optimizer's averages, [parameter] each; or derivatives by them."""

PullBack: TypeAlias = Callable[[State], tuple[State, Tensor]]
"""Derivatives of some number by the state after a step → those by the state before it, where the gradient is
held, and those by the gradient."""


class UpdateRule(ABC):
    """One optimizer with its settings."""

    @abstractmethod
    def start(self, weights: Tensor) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(self, state: State, gradient: Tensor, rate: float, number: int) -> State:
        """The next state. rate : η. number : t, 1 for the first step."""

    @abstractmethod
    def pull_back(self, state: State, gradient: Tensor, rate: float, number: int) -> PullBack:
        """The transposed derivative of :meth:`step` there."""


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam; ``decoupled`` is AdamW. ``hold_sizes``: derivatives are taken as if v were given numbers, which
    no gradient changes."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True
    hold_sizes: bool = False

    def start(self, weights: Tensor) -> State:
        return weights, torch.zeros_like(weights), torch.zeros_like(weights)

    def step(self, state: State, gradient: Tensor, rate: float, number: int) -> State:
        mean, square = self._averages(state, gradient)
        divisor = self._root(square, number) + self.eps
        kept = 1 - rate * self.weight_decay if self.decoupled else 1.0
        return kept * state[0] - self._rate(rate, number) * mean / divisor, mean, square

    def pull_back(self, state: State, gradient: Tensor, rate: float, number: int) -> PullBack:
        (slow, fast), decay = self.betas, self.weight_decay
        mean, square = self._averages(state, gradient)
        root, corrected = self._root(square, number), self._rate(rate, number)
        of_mean = -corrected / (root + self.eps)
        of_square = torch.zeros_like(root)
        if not self.hold_sizes:
            twice = 2 * (1 - fast**number) * root * (root + self.eps).square()
            of_square = torch.where(root > 0, corrected * mean / torch.where(root > 0, twice, 1.0), 0.0)
        full = gradient if self.decoupled else gradient + decay * state[0]
        kept = 1 - rate * decay if self.decoupled else 1.0

        def back(after: State) -> tuple[State, Tensor]:
            by_mean = torch.addcmul(after[1], of_mean, after[0])
            by_square = torch.addcmul(after[2], of_square, after[0])
            by_gradient = torch.addcmul((1 - slow) * by_mean, 2 * (1 - fast) * full, by_square)
            by_weights = kept * after[0]
            if not self.decoupled and decay:
                by_weights = by_weights + decay * by_gradient
            return (by_weights, slow * by_mean, fast * by_square), by_gradient

        return back

    def _averages(self, state: State, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weights, mean, square = state
        if not self.decoupled:
            gradient = gradient + self.weight_decay * weights
        slow, fast = self.betas
        return slow * mean + (1 - slow) * gradient, fast * square + (1 - fast) * gradient.square()

    def _root(self, square: Tensor, number: int) -> Tensor:
        return (square / (1 - self.betas[1] ** number)).sqrt()

    def _rate(self, rate: float, number: int) -> float:
        return rate / float(1 - self.betas[0] ** number)


@dataclass(frozen=True)
class SGD(UpdateRule):
    """Gradient descent with momentum."""

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def start(self, weights: Tensor) -> State:
        return weights, torch.zeros_like(weights)

    def step(self, state: State, gradient: Tensor, rate: float, number: int) -> State:
        weights, buffer = state
        full = gradient + self.weight_decay * weights
        buffer = self.momentum * buffer + self._share(number) * full
        direction = full + self.momentum * buffer if self.nesterov else buffer
        return weights - rate * direction, buffer

    def pull_back(self, state: State, gradient: Tensor, rate: float, number: int) -> PullBack:
        def back(after: State) -> tuple[State, Tensor]:
            by_direction = -rate * after[0]
            by_buffer = after[1] + (self.momentum if self.nesterov else 1.0) * by_direction
            by_gradient = self._share(number) * by_buffer
            if self.nesterov:
                by_gradient = by_gradient + by_direction
            return (after[0] + self.weight_decay * by_gradient, self.momentum * by_buffer), by_gradient

        return back

    def _share(self, number: int) -> float:
        """What of a gradient enters the buffer."""
        return 1.0 if number == 1 or not self.momentum else 1 - self.dampening


def update_rule(optimizer: Mapping[str, Any]) -> UpdateRule:
    """The rule of an optimizer as runs record it (``Run.optimizer``: "class" and settings).

    Raises ValueError for other classes than AdamW, Adam and SGD, for variants of theirs (amsgrad, maximize),
    and for groups of parameters with settings of their own.
    """
    name = class_name(optimizer)
    if name not in ("AdamW", "Adam", "SGD"):
        shown = name or "an optimizer that was not recorded"
        raise ValueError(f"derivatives go through steps of AdamW, Adam and SGD; this run has {shown}")
    if variant := next((option for option in ("amsgrad", "maximize") if optimizer.get(option)), None):
        raise ValueError(f"derivatives go through plain {name}; this run has {variant}=True")
    if any(set(group) - {"parameters"} for group in optimizer.get("groups", ())):
        raise ValueError(
            "derivatives go through runs whose parameters all have the same settings; this run has groups of"
            " parameters with their own"
        )
    decay = float(optimizer.get("weight_decay") or 0.0)
    if name == "SGD":
        return SGD(
            float(optimizer.get("momentum") or 0.0),
            float(optimizer.get("dampening") or 0.0),
            decay,
            bool(optimizer.get("nesterov")),
        )
    slow, fast = optimizer.get("betas") or (0.9, 0.999)
    decoupled = name == "AdamW" or bool(optimizer.get("decoupled_weight_decay"))
    return Adam((float(slow), float(fast)), float(optimizer.get("eps") or 1e-8), decay, decoupled)
