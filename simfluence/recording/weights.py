"""Weights kept along a run, for attribution methods that look at parameters.

    <run>/checkpoints/step-000010.safetensors

Where most of a model is frozen, only the parameters that train or did so earlier in the run are kept (and the
buffers, which forward passes may change, without quantised weights): load them into the pretrained model that
the run started from.
Names are those of the plain model: weights kept of a compiled or parallel model load into the model inside.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from simfluence.errors import RunDataError
from simfluence.recording.schedule import Schedule, never
from simfluence.recording.watch import OptimizerWatch
from simfluence.recording.wrappers import (
    full_state,
    parameter_names,
    plain_model,
    plain_name,
    quantised_buffers,
)

FOLDER = "checkpoints"


def save_weights(run_folder: Path, step: int, state: Mapping[str, torch.Tensor]) -> Path:
    """Write the weights after a step (0: before the first); atomically, like all files of a run."""
    folder = run_folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = weights_file(run_folder, step)
    temporary = path.with_suffix(".tmp")
    kept, aliases = _distinct(state)
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
    """Put the weights kept after that step into the model; what was never trained stays as it is.

    The model may be the plain one or wrapped (torch.compile, DistributedDataParallel, DataParallel).

    Raises RunDataError if there are none, or they are another model's.
    """
    path = weights_file(Path(run_folder), step)
    if not path.is_file():
        raise RunDataError(f"{path} is not there; weights were kept after steps {weight_steps(run_folder)}")
    with safe_open(path, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads((file.metadata() or {}).get("simfluence", "{}"))
    state |= {name: state[same] for name, same in about.get("aliases", {}).items()}
    model = plain_model(model)
    ours = model.state_dict()
    names = {plain_name(name): name for name in ours}
    state = {names.get(plain_name(name), name): values for name, values in state.items()}
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


class WeightKeeper:
    """Which weights of a run are kept when.

    due : whether weights are kept after a step.
    trained : the names of all parameters that have been trained in the run up to now, as :meth:`note` saw it.
    """

    def __init__(self, due: Schedule, model: Any, watch: OptimizerWatch) -> None:
        self.due = due
        self.trained: set[str] = set()
        self._model, self._watch = model, watch

    def note(self) -> None:
        """Remember what trains now: it is kept with later weights too, should it be frozen by then."""
        if self.due is not never and isinstance(self._model, nn.Module):
            named = plain_model(self._model).named_parameters(remove_duplicate=False)
            self.trained.update(plain_name(name) for name, p in named if p.requires_grad)
            stepped = (self._watch.names.get(number, ()) for number in self._watch.trained)
            self.trained.update(itertools.chain(*stepped))

    def state(self) -> Mapping[str, torch.Tensor]:
        """The state dict; without the parameters that never trained, where these are more than half.

        Of a sharded model, all processes must call it, and process 0 gets it.

        Raises TypeError if the model is no torch module.
        """
        if not isinstance(self._model, nn.Module):
            raise TypeError(f"keep_weights needs a torch module, got {type(self._model).__name__}")
        state = full_state(self._model)
        all_names = parameter_names(self._model).values()
        frozen = {name for names in all_names for name in names} - self.trained
        quantised = quantised_buffers(self._model)
        frozen |= quantised.keys()
        every = [*(names[0] for names in all_names), *quantised]
        sizes = {name: state[name].numel() for name in every if name in state}
        if 2 * sum(size for name, size in sizes.items() if name in frozen) <= sum(sizes.values()):
            return state
        return {name: values for name, values in state.items() if not _is_of(name, frozen)}

    def names_in(self, run_folder: Path) -> set[str]:
        """The names of all weights that were kept in a run's folder."""
        names: set[str] = set()
        for step in weight_steps(run_folder):
            with safe_open(weights_file(run_folder, step), "pt") as file:
                names.update(file.keys())
        return names


def _is_of(name: str, names: Collection[str]) -> bool:
    """Whether it is one of the names or, as scales of a quantised weight, a part of one ("weight.absmax")."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return bool(name)


def _distinct(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
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
