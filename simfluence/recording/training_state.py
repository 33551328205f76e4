"""Resumable checkpoints: all the state that a training needs to continue to the same bits, without pickle.

    <run>/resume/step-000020/state.json          the structure, numbers and strings
                             state.safetensors   the tensors in it

What is saved: anything with ``state_dict()`` and ``load_state_dict()`` (models, optimizers, schedulers,
gradient scalers), random generators of torch, NumPy and Python, and always the global random states.
A checkpoint is written under another name and renamed when it is complete; then the older one is deleted.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from simfluence.errors import RecordingError

FOLDER = "resume"
_JSON, _TENSORS = "state.json", "state.safetensors"


# ------------------------------------------------------------------------------- objects ⇄ states


def capture(objects: Mapping[str, Any]) -> dict[str, Any]:
    """The state of each object, as nested dicts, lists, numbers, strings, arrays and tensors."""
    return {name: _state(name, thing) for name, thing in objects.items()}


def restore(objects: Mapping[str, Any], states: Mapping[str, Any]) -> None:
    """Put the states back into the objects.

    Raises RecordingError if the checkpoint is about other objects.
    """
    if set(objects) != set(states):
        raise RecordingError(
            f"the checkpoint holds the state of {sorted(states)}, but state= names {sorted(objects)};"
            " pass the same objects as when it was made"
        )
    for name, thing in objects.items():
        if isinstance(thing, torch.Generator):
            thing.set_state(states[name])
        elif isinstance(thing, np.random.Generator):
            thing.bit_generator.state = states[name]
        elif isinstance(thing, random.Random):
            thing.setstate(states[name])
        else:
            thing.load_state_dict(states[name])


def check(objects: Mapping[str, Any]) -> None:
    """Raises ValueError for an object whose state cannot be saved; called before the training starts."""
    for name, thing in objects.items():
        if isinstance(thing, torch.Generator | np.random.Generator | random.Random):
            continue
        if not (hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")):
            raise ValueError(
                f"state[{name!r}] must have state_dict() and load_state_dict(), or be a random generator of"
                f" torch, NumPy or Python; got {type(thing).__name__}"
            )


def _state(name: str, thing: Any) -> Any:
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if isinstance(thing, random.Random):
        return thing.getstate()
    return thing.state_dict()


def random_states() -> dict[str, Any]:
    """The global random states of Python, NumPy and torch."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the user's)
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None:
        torch.cuda.set_rng_state_all(states["cuda"])


# ---------------------------------------------------------------------------------- on the disk


def save(run_folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write a state as the run's checkpoint after that step, in place of earlier ones."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, tensors, {}, "state")
    parent = run_folder / FOLDER
    final = parent / f"step-{step:06d}"
    temporary = parent / f"{final.name}.tmp"
    for leftover in (temporary, final):  # of an attempt that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(tensors, temporary / _TENSORS)
        (temporary / _JSON).write_text(json.dumps({"step": step, "state": tree}))
        for name in (_TENSORS, _JSON):
            _sync(temporary / name)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for other in parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def steps(run_folder: Path) -> list[int]:
    """The steps after which the run can be resumed, the last one first."""
    found = (run_folder / FOLDER).glob("step-*[0-9]")
    return sorted((int(folder.name.removeprefix("step-")) for folder in found), reverse=True)


def load(run_folder: Path, step: int) -> Any:
    """The state as it was saved.

    Raises RecordingError if the files are not there or damaged.
    """
    folder = run_folder / FOLDER / f"step-{step:06d}"
    try:
        tensors = load_file(folder / _TENSORS)
        tree = json.loads((folder / _JSON).read_bytes())
        return _unpack(tree["state"], tensors)
    except Exception as error:
        raise RecordingError(
            f"{folder} cannot be resumed from: {error}; delete it, or pass restart=True"
        ) from error


def remove(run_folder: Path) -> None:
    shutil.rmtree(run_folder / FOLDER, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# -------------------------------------------------------------------------- states ⇄ JSON + tensors


def _pack(value: Any, tensors: dict[str, torch.Tensor], seen: dict[tuple[Any, ...], str], where: str) -> Any:
    """JSON of a nested state; tensors go into ``tensors``, those that share memory once."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), str(value.device))
        if value.numel() == 0 or key not in seen:
            seen[key] = str(len(tensors))
            tensors[seen[key]] = value.detach().cpu().clone().contiguous()
        return {"tensor": seen[key]}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return {"array": value.item(), "dtype": str(value.dtype)}
    if isinstance(value, Mapping):
        items = [[key, _pack(item, tensors, seen, f"{where}[{key!r}]")] for key, item in value.items()]
        if bad := [key for key, _ in items if not isinstance(key, int | str)]:
            raise RecordingError(f"{where} has the key {bad[0]!r}; only strings and integers can be saved")
        return {"dict": items}
    if isinstance(value, list | tuple):
        packed = [_pack(item, tensors, seen, f"{where}[{i}]") for i, item in enumerate(value)]
        return {"tuple": packed} if isinstance(value, tuple) else packed
    raise RecordingError(
        f"{where} is a {type(value).__name__}, which cannot be saved without code; leave that object out of"
        " state=, or give it a state_dict() of tensors, numbers and strings"
    )


def _unpack(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        array = np.asarray(value["array"], value["dtype"])
        return array if array.ndim else array[()]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {key: _unpack(item, tensors) for key, item in value["dict"]}
