"""A simulator as it was fitted to some runs of a set, with its bands, in memory and in a file.

``simfluence fit`` writes such a file; ``whatif`` and ``evaluate`` read it. :func:`load_simulator` reads the
simulator alone from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import Run, RunSet
from simfluence.simulators import PredictiveBands, Simulator, load_simulator
from simfluence.simulators import state as states
from simfluence.simulators.base import Array


@dataclass(frozen=True)
class Fitted:
    """A fitted simulator, and what should be known of its fit.

    simulator : the fitted one. bands : around its predictions; None for none.
    runs : name → fingerprint of the runs that it was fitted to, or whose errors chose hyperparameters; None
        if they are not known.
    notes : what was done otherwise than asked for, one sentence each.
    """

    simulator: Simulator
    bands: PredictiveBands | None = None
    runs: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.runs is None:
            return f"the simulator {self.simulator.name} was fitted to runs that its file does not name"
        names = list(self.runs)
        which = ", ".join(names)
        if len(names) > 3:
            which = f"{names[0]}, {names[1]}, …, {names[-1]} ({len(names)} runs)"
        return f"the simulator {self.simulator.name} was fitted to {which}"

    def has_seen(self, run: Run) -> bool:
        """Whether it was fitted to this run; False if its runs are not known."""
        return run.fingerprint in (self.runs or {}).values()

    def unchanged(self, test: RunSet) -> Simulator:
        """The simulator as one that ``fit`` leaves as it is, for :func:`simfluence.evaluate`.

        Raises ValueError if it was fitted to one of the test runs.
        """
        if seen := [run.id for run in test if self.has_seen(run)]:
            raise ValueError(
                f"{self}, of which {seen[0]} is one that it is to be tested on: fit it to fewer runs, or test"
                " it on others"
            )
        return _Unchanged(self.simulator)

    def save(self, path: str | Path) -> None:
        """Write all but the notes to one safetensors file."""
        bands = self.bands and {name: getattr(self.bands, name) for name in ("level", *self.bands.fitted)}
        states.write(path, {**self.simulator.state(), "fit": {"runs": self.runs, "bands": bands}})

    @classmethod
    def load(cls, path: str | Path) -> Fitted:
        """What ``save`` wrote, or a simulator's own ``save``. Raises RunDataError for any other file."""
        if not Path(path).is_file():
            raise RunDataError(f"there is no file {path}")
        simulator, about = load_simulator(path), states.read(path).get("fit") or {}
        try:
            bands = None
            if found := about.get("bands"):
                bands = PredictiveBands(simulator, found["level"])
                bands.simulator_ = simulator
                for name in bands.fitted:
                    setattr(bands, name, found[name])
            return cls(simulator, bands, about.get("runs"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunDataError(f"{path} does not hold a whole simulator: {error!r}") from error


def fit(
    runs: RunSet,
    simulator: Simulator,
    *,
    train: int = 20,
    validation: int = 2,
    level: float | None = 0.9,
    held_out: str | None = None,
) -> Fitted:
    """Fit a simulator, and bands around its predictions, to the first runs of a set.

    Parameters
    ----------
    train, validation, held_out : how many runs, and which one not: see :meth:`RunSet.split_to_fit`.
    level : of the bands; None for no bands.
    """
    to_fit, to_choose, notes = runs.split_to_fit(train, validation, held_out=held_out)
    seen = {run.id: run.fingerprint for run in (*to_fit, *to_choose)}
    if level is not None:
        bands = PredictiveBands(simulator, level).fit(to_fit, to_choose)
        assert bands.simulator_ is not None
        return Fitted(bands.simulator_, bands, seen, tuple(notes))
    return Fitted(simulator.fit(to_fit, to_choose), None, seen, tuple(notes))


def fitted_for(
    runs: RunSet,
    run: Run,
    simulator: Simulator | Fitted | str | Path,
    *,
    train: int = 20,
    validation: int = 2,
    level: float | None = 0.9,
) -> Fitted:
    """The fitted simulator to ask about one run of a set: fitted to other runs, or a fitted one as it is.

    simulator : to be fitted to ``train`` and ``validation`` runs, of which the run is none, if there is
        another (see :meth:`RunSet.split_to_fit`); or a fitted one, or its file, whose notes then say how it
        differs from one that would be fitted for this run.

    Raises RunDataError for a simulator of other examples.
    """
    if isinstance(simulator, Simulator):
        return fit(runs, simulator, train=train, validation=validation, level=level, held_out=run.id)
    fitted = simulator if isinstance(simulator, Fitted) else Fitted.load(simulator)
    fitted.simulator.check_examples(runs)
    return replace(fitted, notes=(str(fitted), *_differences(fitted, run, level)))


def _differences(fitted: Fitted, run: Run, level: float | None) -> list[str]:
    """Sentences on how a fitted simulator differs from one that would be fitted for this question."""
    notes = []
    if fitted.has_seen(run):
        notes.append(f"it was fitted to {run.id} itself; choose a run that it has not seen")
    if level is not None and fitted.bands is None:
        notes.append("no bands, since it was fitted without")
    elif level is not None and fitted.bands is not None and fitted.bands.level != level:
        notes.append(f"its bands are of level {fitted.bands.level}, not {level}")
    return notes


class _Unchanged(Simulator):
    """A fitted simulator that ``fit`` leaves as it is."""

    name: ClassVar[str] = "unchanged"

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.examples_, self.recorded_ = simulator.examples_, simulator.recorded_

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self.simulator.check_examples(train)

    def _check_shares(self, curricula: Sequence[Curriculum]) -> None:
        self.simulator._check_shares(curricula)

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        return self.simulator.simulate(curricula, initial_loss, learning_rate)
