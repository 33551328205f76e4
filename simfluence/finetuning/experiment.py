"""A set of recorded runs from one configuration: the same model and task, a curriculum a run.

Runs are independent of each other and are spread over processes; what is complete is skipped, and a run
that was cut off continues from its last checkpoint to the same bits (on GPUs: nearly). To continue an
interrupted recording, make the same call again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

from simfluence import outputs, renamed
from simfluence.curriculum import Curriculum
from simfluence.devices import chosen_device
from simfluence.errors import RecordingError, RunDataError, RunExistsError
from simfluence.finetuning.designs import draw_curriculum
from simfluence.finetuning.loop import train
from simfluence.finetuning.metrics import recorded_loss
from simfluence.finetuning.models import Model, load_model
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.tasks import Task, load_task
from simfluence.finetuning.tunings import apply_tuning
from simfluence.recording import RunRecorder, schedule
from simfluence.recording.budget import Budget
from simfluence.recording.subset import Rotation
from simfluence.runs import storage

Config = Mapping[str, Any]
"""An experiment: the groups ``task``, ``model``, ``tuning`` and ``run`` of conf/, as plain values."""


SETTINGS = ("model", "tuning", "run.optimizer")
"""What all runs of a set have in common, beside the task."""

DRAWN_BY = ("run.design", "run.seed")
"""What a run's curriculum follows from, beside its number."""

RUN_OPTIONS = (
    *("seed", "design", "optimizer", "eval_batch_size", "evaluate_within", "text", "metrics"),
    "evaluate_subset",
    *("keep_weights", "resume_every"),
)

RESUME_EVERY = 25
"""Steps between the checkpoints from which an interrupted run can be resumed."""


@dataclass(frozen=True)
class Prepared:
    """What all runs of a set share in a process: the task, the model and its initial weights."""

    task: Task
    model: Model
    initial: dict[str, torch.Tensor]


