"""Which parameters are trained.

To add a tuning: a function here, a line in ``TUNINGS``, a config in conf/tuning/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from simfluence.finetuning.adapters import add_ia3, add_lora
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.models import Model


def full(model: Model) -> None:
    """Train all parameters."""
    model.requires_grad_(True)


def last_layers(model: Model, layers: int) -> None:
    """The last ``layers`` layers and the head; what the frozen ones give is computed once."""
    total = len(model.layers)
    if not 1 <= layers <= total:
        raise ValueError(f"the model has {total} layers; cannot train the last {layers}")
    model.requires_grad_(True)
    model.freeze_lower(total - layers)
    _freeze_pooler(model)


def head_only(model: Model) -> None:
    """The head alone; what the encoder gives is computed once. ValueError: a language model has none."""
    if not isinstance(model, TextClassifier):
        raise ValueError("a language model has no head of its own to train; tune it by lora or last_layers")
    model.requires_grad_(True)
    model.freeze_lower(len(model.layers))
    _freeze_pooler(model)


def lora(model: Model, *, layers: int | None = None, **options: Any) -> None:
    """Low-rank updates, see :func:`.adapters.add_lora`, and the head."""
    model.requires_grad_(True)
    add_lora(model, layers=layers, **options)
    _freeze_below(model, layers)


def ia3(model: Model, *, layers: int | None = None, **options: Any) -> None:
    """Learnt scales, see :func:`.adapters.add_ia3`, and the head."""
    model.requires_grad_(True)
    add_ia3(model, layers=layers, **options)
    _freeze_below(model, layers)


TUNINGS: dict[str, Callable[..., None]] = {
    "full": full,
    "last_layers": last_layers,
    "head_only": head_only,
    "lora": lora,
    "ia3": ia3,
}


def apply_tuning(model: Model, name: str, **options: Any) -> list[nn.Parameter]:
    """Freeze what a tuning leaves alone; returns the parameters to train."""
    if name not in TUNINGS:
        raise ValueError(f"no tuning is named {name!r}; there are {', '.join(TUNINGS)}")
    TUNINGS[name](model, **options)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _freeze_below(model: Model, layers: int | None) -> None:
    """Where only the last layers have adapters, what those below give is computed once."""
    if layers is not None and layers < len(model.layers):
        model.freeze_lower(len(model.layers) - layers)


def _freeze_pooler(model: Model) -> None:
    if (pooler := getattr(model.body, "pooler", None)) is not None:
        pooler.requires_grad_(False)  # not in the way from input to loss
