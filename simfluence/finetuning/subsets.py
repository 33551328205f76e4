"""Train the same experiment on many subsets of its training examples, and keep the final test losses alone.

A seed is an order of all training examples, a new one every pass. A subset is trained on in that order with
the left-out examples dropped and the batches filled up, so that two subsets with the same seed differ by
what was left out as little as can be.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.evaluation.standards import SubsetBank, random_subsets
from simfluence.finetuning.experiment import Config, Prepared, prepare
from simfluence.finetuning.loop import train
from simfluence.finetuning.optimizers import make_optimizer
from simfluence.finetuning.retrain import recorded_config
from simfluence.runs import ExampleTable, RunSet
from simfluence.runs.tables import TableFingerprints


def subset_curriculum(kept: npt.NDArray[np.bool_], seed: int, *, epochs: int, batch_size: int) -> Curriculum:
    """The examples that are kept, in the order of a seed, ``epochs`` times; an incomplete last batch is
    dropped.

    kept : bool [train].

    Raises ValueError if they do not fill a batch.
    """
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(kept)) for _ in range(epochs)]
    stream = np.concatenate([order[kept[order]] for order in orders])
    steps = len(stream) // batch_size
    if steps == 0:
        raise ValueError(f"{len(stream)} examples do not fill a batch of {batch_size}")
    return Curriculum.from_batches(stream[: steps * batch_size].reshape(steps, batch_size), len(kept))


@dataclass(frozen=True)
class Outcome:
    """What a training came to: losses float [test], and whether the answers were right, bool [test]."""

    losses: npt.NDArray[np.float64]
    right: npt.NDArray[np.bool_]


def train_on_subset(
    prepared: Prepared,
    options: Mapping[str, Any],
    kept: npt.NDArray[np.bool_],
    seed: int,
    run: Any = None,
) -> torch.optim.Optimizer:
    """Train the prepared model, from its initial weights, on a subset. The model keeps the trained weights.

    options : the experiment's ``run``: its optimizer, and of its design the number of passes (``epochs``)
        and the size of a batch. kept : bool [train]. run : what every step is reported to, as
        :func:`.loop.train` does.

    Returns
    -------
    The optimizer, with its state after the last step.
    """
    model, design = prepared.model, options["design"]
    model.load_state_dict(prepared.initial)
    curriculum = subset_curriculum(kept, seed, epochs=design["epochs"], batch_size=design["batch_size"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = make_optimizer(trained, len(curriculum), **options["optimizer"])
    torch.manual_seed(seed)  # dropout, where there is any
    train(model, prepared.task.train, curriculum, optimizer, run, schedule)
    return optimizer


@torch.no_grad()
def outcome(prepared: Prepared, batch_size: int = 20) -> Outcome:
    """The losses and answers of the test examples at the model's present weights, in eval mode."""
    model, test = prepared.model, prepared.task.test
    model.eval()
    found = [model.metrics(test[start : start + batch_size]) for start in range(0, len(test), batch_size)]
    losses, right = (torch.cat([part[name] for part in found]).cpu() for name in ("loss", "accuracy"))
    return Outcome(losses.double().numpy(), right.numpy() > 0)


def retrain_on_subset(
    prepared: Prepared, options: Mapping[str, Any], kept: npt.NDArray[np.bool_], seed: int
) -> Outcome:
    """What training on a subset comes to: :func:`train_on_subset`, then :func:`outcome`."""
    train_on_subset(prepared, options, kept, seed)
    return outcome(prepared)


def new_bank(config: Config, kept: npt.NDArray[np.bool_], seeds: tuple[int, ...]) -> SubsetBank:
    """The bank of an experiment's subsets, of which nothing is trained yet.

    kept : bool [subset, train].

    Raises ValueError if the task has another number of training examples.
    """
    prepared = prepare(config)
    task, run = prepared.task, config["run"]
    if kept.shape[1] != len(task.train):
        raise ValueError(f"kept is over {kept.shape[1]} examples, the task has {len(task.train)}")
    trained = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
    return SubsetBank.empty(
        kept,
        seeds,
        len(task.test),
        optimizer=f"{run['optimizer']['name']} at {run['optimizer']['lr']:g}, batch"
        f" {run['design']['batch_size']}, {run['design']['epochs']} passes",
        model=f"{config['model']['name']}, {config['tuning']['name'].replace('_', ' ')}"
        f" ({trained / 1e6:.1f}M trained)",
        task=task.name,
        tables=TableFingerprints.of(ExampleTable.of(task.train), ExampleTable.of(task.test)),
    )


