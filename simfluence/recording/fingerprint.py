"""A fingerprint of a model's weights, by which runs are known to start alike."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from simfluence.recording.processes import Processes
from simfluence.recording.wrappers import (
    is_sharded,
    own_partition,
    plain_model,
    plain_name,
    quantised_buffers,
)

SAMPLE = 2**16
"""How many values of a parameter the fingerprint reads at most."""


def weights_fingerprint(model: Any, processes: Processes | None = None) -> str | None:
    """A hash over names, types, shapes and values of all parameters, frozen and quantised ones among them.

    Of a parameter with more than ``SAMPLE`` values, every k-th is read, so that a large model takes a second.
    Wrappers (torch.compile, DistributedDataParallel) change nothing. Of a sharded model each process reads
    its own share, and all processes must call this: it is the same for runs on equally many processes only.

    Returns 32 hexadecimal digits; None for what is no torch module or has parameters without values yet.
    """
    if not isinstance(model, nn.Module):
        return None
    own = _own_fingerprint(plain_model(model))
    if not is_sharded(model):
        return own
    shares = (processes or Processes()).gather(own)
    return None if None in shares else hashlib.sha256("".join(map(str, shares)).encode()).hexdigest()[:32]


@torch.no_grad()
def _own_fingerprint(model: nn.Module) -> str | None:
    digest = hashlib.sha256()
    named = [(plain_name(name), parameter) for name, parameter in model.named_parameters()]
    for name, parameter in sorted([*named, *quantised_buffers(model).items()], key=lambda one: one[0]):
        values = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        values = values if (own := own_partition(parameter)) is None else own
        if values.is_meta or isinstance(values, nn.parameter.UninitializedParameter):
            return None
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        flat = values.detach().reshape(-1)
        sample = flat[:: -(-flat.numel() // SAMPLE) or 1].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
