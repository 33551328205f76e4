"""The weights that a run went through, and how to load them into a model temporarily."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from simfluence.attribution.groups import rates_at, says_parameters
from simfluence.attribution.objective import Objective, losses_of
from simfluence.errors import RunDataError
from simfluence.recording.evaluator import undisturbed
from simfluence.recording.weights import load_weights, weight_steps
from simfluence.runs import Run


@dataclass(frozen=True)
class Checkpoint:
    """Weights after a step.

    step : 0 is before the first.
    learning_rate : η of the step that follows (of the last step, where none follows); NaN if not known.
    load : puts the weights into a model.
    rates : η of each parameter by name, where groups of parameters have different ones (0 for those not
        named); empty: all have ``learning_rate``.
    optimizer : what trained the run (``Run.optimizer``); {} if it is not known.
    """

    step: int
    learning_rate: float
    load: Callable[[nn.Module], None]
    rates: Mapping[str, float] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def loaded(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module has this checkpoint's weights; outside, those that it had."""
        before = {name: value.detach().clone() for name, value in module.state_dict().items()}
        try:
            self.load(module)
            yield
        finally:
            module.load_state_dict(before)


def recorded_checkpoints(
    run_folder: str | Path, run: Run, steps: Sequence[int] | None = None
) -> list[Checkpoint]:
    """The weights that were kept of a recorded run, in the order of their steps.

    steps : only the weights after these steps; None: all that were kept.

    Raises RunDataError if no weights were kept, or none after one of the steps.
    """
    folder = Path(run_folder)
    kept = weight_steps(folder)
    if steps is not None and not len(steps):
        raise ValueError("expected at least one step, or none of them named for all checkpoints; got []")
    if missing := sorted(set(steps or ()) - set(kept)):
        raise RunDataError(f"{folder}: no weights were kept after step {missing[0]}, but after {kept}")
    if not kept:
        raise RunDataError(
            f"no weights were kept in {folder}: record the run with keep_weights, e.g. run.keep_weights=10"
        )
    rates = np.asarray(run.learning_rate)
    if not says_parameters(run.optimizer, "lr"):
        rates = np.full(len(rates), np.nan)

    def checkpoint(step: int) -> Checkpoint:
        following = min(step, len(rates) - 1)
        return Checkpoint(
            step,
            float(rates[following]),
            lambda module: load_weights(folder, step, module),
            rates_at(run, following),
            run.optimizer,
        )

    return [checkpoint(step) for step in (kept if steps is None else steps)]


def weights_fingerprint(module: nn.Module) -> str:
    """A short hash of all parameters and buffers, by name, type, shape and value."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def losses_fingerprint(objective: Objective, examples: Sequence[Any]) -> list[str]:
    """The examples' losses to four digits: other examples would have others."""
    with undisturbed(objective.module), torch.no_grad():
        return [f"{float(losses_of(objective, [example])[0]):.4g}" for example in examples]
