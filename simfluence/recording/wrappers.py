"""Models inside other modules: torch.compile, DataParallel, DistributedDataParallel, FSDP, DeepSpeed.

The model as the user made it is called plain. Recorded names of parameters and kept weights are those of the
plain model, whatever it was wrapped in.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from simfluence.recording.processes import Processes

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_IN_NAMES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def plain_model(model: Any) -> Any:
    """The model inside torch.compile, DataParallel, DistributedDataParallel and DeepSpeed's engine."""
    while True:
        if isinstance(model, _PARALLEL) or is_deepspeed_engine(model):
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


def called_module(model: Any) -> Any:
    """The module whose ``forward`` a call ends in: the plain model, inside FSDP's wrapper too."""
    model = plain_model(model)
    return getattr(model, "_fsdp_wrapped_module", model)


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


def quantised_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name → buffers of whole numbers of 8 or 32 bits, as quantised weights are kept in by some libraries."""
    named = plain_model(model).named_buffers(remove_duplicate=False)
    whole = (torch.int8, torch.uint8, torch.int32)
    return {plain_name(name): values for name, values in named if values.dtype in whole}


def is_deepspeed_engine(model: Any) -> bool:
    return any(kind.__name__ == "DeepSpeedEngine" for kind in type(model).__mro__)


def is_sharded(model: Any) -> bool:
    """Whether its weights are spread over the processes (FSDP, DeepSpeed's ZeRO-3), so that all must run each
    forward pass."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    if any("FSDP" in kind.__name__ for module in modules for kind in type(module).__mro__):
        return True
    return any(own_partition(p) is not None for module in modules for p in module.parameters(recurse=False))


def own_partition(parameter: torch.Tensor) -> torch.Tensor | None:
    """This process's share, flat, of a parameter that ZeRO-3 has spread over them; None for others."""
    return getattr(parameter, "ds_tensor", None)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The plain model's state dict. Of a sharded model, all processes must call it, and process 0 gets it;
    what others get may lack weights."""
    model = plain_model(model)
    state: dict[str, Any]
    if any(own_partition(parameter) is not None for parameter in model.parameters()):
        state = _gathered_state(model)
    elif is_sharded(model):
        # imported here, since it takes seconds
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        # torch crashes where it is to move to the CPU what FSDP1 has there already
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        whole = StateDictOptions(full_state_dict=True, cpu_offload=not on_cpu)
        state = dict(get_model_state_dict(model, options=whole))
    else:
        state = model.state_dict()
    return {plain_name(name): values for name, values in state.items() if isinstance(values, torch.Tensor)}


def _gathered_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model under ZeRO-3, whose parameters are gathered one after the other."""
    from deepspeed.runtime.zero import GatheredParameters

    state = model.state_dict()
    gathered: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in gathered:
            with GatheredParameters([parameter]):
                values = parameter.detach()
                gathered[id(parameter)] = values.cpu().clone() if Processes.current().is_writer else values
        state[name] = gathered[id(parameter)]
    return state
