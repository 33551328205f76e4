"""The attribution context of a run that ``simfluence record`` made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.groups import rates_at, relative_rates
from simfluence.attribution.objective import LossesOnly
from simfluence.attribution.registry import AttributionContext
from simfluence.curriculum import usual_batch_size
from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import Prepared, prepare
from simfluence.finetuning.retrain import check_task, recorded_config, weights_after
from simfluence.finetuning.tasks import load_task
from simfluence.recording.weights import weight_steps
from simfluence.runs import Run
from simfluence.runs.storage import read_examples
from simfluence.runs.tables import TableFingerprints


def recorded_context(
    path: str | Path,
    run: Run,
    steps: int | Sequence[int] | Literal["initial"] | None = None,
    device: str | None = None,
) -> AttributionContext:
    """The model, examples and weights of a run, which belongs to the run set in the folder ``path``.

    steps : only the weights after these steps, or after so many steps that are evenly spaced from the start
        to the end; None: all that were kept; "initial": those before training, which are always there. If
        some of the others were not kept, the run is trained again up to the last of them.
    device : where the model lies, as torch names it; None is the GPU if torch finds one.

    Raises ValueError for other steps, and RunDataError if the run was not recorded by ``simfluence record``,
    kept no weights where ``steps`` is None, its task no longer has the examples of the set, or training it
    again gives other losses.
    """
    chosen = None if steps is None else steps_of(run, steps)
    if not run.config:
        raise RunDataError(f"{path} was not recorded by `simfluence record`: its model is not known")
    folder = Path(path) / run.id
    kept = recorded_checkpoints(folder, run) if chosen is None else []
    prepared = prepare(run.config, device)
    task, (train, test) = prepared.task, read_examples(Path(path))
    check_task(task, train, test)
    if chosen is not None:
        kept = _checkpoints(folder, run, chosen, prepared)
    return AttributionContext(
        objective=prepared.model,
        train=task.train,
        test=task.test,
        train_texts=[example.text for example in task.train],
        test_texts=[example.text for example in task.test],
        checkpoints=[_after_initial(checkpoint, prepared) for checkpoint in kept],
        tokens=prepared.model.token_strings,
        batch=int(usual_batch_size([run.curriculum])),
        optimizer=run.optimizer,
        rates=partial(relative_rates, run),
        tables=TableFingerprints.of(train, test),
        run=run,
    )


def recorded_texts(path: str | Path, run: Run) -> AttributionContext:
    """A context of texts alone, for the methods in :data:`.registry.OF_TEXTS`: no model is loaded.

    The texts are those that the run set in the folder ``path`` keeps, or else those of the run's task.

    Raises RunDataError if there are none, or the task no longer has the examples of the set.
    """
    train, test = read_examples(Path(path))
    texts = [table.frame["text"].tolist() for table in (train, test)]
    if not all(any(of_table) for of_table in texts):
        if not run.config:
            raise RunDataError(
                f"{path} keeps no texts of its examples (text=True of the recorder keeps them)"
            )
        task = load_task(**recorded_config(run)["task"])
        check_task(task, train, test)
        texts = [[example.text for example in examples] for examples in (task.train, task.test)]
    return AttributionContext(
        objective=LossesOnly(nn.Module(), _no_model),
        train=train.ids,
        test=test.ids,
        train_texts=texts[0],
        test_texts=texts[1],
        checkpoints=[],
        tokens=_no_model,
        tables=TableFingerprints.of(train, test),
    )


def _no_model(examples: object) -> NoReturn:
    raise ValueError("this takes a model, but the context was made of texts alone")


def steps_of(run: Run, steps: int | Sequence[int] | Literal["initial"]) -> list[int]:
    """The steps of a run that are meant: those named; so many, evenly spaced from the start to the end; or
    "initial", 0.

    Raises ValueError unless they are steps of the run, ascending, each once.
    """
    last = len(run.curriculum)
    if steps == "initial":
        return [0]
    if isinstance(steps, int) and not isinstance(steps, bool):
        if not 1 <= steps <= last + 1:
            raise ValueError(
                f"steps={steps} is a number of evenly spaced steps, 1 to {last + 1} in run {run.id!r};"
                f" a single step is steps=[{steps}]"
            )
        return [round(last * i / max(steps - 1, 1)) for i in range(steps)]
    try:
        chosen = [index(step) for step in steps]  # type: ignore[union-attr]
    except TypeError:
        raise ValueError(
            f"steps must be null, initial, a number of steps, or a list of steps; got {steps!r}"
        ) from None
    if not chosen:
        raise ValueError("steps must name at least one step, got []")
    if chosen != sorted(set(chosen)):
        raise ValueError(f"steps must be ascending, each once; got {chosen}")
    if outside := [step for step in chosen if not 0 <= step <= last]:
        raise ValueError(f"run {run.id!r} has steps 0 (before the first) to {last}, not {outside[0]}")
    return chosen


def _checkpoints(folder: Path, run: Run, steps: Sequence[int], prepared: Prepared) -> list[Checkpoint]:
    """The weights after these steps: those that were kept, if all others than the initial ones were; else
    those of the same training once more."""
    later = [step for step in steps if step > 0]
    if set(later) <= set(weight_steps(folder)):
        kept = recorded_checkpoints(folder, run, later) if later else []
        return [*([_checkpoint(run, 0, {})] if 0 in steps else []), *kept]
    weights = weights_after(prepared, run, later)
    _check_retrained(prepared, run, weights)
    return [_checkpoint(run, step, weights.get(step, {})) for step in steps]


def _check_retrained(prepared: Prepared, run: Run, weights: Mapping[int, Mapping[str, Tensor]]) -> None:
    """RunDataError unless the last of these weights give the losses that were recorded after their step.

    They may differ, root mean square, by a twentieth of what training changed. Not checked where the run was
    not evaluated.
    """
    step = max(weights)
    if step not in run.evaluated or run.evaluated[0] != 0:
        return
    recorded = run.loss[np.searchsorted(run.evaluated, step)]
    model, losses = prepared.model, []
    _load(model, weights[step])
    model.eval()
    with torch.no_grad():
        for example in prepared.task.test:
            losses.append(float(model.losses([example])))
    model.load_state_dict(prepared.initial)
    differs, changed = np.array(losses) - recorded, recorded - run.initial_loss
    tolerated = 0.05 * np.sqrt(np.square(changed).mean()) + 1e-5
    if not np.sqrt(np.square(differs).mean()) <= tolerated:  # NaN is no agreement
        raise RunDataError(
            f"{run.id}, trained again, has other losses after step {step} than were recorded, by up to"
            f" {np.abs(differs).max():.3g}: these weights are not the run's. It was recorded on"
            f" {run.environment.get('device', 'cpu')}; choose device= accordingly, with the versions of then,"
            f" or record it with run.keep_weights"
        )


def _checkpoint(run: Run, step: int, weights: Mapping[str, Tensor]) -> Checkpoint:
    """Of weights in memory; those that are not among them are the model's initial ones."""
    following = min(step, len(run.curriculum) - 1)
    return Checkpoint(
        step,
        float(np.asarray(run.learning_rate)[following]),
        lambda module: _load(module, weights),
        rates_at(run, following),
        run.optimizer,
    )


def _load(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(weights), strict=False)


def _after_initial(checkpoint: Checkpoint, prepared: Prepared) -> Checkpoint:
    """A checkpoint that first restores the initial weights: frozen parameters are not kept with a run."""

    def load(module: nn.Module) -> None:
        module.load_state_dict(prepared.initial)
        checkpoint.load(module)

    return replace(checkpoint, load=load)
