"""Models inside other modules: torch.compile, DataParallel, DistributedDataParallel, FSDP.

The model as the user made it is called plain. Recorded names of parameters and kept weights are those of the
plain model, whatever it was wrapped in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_IN_NAMES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def plain_model(model: Any) -> Any:
    """The model inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(model, nn.Module) and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            return model


def evaluated_model(model: Any) -> Any:
    """What test losses are computed with: as it was given, without waiting for other processes.

    A compiled model stays compiled; a parallel one is taken out of its wrappers.
    """
    inner = model
    while isinstance(inner, nn.Module) and "_orig_mod" in inner._modules:
        inner = inner._modules["_orig_mod"]
    return evaluated_model(inner.module) if isinstance(inner, _PARALLEL) else model


def plain_name(name: str) -> str:
    """The name that a parameter has in the plain model."""
    for inserted in _IN_NAMES:
        name = name.replace(inserted, "")
    return name


def parameter_names(model: Any) -> dict[int, list[str]]:
    """``id()`` of each parameter → its names in the plain model (several if tied); {} if it is no module."""
    model = plain_model(model)
    names: dict[int, list[str]] = {}
    if isinstance(model, nn.Module):
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(plain_name(name))
    return names


def is_sharded(model: Any) -> bool:
    """Whether its weights are spread over the processes (FSDP), so that all must run each forward pass."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any("FSDP" in kind.__name__ for module in modules for kind in type(module).__mro__)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The plain model's state dict. Of a sharded model, all processes must call it, and process 0 gets it."""
    model = plain_model(model)
    if is_sharded(model):
        # imported here, since it takes seconds
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=whole)
    else:
        state = model.state_dict()
    return {plain_name(name): values for name, values in state.items() if isinstance(values, torch.Tensor)}
