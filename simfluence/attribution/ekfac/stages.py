"""The finished stages of computing factors, in a folder, so that an interrupted computation can be continued.

covariances.safetensors   the sums of the first pass (moments.py)
eigenbases.safetensors    factors whose Kronecker blocks have no Λ yet
factors.safetensors       all of them
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from simfluence.attribution.ekfac.factors import EKFACFactors, differences
from simfluence.errors import RunDataError
from simfluence.runs.storage import write_atomically


class Stages:
    """The files of the finished stages.

    folder : None: nothing is saved or loaded.
    about : the weights, examples and settings that the files must be of, in JSON's types.

    Everything raises RunDataError for a file of something else, or a damaged one.
    """

    def __init__(self, folder: str | Path | None, about: Mapping[str, Any]) -> None:
        self._folder, self._about = None if folder is None else Path(folder), dict(about)

    def load(self, stage: Literal["eigenbases", "factors"]) -> EKFACFactors | None:
        """The factors of a stage; None if it is not finished."""
        if (file := self._file(stage)) is None or not file.exists():
            return None
        found = EKFACFactors.load(file)
        self._check(file, found.about)
        return found

    def keep(self, stage: Literal["eigenbases", "factors"], factors: EKFACFactors) -> None:
        """Save the factors of a finished stage."""
        if (file := self._file(stage)) is not None:
            replace(factors, about={**factors.about, **self._about}).save(file)

    def load_moments(self, moments: Mapping[str, Any], device: torch.device) -> bool:
        """Load the sums of the first pass into ``moments``; False if that pass is not finished."""
        if (file := self._file("covariances")) is None or not file.exists():
            return False
        try:
            with safe_open(file, framework="pt") as opened:
                self._check(file, json.loads((opened.metadata() or {}).get("about", "{}")))
                for key in opened.keys():  # noqa: SIM118
                    name, _, attribute = key.rpartition("/")
                    value = opened.get_tensor(key)
                    setattr(moments[name], attribute, value.to(device) if value.ndim else value.item())
        except SafetensorError as error:
            raise RunDataError(f"{file} is damaged: {error}; delete it") from error
        return True

    def keep_moments(self, moments: Mapping[str, Any]) -> None:
        if (file := self._file("covariances")) is None:
            return
        tensors = {
            f"{name}/{attribute}": torch.as_tensor(value).cpu().contiguous()
            for name, moment in moments.items()
            for attribute, value in vars(moment).items()
            if isinstance(value, Tensor | float)
        }
        write_atomically(file, save(tensors, {"about": json.dumps(self._about)}))

    def _file(self, stage: str) -> Path | None:
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{stage}.safetensors"

    def _check(self, file: Path, found: Mapping[str, Any]) -> None:
        if other := differences(self._about, found):
            raise RunDataError(f"{file} has factors of other {other}: delete it, or name another folder")
