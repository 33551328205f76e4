"""The linearised model of recorded runs: at the weights before training, or along runs trained again."""

from __future__ import annotations

from simfluence.attribution import linearise
from simfluence.finetuning.experiment import prepare
from simfluence.finetuning.retrain import check_task, recorded_device, retrain
from simfluence.runs import RunSet
from simfluence.simulators import Tangent


def linearise_runs(
    runs: RunSet,
    along: int = 0,
    *,
    coordinates: int = 20_000,
    seed: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> Tangent:
    """Jacobians of all examples for runs that ``record_runs`` made, at the weights before training.

    Parameters
    ----------
    along : 0, or a number of runs, at least 2: the first so many runs are trained again, and Jacobians are
        taken along them.
    device : where the model lies, as torch names it; None is the kind of device that the first run was
        trained on.

    Raises ValueError for one run, or more than there are; RunDataError if the task no longer has the examples
    of the runs; what ``prepare`` raises if the runs' task or
    model is not found.
    """
    if along == 1 or not 0 <= along <= len(runs):
        raise ValueError(f"along must be 0, or from 2 to the {len(runs)} runs there are; got {along}")
    prepared = prepare(runs[0].config, device or str(recorded_device(runs[0])))
    check_task(prepared.task, runs.train, runs.test)
    prepared.model.load_state_dict(prepared.initial)
    first = list(runs)[:along]
    return linearise(
        prepared.model,
        prepared.model.losses,
        prepared.task.train,
        prepared.task.test,
        coordinates=coordinates,
        seed=seed,
        paths={run.id: retrain(prepared, run) for run in first},
        test_losses={run.id: run.loss for run in first},
        progress=progress,
    )
