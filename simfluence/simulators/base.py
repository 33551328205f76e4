"""What every simulator is: hyperparameters, ``fit`` on recorded runs, ``simulate`` other curricula.

To add one: a subclass in a file of its own, a config of its ``name`` in conf/simulator/, and a line in
``SIMULATORS`` (simulators/__init__.py); the common tests then run on it.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simfluence.curriculum import Curriculum
from simfluence.errors import NotFittedError, RunDataError
from simfluence.runs import RunSet
from simfluence.runs.storage import write_atomically

Array = npt.NDArray[np.float64]

_FORMAT = "simfluence simulator 1"


class Simulator(ABC):
    """A model of training: from a curriculum and the losses before its first step to all later losses.

    Constructor arguments are hyperparameters, kept as attributes of the same names; what ``fit`` finds
    is in attributes that end in an underscore.
    """

    name: ClassVar[str]
    """What the simulator is called in configurations, tables and files."""

    # ------------------------------------------------------------------------------ to be written

    @abstractmethod
    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        """Set the fitted attributes."""

    @abstractmethod
    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        """float [run, step + 1, test]; entries after a curriculum's end may be anything."""

    # --------------------------------------------------------------------------------- to be used

    def fit(self, train: RunSet, validation: RunSet | None = None) -> Self:
        """Fit to recorded runs; ``validation`` runs, if given, choose hyperparameters left open.

        Raises ValueError if there is no run to fit, or if validation runs are about other examples.
        """
        if len(train) == 0:
            raise ValueError("fit() needs at least one training run")
        if validation is not None and len(validation) == 0:
            validation = None
        if validation is not None and not (validation.train == train.train and validation.test == train.test):
            raise ValueError("the validation runs are about other examples than the training runs")
        self.n_train_ = len(train.train)
        self.n_test_ = len(train.test)
        self._fit(train, validation)
        return self

    def simulate(self, curricula: Sequence[Curriculum], initial_loss: npt.ArrayLike, **options: Any) -> Array:
        """The predicted losses under these curricula; nothing else of a run is read.

        Parameters
        ----------
        curricula : one a run, over the training table of the fit.
        initial_loss : float [run, test], or [test] for all runs: the losses before the first step.
        options : what the simulator's own ``_simulate`` takes beside these.

        Returns
        -------
        float64 [run, step + 1, test]; [:, 0] is ``initial_loss``; NaN after the end of a curriculum
        that is shorter than the longest.

        Raises
        ------
        NotFittedError, or ValueError for other examples than those of the fit.
        """
        if not hasattr(self, "n_train_"):
            raise NotFittedError(f"call fit() on this {type(self).__name__} before simulate()")
        curricula = list(curricula)
        if not curricula:
            raise ValueError("simulate() needs at least one curriculum")
        for curriculum in curricula:
            if curriculum.n_examples != self.n_train_:
                raise ValueError(
                    f"this simulator was fitted to {self.n_train_} training examples, but a curriculum"
                    f" is over {curriculum.n_examples}"
                )
        losses = np.asarray(initial_loss, np.float64)
        if losses.ndim == 1:
            losses = np.broadcast_to(losses, (len(curricula), len(losses)))
        if losses.shape != (len(curricula), self.n_test_):
            raise ValueError(
                f"initial_loss must be [run, test] = ({len(curricula)}, {self.n_test_}) or [test],"
                f" got {np.shape(initial_loss)}"
            )
        trajectories = self._simulate(curricula, losses, **options)
        trajectories[:, 0] = losses
        steps = np.array([len(curriculum) for curriculum in curricula])
        trajectories[np.arange(trajectories.shape[1]) > steps[:, None]] = np.nan
        return trajectories

    # ------------------------------------------------------------------------------ keeping it

    def get_params(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({arguments})"

    def save(self, path: str | Path) -> None:
        """Write hyperparameters and fitted values to one safetensors file."""
        if not hasattr(self, "n_train_"):
            raise NotFittedError(f"fit() this {type(self).__name__} before saving it")
        fitted = {key: value for key, value in vars(self).items() if key.endswith("_")}
        arrays = {k: np.ascontiguousarray(v) for k, v in fitted.items() if isinstance(v, np.ndarray)}
        plain = {key: value for key, value in fitted.items() if key not in arrays}
        metadata = {
            "format": _FORMAT,
            "name": self.name,
            "params": json.dumps(self.get_params()),
            "fitted": json.dumps(plain),
        }
        write_atomically(Path(path), save(arrays, metadata))

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        for key, value in {**arrays, **plain}.items():
            setattr(self, key, value)
        return self


def read_saved(path: str | Path) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(name, hyperparameters, fitted arrays, other fitted values) of a file written by ``save``."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise RunDataError(f"{path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise RunDataError(f"{path} does not hold a simulator (expected format {_FORMAT!r})")
    return metadata["name"], json.loads(metadata["params"]), arrays, json.loads(metadata["fitted"])
