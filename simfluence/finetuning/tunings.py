"""Which parameters are trained.

To add a tuning: a function here, a line in ``TUNINGS``, a config in conf/tuning/.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from simfluence.finetuning.models import TextClassifier


def full(model: TextClassifier) -> None:
    """All of them."""
    model.requires_grad_(True)


def last_layers(model: TextClassifier, layers: int) -> None:
    """The last ``layers`` layers and the head; what the frozen ones give is computed once."""
    total = len(model.encoder.encoder.layer)
    if not 1 <= layers <= total:
        raise ValueError(f"the encoder has {total} layers; cannot train the last {layers}")
    model.requires_grad_(True)
    model.freeze_lower(total - layers)
    if (pooler := getattr(model.encoder, "pooler", None)) is not None:
        pooler.requires_grad_(False)  # not in the way from input to loss


TUNINGS: dict[str, Callable[..., None]] = {"full": full, "last_layers": last_layers}


def apply_tuning(model: TextClassifier, name: str, **options: Any) -> list[nn.Parameter]:
    """Freeze what a tuning leaves alone; returns the parameters to train."""
    if name not in TUNINGS:
        raise ValueError(f"no tuning is named {name!r}; there are {', '.join(TUNINGS)}")
    TUNINGS[name](model, **options)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
