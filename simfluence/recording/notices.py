"""What a run tells the user while it is recorded, as warnings."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt


class NonFiniteLossWarning(UserWarning):
    """A test loss became NaN or infinite."""


class RecordingStoppedWarning(UserWarning):
    """Recording could not go on; training does, unrecorded."""


class UntrainedStepWarning(UserWarning):
    """A step was recorded in which no optimizer changed a weight."""


class IncompleteRunWarning(UserWarning):
    """A run ended without a step, or with fewer steps than it was to have."""


class FewEvaluationsWarning(UserWarning):
    """A run was evaluated so few times that simulators learn little from it."""


def warn_of_untrained(run_id: str, step: int) -> None:
    message = (
        f"run {run_id!r}: no optimizer changed a weight in step {step} (the update was skipped or left out);"
        " it is recorded with learning rate 0 and no examples, said once a run. With gradient accumulation,"
        " call run.consumes(ids) for every micro-batch, and run.step() after the optimizer's step"
    )
    warnings.warn(message, UntrainedStepWarning, stacklevel=5)


def warn_of_incomplete(run_id: str, shortfall: str) -> None:
    message = f"run {run_id!r} {shortfall}; it is not complete"
    warnings.warn(message, IncompleteRunWarning, stacklevel=4)


def warn_of_few_evaluations(run_id: str, evaluations: int, share: float) -> None:
    message = (
        f"run {run_id!r} was evaluated {evaluations} times, which is what evaluate_within={share:g} left:"
        " from so few losses simulators learn little. Give it a larger share, or fewer test examples at a"
        " time (evaluate_subset)"
    )
    warnings.warn(message, FewEvaluationsWarning, stacklevel=4)


def describe_nonfinite(run_id: str, step: int, ids: list[str], losses: npt.NDArray[np.floating]) -> str:
    """Which loss is not finite, the first one of [test]."""
    bad = np.flatnonzero(~np.isfinite(losses))
    return (
        f"run {run_id!r}: the loss of test example {ids[bad[0]]!r} is {losses[bad[0]]} after step {step}"
        f" ({bad.size} of {len(losses)} are not finite)"
    )
