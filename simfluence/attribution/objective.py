"""What attribution methods differentiate: a model, and how its outputs become losses.

    h_i = outputs(example i),   L_i = output_losses(h_i, example i)

Gradients need the losses alone. The Fisher matrix needs losses of labels drawn from the model's own
distribution given h; the Gauss-Newton matrix JᵀH_hJ and the Bregman divergence of the PBRF need the outputs
themselves. Losses are of single examples, never means over a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Losses = Callable[[Sequence[Any]], Tensor | Mapping[str, Tensor]]
"""examples → loss of each, [len(examples)], differentiable; or metrics of each by name, "loss" among them, as
the recorder takes them."""


def losses_of(objective: Objective, examples: Sequence[Any]) -> Tensor:
    """The objective's losses [example], checked."""
    return checked_losses(objective.losses(examples), examples)


def checked_losses(found: Tensor | Mapping[str, Tensor], examples: Sequence[Any]) -> Tensor:
    """The loss of each example [example] out of what a loss function returned.

    Raises ValueError for a mapping without "loss", or losses of another shape.
    """
    values = found
    if isinstance(found, Mapping):
        if "loss" not in found:
            raise ValueError(f"the loss function returned no 'loss', only {sorted(found)}")
        values = found["loss"]
    if not isinstance(values, Tensor) or values.shape != (len(examples),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"losses must be one an example, [{len(examples)}], got {got}")
    return values


class Objective(Protocol):
    """A model with its loss; ``simfluence.finetuning``'s models are objectives themselves.

    An example may be several rows of the model's inputs (the options of a choice): ``rows`` says how many.
    ``masks`` says which positions are padding.
    """

    @property
    def module(self) -> nn.Module:
        """The torch module that holds the parameters."""
        ...

    def outputs(self, examples: Sequence[Any]) -> Tensor:
        """[example, …], finite, differentiable."""
        ...

    def output_losses(self, outputs: Tensor, examples: Sequence[Any]) -> Tensor:
        """Loss of each example given its outputs, [example]; convex in the outputs."""
        ...

    def sampled_losses(self, outputs: Tensor, examples: Sequence[Any], generator: torch.Generator) -> Tensor:
        """The losses [example] of labels drawn from the distribution that the detached outputs define."""
        ...

    def losses(self, examples: Sequence[Any]) -> Tensor | Mapping[str, Tensor]:
        """``output_losses`` of ``outputs``, [example]; it may stand among other metrics as "loss"."""
        ...

    def rows(self, examples: Sequence[Any]) -> list[int]:
        """How many consecutive rows of the model's inputs each example takes, [example]."""
        ...

    def masks(self, examples: Sequence[Any]) -> list[Tensor]:
        """Masks, bool [row, position], True for tokens and False for padding: one mask for each kind of
        sequence (an encoder's, a decoder's); [] if nothing is padded."""
        ...


class LossesOnly:
    """An objective of which only the losses are known: enough for gradients.

    module : the model. losses : see :data:`Losses`.
    """

    def __init__(self, module: nn.Module, losses: Losses) -> None:
        self.module = module
        self.losses = losses

    def outputs(self, examples: Sequence[Any]) -> Tensor:
        raise ValueError(
            "this method needs the model's outputs, not its losses alone: pass an objective with `outputs`,"
            " `output_losses` and `sampled_losses` (Classification and Regression are ready-made)"
        )

    def output_losses(self, outputs: Tensor, examples: Sequence[Any]) -> Tensor:
        return self.outputs(examples)

    def sampled_losses(self, outputs: Tensor, examples: Sequence[Any], generator: torch.Generator) -> Tensor:
        return self.outputs(examples)

    def rows(self, examples: Sequence[Any]) -> list[int]:
        return [1] * len(examples)

    def masks(self, examples: Sequence[Any]) -> list[Tensor]:
        return []


class _Pairs(ABC):
    """Examples are pairs (x, y) of tensors, or of a tensor and a number."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def outputs(self, examples: Sequence[Any]) -> Tensor:
        """The model's, of the stacked x, [example, output]."""
        outputs: Tensor = self.module(torch.stack([x for x, _ in examples]))
        return outputs

    @abstractmethod
    def output_losses(self, outputs: Tensor, examples: Sequence[Any]) -> Tensor:
        """[example]"""

    def losses(self, examples: Sequence[Any]) -> Tensor:
        return self.output_losses(self.outputs(examples), examples)

    def rows(self, examples: Sequence[Any]) -> list[int]:
        return [1] * len(examples)

    def masks(self, examples: Sequence[Any]) -> list[Tensor]:
        return []


class Classification(_Pairs):
    """Cross-entropy of logits [example, class]; y is the class."""

    def output_losses(self, outputs: Tensor, examples: Sequence[Any]) -> Tensor:
        labels = torch.as_tensor([int(y) for _, y in examples], device=outputs.device)
        return cross_entropy(outputs, labels, reduction="none")

    def sampled_losses(self, outputs: Tensor, examples: Sequence[Any], generator: torch.Generator) -> Tensor:
        chances = outputs.detach().double().softmax(1)
        drawn = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return cross_entropy(outputs, drawn, reduction="none")


class Regression(_Pairs):
    """½‖h − y‖², minus the log-likelihood of a Gaussian of variance 1 around h [example, output]."""

    def output_losses(self, outputs: Tensor, examples: Sequence[Any]) -> Tensor:
        targets = torch.stack(
            [torch.as_tensor(y).to(outputs).reshape(outputs.shape[1:]) for _, y in examples]
        )
        return _half_square(outputs - targets)

    def sampled_losses(self, outputs: Tensor, examples: Sequence[Any], generator: torch.Generator) -> Tensor:
        noise = torch.randn(
            outputs.shape, generator=generator, dtype=torch.float64, device=outputs.device
        ).to(outputs.dtype)
        return _half_square(outputs - (outputs.detach() + noise))


def _half_square(residuals: Tensor) -> Tensor:
    return residuals.flatten(1).square().sum(1) / 2
