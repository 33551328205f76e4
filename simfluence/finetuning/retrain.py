"""Train a recorded run again, step by step, to have the weights that it went through."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from simfluence import renamed
from simfluence.curriculum import Curriculum
from simfluence.devices import chosen_device
from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import Prepared, record_runs
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.tasks import Task, load_task
from simfluence.runs import ExampleTable, Run, RunSet
from simfluence.runs.schedule import STRETCH, check_rule, edited_rates
from simfluence.runs.tables import difference


def recorded_config(run: Run) -> dict[str, Any]:
    """The configuration that a run was recorded with, where renamed options have their new names."""
    options = {renamed.RECORDING.get(name, name): value for name, value in run.config["run"].items()}
    return {**run.config, "run": options}


def check_task(task: Task, train: ExampleTable, test: ExampleTable) -> None:
    """Checks that a task, made again from a run's configuration, has the examples of the run's set.

    train, test : the tables of the set.

    Raises RunDataError that names the first difference.
    """
    for kind, expected, examples in (("training", train, task.train), ("test", test, task.test)):
        if found := difference(expected, ExampleTable.of(examples)):
            raise RunDataError(
                f"task {task.name!r} no longer has the {kind} examples that the runs were recorded with:"
                f" {found}. Its source or its settings have changed since: restore them, or record again"
            )


def recorded_device(run: Run) -> torch.device:
    """The kind of device that the run was trained on, if there is one here.

    On another kind, dropout would draw other masks.
    """
    return chosen_device("cpu" if run.environment.get("device", "cpu") == "cpu" else None)


def edited_config(run: Run, steps: int, schedule: str) -> dict[str, Any]:
    """The configuration to train a recorded run again with, on so many steps, at the learning rates of
    :func:`simfluence.runs.schedule.edited_rates`: a schedule that has a name is recomputed for these steps
    ("stretch"); the recorded rates ("keep") are written out.

    Raises ValueError for another schedule.
    """
    check_rule(schedule)
    config = recorded_config(run)
    optimizer = config["run"]["optimizer"]
    named = isinstance(optimizer.get("schedule", ""), str)
    rates = None if named and schedule == STRETCH else edited_rates(run, steps, schedule)
    if steps == len(run) or rates is None:
        return config
    return {**config, "run": {**config["run"], "optimizer": {**optimizer, "schedule": rates.tolist()}}}


def retrain_as_recorded(
    of: str, name: str, device: str | None = None
) -> Callable[[Run, Curriculum, str], Run]:
    """A function that trains a run of ``simfluence record`` again on another curriculum, at the learning
    rates that a schedule says ("stretch" or "keep", see :class:`simfluence.edit.Edit`), and returns the
    recording.

    of : the folder of the run set. Recordings are added to one whose name ends in "-whatif" instead of being
        mixed with it; one that is there already is not made again.
    name : what was changed, in words. It is part of the recording's name, with the run's and a hash:
        recordings of other curricula have other names.
    device : where to train, as torch names it; None is where the run was trained.

    The function raises RunDataError for a run that ``simfluence record`` did not make.
    """
    path = Path(f"{os.path.abspath(of)}-whatif")
    slug = "-".join(re.findall("[A-Za-z0-9]+", name))

    def retrained(run: Run, curriculum: Curriculum, schedule: str = STRETCH) -> Run:
        if not run.config:
            raise RunDataError(f"{run.id} was not recorded by `simfluence record`: retrain it yourself")
        recorded = RunSet.load(of)
        check_task(load_task(**recorded_config(run)["task"]), recorded.train, recorded.test)
        config = edited_config(run, len(curriculum), schedule)
        rule = "" if config == recorded_config(run) else f" {schedule}"
        asked = f"{run.id} {name} {curriculum.fingerprint}{rule}"
        digest = hashlib.sha256(asked.encode()).hexdigest()[:8]
        run_id = f"{run.id[:35]}-{slug[:50].strip('-')}-{digest}"
        where = device or str(recorded_device(run))
        curricula = {run_id: curriculum}
        record_runs(config, path, count=1, curricula=curricula, device=where, mixed=True)
        runs = RunSet.load(path)
        return runs[runs.position(run_id)]

    return retrained


def retrain(prepared: Prepared, run: Run) -> Iterator[int]:
    """Trains the prepared model as in a run that ``record_runs`` made, and yields the steps taken: 0, 1, …

    The weights at every yield are those of the run, on the same machine and versions to the last bit (on
    GPUs: nearly). All callers in a process share the prepared
    model: let one retraining end before the next begins.
    """
    model, examples = prepared.model, prepared.task.train
    model.load_state_dict(prepared.initial)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, len(run.curriculum), **run.config["run"]["optimizer"])
    torch.manual_seed(int(run.config["run"]["seed"]))  # dropout, where there is any
    yield 0
    for step, batch in enumerate(run.curriculum):
        model.train()
        loss = model.losses([examples[row] for row in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield step + 1


def weights_after(
    prepared: Prepared, run: Run, steps: Sequence[int], progress: bool = True
) -> dict[int, dict[str, torch.Tensor]]:
    """What training changed after each of these steps: the trained parameters and the buffers, by name.

    The run is trained again up to the last of them. Afterwards the prepared model has its initial weights.
    Every step's tensors are copies, which stay in memory on the model's device.
    """
    model, last = prepared.model, max(steps)
    changing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changing |= {name for name, _ in model.named_buffers()}
    found = {}
    with tqdm(total=last, desc="retraining", unit="step", disable=not progress) as bar:
        for step in retrain(prepared, run):
            if step in steps:
                state = model.state_dict()
                found[step] = {name: state[name].clone() for name in changing & state.keys()}
            if step == last:
                break
            bar.update()
    model.load_state_dict(prepared.initial)
    return found
