"""Weights kept along a run, for attribution methods that look at parameters.

    <run>/checkpoints/step-000010.safetensors

Where most of a model is frozen, only the parameters that train are kept (and the buffers, which forward
passes may change): load them into the pretrained model that the run started from.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from simfluence.errors import RunDataError

FOLDER = "checkpoints"


def save_weights(run_folder: Path, step: int, model: nn.Module) -> Path:
    """Write the weights after a step (0: before the first); atomically, like all files of a run."""
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = weights_file(run_folder, step)
    temporary = path.with_suffix(".tmp")
    kept, aliases = _distinct(_worth_keeping(model))
    # one entry, since safetensors writes several in any order: equal weights make equal files
    about = {"simfluence": json.dumps({"step": step, "aliases": aliases})}
    try:
        save_file(kept, temporary, metadata=about)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def load_weights(run_folder: str | Path, step: int, model: nn.Module) -> None:
    """Put the weights kept after that step into the model; what was frozen stays as it is.

    Raises RunDataError if there are none, or they are another model's.
    """
    path = weights_file(Path(run_folder), step)
    if not path.is_file():
        raise RunDataError(f"{path} is not there; weights were kept after steps {weight_steps(run_folder)}")
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads((file.metadata() or {}).get("simfluence", "{}"))
    state |= {name: state[same] for name, same in about.get("aliases", {}).items()}
    ours = model.state_dict()
    for name, values in state.items():
        if name not in ours or ours[name].shape != values.shape:
            found = tuple(ours[name].shape) if name in ours else "nothing of that name"
            raise RunDataError(f"{path}: {name} has shape {tuple(values.shape)}, the model has {found}")
    model.load_state_dict(state, strict=False)


def weight_steps(run_folder: str | Path) -> list[int]:
    """The steps after which weights were kept, ascending."""
    files = (Path(run_folder) / FOLDER).glob("step-*.safetensors")
    return sorted(int(file.stem.removeprefix("step-")) for file in files)


def weights_file(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step-{step:06d}.safetensors"


def _worth_keeping(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict; without its frozen parameters, where these are more than half."""
    state = model.state_dict()
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    if 2 * sum(size for name, size in sizes.items() if name in frozen) <= sum(sizes.values()):
        return state
    return {name: values for name, values in state.items() if name not in frozen}


def _distinct(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tied weights once: the tensors to write, and the other names with the one they are kept under."""
    kept: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, values in state.items():
        key = (values.data_ptr(), tuple(values.shape), values.stride())
        if values.numel() and key in seen:
            aliases[name] = seen[key]
        else:
            seen[key] = name
            # views of one storage (a fused weight's parts) cannot be written as they are
            whole = values.untyped_storage().nbytes() == values.numel() * values.element_size()
            kept[name] = values.detach().contiguous() if whole else values.detach().clone().contiguous()
    return kept, aliases
