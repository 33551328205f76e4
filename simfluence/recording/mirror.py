"""Recorded losses, mirrored to where people look: TensorBoard, Weights & Biases or trackio, by their clients.

After every step a mirror is given the training loss and the learning rate, and after an evaluation the mean
over test examples of every metric, and of the loss the mean over each of their groups:

    train/loss, train/learning_rate, test/loss, test/loss/<group>, test/<metric>

The recording never depends on its mirror: one that fails is said once, as a MirrorWarning, and is left alone
from then on. Random states are as they were after every call of a client.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from simfluence.recording.evaluator import Metrics, undisturbed

TOOLS = ("tensorboard", "wandb", "trackio")


class MirrorWarning(UserWarning):
    """A mirror failed; the run is recorded as before, but no longer mirrored."""


class Client(Protocol):
    """What is called of a tool, for one run."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self, complete: bool) -> None: ...


def check(tool: str | None) -> None:
    """Raises ValueError for a tool of another name, ModuleNotFoundError if its client is not installed."""
    if tool is None:
        return
    if tool not in TOOLS:
        raise ValueError(f"mirror must be one of {', '.join(map(repr, TOOLS))}, or None; got {tool!r}")
    if not _is_installed(tool):
        raise ModuleNotFoundError(
            f"mirror={tool!r} needs the package {tool}: pip install 'simfluence[{tool}]'"
        )


def _is_installed(tool: str) -> bool:
    return importlib.util.find_spec(tool) is not None


class Mirror:
    """Mirrors one run; without a tool it does nothing. Only the process that writes the run begins it.

    Parameters
    ----------
    tool : one of TOOLS, or None. folder : the run's. groups : of the test examples, [test].
    config : what the user said of the run, which the tools show beside it.
    """

    def __init__(
        self, tool: str | None, folder: Path, groups: Sequence[str], config: Mapping[str, Any]
    ) -> None:
        self._tool, self._folder, self._config = tool, folder, dict(config)
        names = np.asarray(groups)
        self._rows = {group: np.flatnonzero(names == group) for group in dict.fromkeys(groups)}
        self._client: Client | None = None

    def begin(self, start: int, losses: Metrics) -> None:
        """Open the client, and log the losses before the first step. start : of a resumed run, its steps."""
        if self._tool is not None:
            self._try(lambda: self._open(start))
            if start == 0:
                self.step(0, losses)

    def step(
        self,
        step: int,
        losses: Metrics | None,
        train_loss: float | None = None,
        learning_rate: float | None = None,
    ) -> None:
        """Log what is known after a step."""
        if self._client is None:
            return
        values = {"train/loss": train_loss, "train/learning_rate": learning_rate, **self._means(losses or {})}
        known = {name: float(value) for name, value in values.items() if value is not None}
        client = self._client
        self._try(lambda: client.log(known, step))

    def end(self, complete: bool) -> None:
        """Close the client. complete : whether the run is."""
        if (client := self._client) is not None:
            self._try(lambda: client.close(complete))
            self._client = None

    def _open(self, start: int) -> None:
        self._client = _CLIENTS[self._tool or ""](self._folder, start, self._config)

    def _means(self, losses: Metrics) -> dict[str, float]:
        """Means over test examples with a finite value."""
        found = {f"test/{name}": _mean(values) for name, values in losses.items()}
        if "loss" in losses and len(self._rows) > 1:
            found |= {f"test/loss/{group}": _mean(losses["loss"][rows]) for group, rows in self._rows.items()}
        return found

    def _try(self, action: Callable[[], None]) -> None:
        try:
            with undisturbed(None):
                action()
        except Exception as error:  # whatever a client of somebody else's raises
            self._client = None
            warnings.warn(
                f"run {self._folder.name!r} is no longer mirrored to {self._tool}: {type(error).__name__}:"
                f" {error}; it is recorded as before",
                MirrorWarning,
                stacklevel=2,
            )


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


class _TensorBoard:
    """Writes event files into <run set>/tensorboard/<run id>; those of earlier attempts are hidden."""

    def __init__(self, folder: Path, start: int, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = str(folder.parent / "tensorboard" / folder.name)
        self._writer: Any = SummaryWriter(place, purge_step=start + (start > 0), flush_secs=5)
        if config:
            self._writer.add_text("config", f"```\n{dict(config)}\n```", start)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, complete: bool) -> None:
        self._writer.close()


class _WandB:
    """A run of the project that is named after the run set; its settings are those of the environment."""

    def __init__(self, folder: Path, start: int, config: Mapping[str, Any]) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=folder.parent.name, name=folder.name, config=dict(config), reinit="create_new"
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, complete: bool) -> None:
        self._run.finish(exit_code=0 if complete else 1)


class _Trackio:
    """A run of the project that is named after the run set."""

    def __init__(self, folder: Path, start: int, config: Mapping[str, Any]) -> None:
        import trackio

        self._run: Any = trackio.init(project=folder.parent.name, name=folder.name, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, complete: bool) -> None:
        self._run.finish()


_CLIENTS: dict[str, Callable[[Path, int, Mapping[str, Any]], Client]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "trackio": _Trackio,
}