def train_bank(
    config: Config,
    kept: npt.NDArray[np.bool_],
    seeds: tuple[int, ...],
    file: str | Path,
    *,
    device: str | None = None,
    progress: bool = True,
    at_most: int | None = None,
) -> SubsetBank:
    """Retrain all subsets with all seeds, seed by seed; what the file holds already is not trained again.

    Parameters
    ----------
    config : task, model, tuning and run, as in conf/.
    kept : bool [subset, train]. seeds : of the order of examples.
    file : the bank's file, written after every training: an interrupted call goes on where it was.
    at_most : the number of trainings in this call; the rest is left for another. None: all.

    Raises
    ------
    RunDataError : the file holds other subsets, seeds, examples or settings.
    """
    bank = new_bank(config, kept, seeds)
    if Path(file).exists():
        bank = _same(SubsetBank.load(file), bank, file)
    prepared = prepare(config, device)
    missing = [(subset, row) for row in range(len(seeds)) for subset in np.flatnonzero(~bank.trained[:, row])]
    for subset, row in tqdm(missing[:at_most], desc=Path(file).stem, unit="training", disable=not progress):
        found = retrain_on_subset(prepared, config["run"], bank.kept[subset], bank.seeds[row])
        bank.losses[subset, row], bank.right[subset, row] = found.losses, found.right
        bank.save(file)
    return bank


def banks_beside(path: str | Path) -> list[Path]:
    """The files of subset banks that lie beside a run set."""
    return sorted(Path(path).glob("subsets-*.parquet"))


def retrain_recorded(
    path: str | Path, runs: RunSet, count: int, fraction: float, seeds: int, device: str | None = None
) -> Path:
    """A bank of random subsets of a recorded set's experiment, beside the set; returns its file.

    Says beforehand, from one training, how long the others take, and what memory weights, gradients and the
    optimizer need. An
    interrupted call goes on where it was.

    count : of subsets. fraction : the share of the training examples that each keeps. seeds : of each.

    Raises RunDataError for runs that `simfluence record` did not make.
    """
    if not runs[0].config:
        raise RunDataError(f"{path} was not recorded by `simfluence record`: its model is not known")
    config = recorded_config(runs[0])
    kept = random_subsets(len(runs.train), fraction, count)
    file = Path(path) / f"subsets-{fraction:.0%}.parquet".replace("%", "")
    numbers = tuple(range(seeds))
    start = time.perf_counter()
    bank = train_bank(config, kept, numbers, file, device=device, progress=False, at_most=1)
    seconds, left = time.perf_counter() - start, int((~bank.trained).sum())
    parameters = list(prepare(config, device).model.parameters())
    held = sum(one.numel() * (4 if one.requires_grad else 1) for one in parameters)  # and Adam's averages
    said = f"{left} trainings are left, about {left * seconds / 60:.0f} minutes"
    print(f"{said}; {4e-9 * held:.1f} GB for weights, gradients and the optimizer's averages", flush=True)
    train_bank(config, kept, numbers, file, device=device)
    return file


def _same(found: SubsetBank, asked: SubsetBank, file: str | Path) -> SubsetBank:
    for name in ("optimizer", "model", "task", "seeds", "tables"):
        theirs, ours = getattr(found, name), getattr(asked, name)
        if theirs != ours:
            raise RunDataError(f"{file} was trained with {name} {theirs}, not {ours}: choose another file")
    if not np.array_equal(found.kept, asked.kept):
        raise RunDataError(f"{file} holds other subsets than those asked for: choose another file")
    return found