def record_runs(
    config: Config,
    path: str | Path,
    *,
    count: int,
    processes: int | None = 1,
    numbers: Sequence[int] | None = None,
    curricula: Mapping[str, Curriculum] | None = None,
    device: str | None = None,
    mixed: bool = False,
    progress: bool = True,
) -> list[str]:
    """Record the runs of an experiment that are not complete yet.

    Parameters
    ----------
    config : task, model, tuning and run, as in conf/.
    path : the run set's folder.
    count : runs to draw by the configuration's design: run-000, run-001, …, seeded by their number.
    processes : how many at a time, torch with its share of the threads in each; None: one a core, which is
        faster than threads (analysis/benchmarks/processes.md), or one on a GPU.
    numbers : record only the runs of these numbers (other machines record the others).
    curricula : run name → curriculum, in place of ``count`` drawn ones.
    device : where to train, as torch names it; None is the GPU if torch finds one.
    mixed : whether the set may hold runs of other settings (model, tuning, optimizer; of runs that are there
        already, also the design and the seed).

    Returns
    -------
    The names of the runs recorded now; [] if all were complete.

    Raises
    ------
    RecordingError : some runs failed (named, with their errors; the others are recorded), or the set holds
        runs of other examples or settings.
    ValueError : there is no such device, run, metric or option, or an option in ``run`` has a new name.
        Nothing is written then.
    """
    where, path = chosen_device(device), Path(path)
    outputs.check_folder(path)
    for name, value in (("count", count), ("processes", processes)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    task = load_task(**config["task"])
    drawn = curricula is None
    if curricula is None:
        curricula = planned_curricula(config, task, count)
    if numbers is not None:
        if outside := [number for number in numbers if not 0 <= number < len(curricula)]:
            raise ValueError(f"there is no run number {outside[0]}: count is {len(curricula)}")
        names = list(curricula)
        curricula = {names[number]: curricula[names[number]] for number in numbers}
    check_run_options(config["run"], curricula)
    if (path / storage.EXAMPLES).exists():
        _recorder(path, task, config)  # raises for a set of other examples
        check_settings(path, config, [*curricula], drawn=drawn, mixed=mixed)
    complete = {name for name in curricula if _status(path, name) == "complete"}
    pending = {name: curriculum for name, curriculum in curricula.items() if name not in complete}
    if not pending:
        return []
    done = len(curricula) - len(pending)
    failures = _record_all(config, path, pending, processes, where, done=done, progress=progress)
    if failures:
        raise RecordingError(
            f"{len(failures)} of {len(pending)} runs failed (the others are recorded; the same command"
            " records these again): " + "; ".join(f"{name}: {error}" for name, error in failures.items())
        )
    return list(pending)


def _record_all(
    config: Config,
    path: Path,
    curricula: Mapping[str, Curriculum],
    processes: int | None,
    where: torch.device,
    *,
    done: int,
    progress: bool,
) -> dict[str, str]:
    """Record these runs, after ``done`` others. Returns run name → what went wrong, of those that failed."""
    processes = processes or (cpu_count() if where.type == "cpu" else 1)
    threads = max(1, torch.get_num_threads() // processes)
    jobs = (
        delayed(_record_one)(json.dumps(config), str(path), name, curriculum, threads, str(where))
        for name, curriculum in curricula.items()
    )
    outcomes: Iterator[tuple[str, str | None]] = Parallel(n_jobs=processes, return_as="generator_unordered")(
        jobs
    )
    failures = {}
    with tqdm(
        total=done + len(curricula), initial=done, desc="recording", unit="run", disable=not progress
    ) as bar:
        for name, error in outcomes:
            if error is not None:
                failures[name] = error
            bar.update()
    return failures


def check_run_options(options: Mapping[str, Any], curricula: Mapping[str, Curriculum]) -> None:
    """Raises ValueError or TypeError if runs with these curricula cannot have such ``run`` options."""
    renamed.check(options, renamed.RECORDING, ValueError)
    if unknown := sorted(set(options) - set(RUN_OPTIONS)):
        raise ValueError(f"run has no option {unknown[0]!r}; it has {', '.join(RUN_OPTIONS)}")
    recorded_loss(options.get("metrics"))
    make_optimizer([torch.nn.Parameter(torch.zeros(1))], 1, **options["optimizer"])
    for curriculum in curricula.values():
        schedule.weights(options.get("keep_weights"), len(curriculum))
        if (share := options.get("evaluate_within")) is not None:
            Budget(share, len(curriculum))
        if (size := options.get("evaluate_subset")) is not None:
            Rotation(size, 1, len(curriculum))


def check_settings(path: Path, config: Config, names: Sequence[str], *, drawn: bool, mixed: bool) -> None:
    """Raises RecordingError if the set holds runs that were recorded with other settings (``SETTINGS``), or
    runs of these names whose curricula were drawn otherwise (``DRAWN_BY``).

    Compared is what both say: a setting that one of them leaves out may be the same default.

    drawn : whether curricula follow from the configuration. mixed : compare only with runs that would be
        resumed.
    """
    ours = _flat(json.loads(json.dumps(config)))
    for run_id in storage.run_ids(path):
        resumed = run_id in names and _status(path, run_id) != "complete"
        if mixed and not resumed:
            continue
        try:
            theirs = _flat(storage.read_manifest(path / run_id).get("config") or {})
        except RunDataError:  # damaged: loading the set says so
            continue
        compared = (*SETTINGS, *(DRAWN_BY if drawn and run_id in names else ()))
        for key in (key for key in ours if key in theirs and key.startswith(compared)):
            if ours[key] != theirs[key]:
                raise RecordingError(
                    f"{path} holds {run_id}, which was recorded with {key}={theirs[key]}, not {ours[key]}:"
                    " record into another folder"
                    + (", or delete this run" if resumed else ", or with mixed=true into this one")
                )


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"run.optimizer.lr": 5e-5, …} of nested mappings."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {
        key: value
        for name, inner in config.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _status(path: Path, name: str) -> str | None:
    """How a run of this name stands; None if there is none."""
    folder = path / storage.check_run_id(name)
    return storage.status(folder) if (folder / storage.MANIFEST).exists() else None


def planned_curricula(config: Config, task: Task, count: int) -> dict[str, Curriculum]:
    """Run name → the curriculum that the design draws for it."""
    groups = [example.group for example in task.train]
    design, first = dict(config["run"]["design"]), int(config["run"]["seed"])
    return {
        f"run-{number:03d}": draw_curriculum(seed=first + number, groups=groups, number=number, **design)
        for number in range(count)
    }


def prepare(config: Config, device: str | None = None) -> Prepared:
    """The task, and the model before training with its tuning applied. The last result is cached.

    device : where the model lies, as torch names it; None is the GPU if torch finds one.
    """
    keys = ("task", "model", "tuning")
    described = json.dumps({key: config[key] for key in keys}, sort_keys=True)
    return _prepare(described, str(chosen_device(device)))


@lru_cache(maxsize=1)
def _prepare(config_json: str, device: str) -> Prepared:
    config = json.loads(config_json)
    task = load_task(**config["task"])
    model = load_model(task=task, **config["model"]).to(device)
    apply_tuning(model, **config["tuning"])
    return Prepared(task, model, copy.deepcopy(model.state_dict()))


def _record_one(
    config_json: str, path: str, name: str, curriculum: Curriculum, threads: int, device: str
) -> tuple[str, str | None]:
    """Record one run; (its name, what went wrong or None)."""
    config = json.loads(config_json)
    with _threads(threads):
        prepared = prepare(config, device)
        task, model = prepared.task, prepared.model
        model.load_state_dict(prepared.initial)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer, schedule = make_optimizer(trained, len(curriculum), **config["run"]["optimizer"])
        torch.manual_seed(int(config["run"]["seed"]))  # dropout, where there is any
        run = _recorder(path, task, config, model)
        try:
            with run.run(
                name,
                model=model,
                loss=recorded_loss(config["run"].get("metrics")),
                optimizer=optimizer,
                config=config,
                seed=int(config["run"]["seed"]),
                resume=True,
                total_steps=len(curriculum),
                evaluate_within=config["run"].get("evaluate_within"),
                evaluate_subset=config["run"].get("evaluate_subset"),
                keep_weights=config["run"].get("keep_weights"),
                resume_every=config["run"].get("resume_every", RESUME_EVERY),
                state={"model": _Trained(model), "optimizer": optimizer, "schedule": schedule},
            ) as active:
                train(model, task.train, curriculum, optimizer, active, schedule)
        except (RuntimeError, ValueError, OSError, ArithmeticError) as error:
            if isinstance(error, RunExistsError):
                return name, None if run.status(name) == "complete" else str(error)
            return name, f"{type(error).__name__}: {error}"
    return name, None


class _Trained:
    """The trained parameters of a model: all that differs from what every run begins with."""

    def __init__(self, model: Model) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._buffers = dict(model.named_buffers())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in (self._parameters | self._buffers).items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, value in (self._parameters | self._buffers).items():
            value.copy_(state[name])


def _recorder(path: str | Path, task: Task, config: Config, model: Model | None = None) -> RunRecorder:
    return RunRecorder(
        path,
        train=task.train,
        test=task.test,
        batch_size=int(config["run"].get("eval_batch_size", 10)),
        length=model.length if model is not None else None,
        text=bool(config["run"].get("text", False)),
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
