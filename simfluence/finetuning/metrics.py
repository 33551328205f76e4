"""What is recorded of a test example beside its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from simfluence.finetuning.tasks import TextExample

METRICS = ("accuracy", "margin")


def answer_metrics(scores: Tensor, examples: Sequence[TextExample]) -> dict[str, Tensor]:
    """Accuracy (1 or 0) and margin (right answer − best other), [example] each, of scores [example, label].

    A tie with a wrong answer counts as wrong.
    """
    labels = torch.tensor([example.label for example in examples], device=scores.device)[:, None]
    right = scores.gather(1, labels)[:, 0]
    margin = right - scores.scatter(1, labels, -torch.inf).amax(1)
    return {"accuracy": (margin > 0).to(scores.dtype), "margin": margin}


def recorded_loss(names: Sequence[str] | None = None) -> Callable[[Any, list[TextExample]], Any]:
    """The loss function for the recorder: losses alone, or a mapping with these metrics too.

    Raises ValueError for an unknown metric.
    """
    if unknown := sorted(set(names or ()) - set(METRICS)):
        raise ValueError(f"no metric is named {unknown[0]!r}; there are {', '.join(METRICS)}")

    def loss(model: Any, examples: list[TextExample]) -> Any:
        if not names:
            return model.losses(examples)
        found = model.metrics(examples)
        return {name: found[name] for name in ("loss", *names)}

    return loss
