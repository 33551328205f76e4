"""A training run as a function of the weights of its examples: repeated, and gone through backwards.

    L_t(θ) = (1/|c_t|) Σ_{i ∈ c_t} w_i L(i; θ),      state_{t+1} = step(state_t, ∇L_t(θ_t), η_t)

w_i = 1 is the run as it was; w_i = 0 leaves i out of its batches, which are still divided by their size. To
go backwards without every state in memory, some states are kept and those in between computed again from the
kept one before them: with about √T kept, 2√T are in memory and the run is computed twice (Griewank 1992).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from simfluence.attribution.objective import Objective, losses_of
from simfluence.attribution.parameters import dense_gradients, restored, selected_parameters
from simfluence.attribution.update_rules import State, UpdateRule
from simfluence.curriculum import Curriculum, check_counted
from simfluence.recording.evaluator import undisturbed


@dataclass(frozen=True)
class DifferentiableGradient:
    """The gradient of a batch's loss, whose graph can be differentiated again.

    value : [parameter]. rows : the examples of the batch.
    """

    value: Tensor
    rows: npt.NDArray[np.int64]
    _parts: tuple[Tensor, ...]
    _parameters: list[nn.Parameter]
    _uses: Tensor

    def products(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """The Hessian of the batch's loss times a vector, [parameter]; and the vector's inner product with
        ∇L(i; θ)/|c_t| of every example of the batch, [row]."""
        pieces = _like(vector, self._parameters)
        depends = [(part, piece) for part, piece in zip(self._parts, pieces, strict=True) if part.grad_fn]
        *by_weights, by_uses = torch.autograd.grad(
            [part for part, _ in depends],
            [*self._parameters, self._uses],
            [piece for _, piece in depends],
            retain_graph=True,
            materialize_grads=True,
        )
        return _flat(by_weights), by_uses


class Training:
    """A deterministic run, without dropout.

    Parameters
    ----------
    objective : the model, with the weights that the run began with; what requires gradients is trained.
    train : the examples of the curriculum's table. rates : float [step], the learning rates.
    weights : float [train], the examples' weights w; None: 1.

    Attributes
    ----------
    gradients : how many gradients of single examples were computed so far.

    Raises ValueError for a curriculum of shares or of another table, or rates of another number of steps.
    """

    def __init__(
        self,
        objective: Objective,
        train: Sequence[Any],
        curriculum: Curriculum,
        rule: UpdateRule,
        rates: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
    ) -> None:
        check_counted([curriculum], "this method")
        if curriculum.n_examples != len(train):
            raise ValueError(
                f"the curriculum is over {curriculum.n_examples} training examples, got {len(train)}"
            )
        self.rates = np.asarray(rates, np.float64)
        if self.rates.shape != (len(curriculum),) or not np.isfinite(self.rates).all():
            raise ValueError(
                f"rates must be a learning rate for each of {len(curriculum)} steps, finite; got shape"
                f" {self.rates.shape}"
                + ("" if np.isfinite(self.rates).all() else " with some that are not finite")
            )
        self.weights = np.ones(len(train)) if weights is None else np.asarray(weights, np.float64)
        if self.weights.shape != (len(train),):
            raise ValueError(f"weights must be [train] = ({len(train)},), got shape {self.weights.shape}")
        self.objective, self.train, self.curriculum, self.rule = objective, train, curriculum, rule
        self.parameters = selected_parameters(objective.module)
        self.gradients = 0
        self._start = _flat(list(self.parameters.values())).detach()

    def __len__(self) -> int:
        """The number of steps."""
        return len(self.curriculum)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Inside, the model can be differentiated twice; outside, it is as it was."""
        with (
            undisturbed(self.objective.module),
            dense_gradients(self.objective.module),
            restored(self.parameters),
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield

    def put(self, weights: Tensor) -> None:
        """Weights [parameter] into the model."""
        parameters = list(self.parameters.values())
        with torch.no_grad():
            for parameter, piece in zip(parameters, _like(weights, parameters), strict=True):
                parameter.copy_(piece)

    def forward(self, start: tuple[int, State] | None = None) -> Iterator[tuple[int, State]]:
        """(t, the state after t steps), from the start, or from a known state on, to the end."""
        first, state = start or (0, self.rule.start(self._start))
        yield first, state
        for step in range(first, len(self)):
            gradient = self._gradient(step, state[0])
            state = self.rule.step(state, gradient, float(self.rates[step]), step + 1)
            yield step + 1, state

    def backward(self, keep_every: int | None = None, progress: bool = False) -> Iterator[tuple[int, State]]:
        """(t, the state after t steps) from the end, t = T, to the start, t = 0.

        keep_every : a state is kept after so many steps; None: about √T.
        """
        every = keep_every or max(1, round(math.sqrt(len(self))))
        bar = tqdm(total=2 * len(self), desc="differentiating", disable=not progress, unit="step")
        kept: dict[int, State] = {}
        for step, state in self.forward():
            if step % every == 0 or step == len(self):
                kept[step] = state
            bar.update(step > 0)
        last = len(self)
        yield last, kept.pop(last)
        while last:
            first = (last - 1) // every * every
            between = self.forward((first, kept.pop(first)))
            segment = [next(between) for _ in range(first, last)]
            while segment:
                yield segment.pop()
                bar.update()
            last = first
        bar.close()

    def differentiable_gradient(self, step: int, weights: Tensor) -> DifferentiableGradient:
        """∇L_t(θ) as :class:`DifferentiableGradient`."""
        rows = np.asarray(self.curriculum[step])
        parameters = list(self.parameters.values())
        self.put(weights)
        uses = torch.as_tensor(self.weights[rows]).to(weights).requires_grad_()
        loss = (uses * losses_of(self.objective, [self.train[row] for row in rows])).sum() / len(rows)
        parts = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        self.gradients += len(rows)
        return DifferentiableGradient(_flat(parts).detach(), rows, parts, parameters, uses)

    def test_gradients(self, test: Sequence[Any], weights: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [test] of examples and their gradients [test, parameter] at these weights."""
        self.put(weights)
        losses, gradients = [], []
        for example in test:
            loss = losses_of(self.objective, [example])[0]
            parts = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
            losses.append(loss.detach())
            gradients.append(_flat(parts))
        self.gradients += len(test)
        return torch.stack(losses), torch.stack(gradients)

    def final_losses(self, test: Sequence[Any]) -> npt.NDArray[np.float64]:
        """The losses [test] after the last step."""
        with self.ready():
            *_, (_, end) = self.forward()
            self.put(end[0])
            with torch.no_grad():
                found = [float(losses_of(self.objective, [example])[0]) for example in test]
        return np.array(found)

    def _gradient(self, step: int, weights: Tensor) -> Tensor:
        rows = np.asarray(self.curriculum[step])
        counted = rows[self.weights[rows] != 0]
        if not len(counted):
            return torch.zeros_like(weights)
        self.put(weights)
        uses = torch.as_tensor(self.weights[counted]).to(weights)
        loss = (uses * losses_of(self.objective, [self.train[row] for row in counted])).sum() / len(rows)
        self.gradients += len(counted)
        return _flat(torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True))


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _like(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    sizes = [parameter.numel() for parameter in parameters]
    pieces = vector.split(sizes)
    return [piece.view_as(parameter) for piece, parameter in zip(pieces, parameters, strict=True)]
