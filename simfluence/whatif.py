"""What would have been learnt under an edited curriculum: the change, test example by test example.

``what_if`` is given a fitted simulator; ``ask`` fits one to a recorded run set first or reads it from a file,
as the command line does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.answer import GIVEN, WhatIf
from simfluence.curriculum import Curriculum
from simfluence.edit import Edit, Edits
from simfluence.evaluation.metrics import final_loss
from simfluence.fitted import Fitted, fitted_for
from simfluence.residual import carried
from simfluence.runs import ExampleTable, Run, RunSet
from simfluence.runs.schedule import STRETCH, as_schedule, check_rule, edited_rates, recorded_rates
from simfluence.simulators import PredictiveBands, Simulator
from simfluence.simulators.recorded import Recorded
from simfluence.trust import Trust, change_band, verdicts

Array = npt.NDArray[np.float64]

Question = Edit | Edits | Curriculum | Callable[[Curriculum], Curriculum]
"""What to change: an edit by name or several after each other, a function that edits curricula, or the edited
curriculum."""

_NOTICEABLE = 0.05
"""Less use of examples beyond that of any recorded run is not worth a word."""

Retrain = Callable[[Run, Curriculum, str], Run]
"""Trains again as the given run was trained, but on another curriculum, and returns the recording. The last
argument says what the learning rate does, "stretch" or "keep" (:class:`~simfluence.edit.Edit`)."""


def what_if(
    simulator: Simulator | Fitted,
    original: Run | Curriculum,
    edit: Question,
    initial_loss: npt.ArrayLike | None = None,
    test: ExampleTable | None = None,
    *,
    train: ExampleTable | None = None,
    schedule: str | None = None,
    learning_rate: npt.ArrayLike | None = None,
    level: float | None = 0.9,
    bands: PredictiveBands | None = None,
    widened: float = 1.0,
    retrain: Retrain | None = None,
) -> WhatIf:
    """What an edit changes: the edited curriculum and the original are simulated from the same initial
    losses, each at its own learning rates. A recorded run is taken as it was recorded, and part of what its
    simulation misses is kept under the edit (:mod:`simfluence.residual`).

    Parameters
    ----------
    simulator : a fitted one; of a :class:`~simfluence.fitted.Fitted` its bands are taken as well.
    original : a recorded run, or a curriculum with ``initial_loss`` [test].
    edit : what to change. An :class:`~simfluence.edit.Edit` takes ``train``, the table of training examples.
    test : the table of the test examples, which names them in the answer.
    schedule : what the learning rate does where the edit changes the number of steps: "stretch" (recomputed
        for the new length) or "keep" (the original's rates step by step; past its end the last one goes on).
        None is what the ``Edit`` says, by default "stretch". The simulation is given the rates that the run
        logged, or its optimizer's, where they are known.
    learning_rate : in place of these: float [step], of both curricula, or [2, step], of the original and of
        the edited one. A recorded run is then not taken as recorded, but simulated as well.
    level : of the band around every change; None for no bands. Fitted bands have a level of their own.
    bands : fitted ones; they add a band around every change, and verdicts.
    widened : how many times as wide as otherwise bands are to be (:mod:`simfluence.verified`).
    retrain : trains the recorded run ``original`` again on the edited curriculum, and so verifies the answer.

    Raises ValueError for a curriculum without initial losses, if nothing was edited, for a schedule of
    another name, for learning rates of another shape, negative or not finite, or if retraining is asked for
    without a run.
    """
    run = original if isinstance(original, Run) else None
    rule = schedule or (edit.schedule if isinstance(edit, Edit | Edits) else STRETCH)
    check_rule(rule)
    if retrain is not None and (run is None or learning_rate is not None):
        raise ValueError(
            "retrain= takes a recorded run as the original, not a curriculum alone, and its learning rates by"
            " schedule=, not by learning_rate="
        )
    if initial_loss is None:
        if run is None:
            raise ValueError("a curriculum takes initial_loss=, the losses [test] before the first step")
        initial_loss = run.initial_loss
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator, bands)
    if test is not None:
        fitted.simulator.check_test_examples(test)
    curricula, notes = _curricula(original, edit, train, test)
    if learning_rate is None:
        rates = _rates(fitted.simulator, run, curricula[1], rule)
    else:
        rule, rates = GIVEN, _given(learning_rate, curricula)
    recorded = run if rule != GIVEN else None
    answer = _simulated(fitted, recorded, curricula, np.asarray(initial_loss, np.float64), test, rates)
    if fitted.bands is not None and level is not None:
        answer = _with_bands(
            replace(answer, widened=widened), fitted.bands, fitted.simulator.recorded_, train
        )
    notes = [*fitted.simulator.notes, *_beyond(fitted.simulator, curricula, rates), *notes]
    answer = replace(answer, schedule=rule, notes=notes)
    if retrain is None or run is None:
        return answer
    retrained = retrain(run, answer.edited, rule)
    notes = [*notes, *_other_rates(rates, retrained)]
    return replace(answer, changes=verified(answer, run, retrained), notes=notes)


def _curricula(
    original: Run | Curriculum,
    edit: Question,
    train: ExampleTable | None,
    test: ExampleTable | None,
) -> tuple[list[Curriculum], list[str]]:
    """The original and the edited curriculum, and notes on the edit."""
    curriculum = original.curriculum if isinstance(original, Run) else original
    notes: list[str] = []
    if isinstance(edit, Edit | Edits):
        if train is None:
            raise ValueError("an Edit names training examples: give their table, train=runs.train")
        edited = edit.apply(original, train, test)
        whose = original.id if isinstance(original, Run) else "the run"
        if unused := edit.unused(curriculum, train):
            notes.append(f"{whose} never used {', '.join(unused)}")
    else:
        edited = edit if isinstance(edit, Curriculum) else edit(curriculum)
    if edited == curriculum:
        raise ValueError(
            "the edited curriculum is the original one: an edit that changes nothing has no answer"
        )
    return [curriculum, edited], notes


def _beyond(
    simulator: Simulator, curricula: Sequence[Curriculum], rates: tuple[Array, Array] | None
) -> list[str]:
    """Sentences on what the question asks beyond what was recorded."""
    notes = simulator.recorded_.beyond(curricula, rates) if simulator.recorded_ is not None else []
    if rates is None and len(curricula[0]) != len(curricula[1]):
        notes.append("the learning rates are not known, so the simulation is the same for either schedule")
    return notes


def _given(learning_rate: npt.ArrayLike, curricula: Sequence[Curriculum]) -> tuple[Array, Array]:
    """Given rates, of both curricula or of each, cut to their lengths."""
    steps = [len(curriculum) for curriculum in curricula]
    rates = as_schedule(learning_rate, 2, max(steps))
    return rates[0, : steps[0]], rates[1, : steps[1]]


def _rates(
    simulator: Simulator, run: Run | None, edited: Curriculum, schedule: str
) -> tuple[Array, Array] | None:
    """The learning rates of a run and of its edit; None where they, or those of the fit, are not known."""
    recorded = simulator.recorded_
    if run is None or (recorded is not None and not len(recorded.highest)):
        return None
    before, after = recorded_rates(run), edited_rates(run, len(edited), schedule)
    return None if before is None or after is None else (before, after)


def _simulated(
    fitted: Fitted,
    run: Run | None,
    curricula: Sequence[Curriculum],
    initial: Array,
    test: ExampleTable | None,
    rates: tuple[Array, Array] | None,
) -> WhatIf:
    """The answer of a simulator, about a recorded run or a curriculum alone, without bands."""
    both = None
    if rates is not None:  # after the end of the shorter curriculum nothing is read
        both = np.zeros((2, max(map(len, rates))))
        for row, own in zip(both, rates, strict=True):
            row[: len(own)] = own
    losses = fitted.simulator.simulate(curricula, initial, both)
    kept = None
    if run is not None:
        found = carried(run, curricula[1], losses[0], rates)
        for simulated, missed in zip(losses, (found.residual, found.carried), strict=True):
            simulated[: len(missed)] += missed
        kept = found.kept
    last = final_loss(losses)
    table = test or ExampleTable.numbered(len(initial))
    changes = pd.DataFrame(
        {
            "id": table.ids,
            "group": table.groups,
            "initial": initial,
            "original": last[0],
            "edited": last[1],
            "change": last[1] - last[0],
        }
    )
    before, after = curricula
    return WhatIf(before, after, losses[0], losses[1], changes, learning_rate=rates, kept=kept)


def _with_bands(
    answer: WhatIf, bands: PredictiveBands, recorded: Recorded | None, train: ExampleTable | None
) -> WhatIf:
    """The answer with bands around the changes of single test examples and around mean changes."""
    changes, values = answer.changes, answer.changes["change"].to_numpy()
    step = max(len(answer.original), len(answer.edited))  # the change is between the ends of both
    skill = float(bands.skill_[min(step, len(bands.skill_) - 1)])
    overused = recorded.overused(answer.original, answer.edited) if recorded is not None else 0.0
    far = recorded.distance(answer.edited, train.groups) if recorded is not None and train is not None else 0
    moved = np.sqrt(np.square(changes["original"] - changes["initial"]).mean())
    band = partial(
        change_band,
        skill=skill,
        level=bands.level,
        overused=overused,
        unlike=far * moved,
        widened=answer.widened,
    )
    low, high = band(values, np.sqrt(np.square(values).mean()), bands.half_width(step))
    groups = {name: np.flatnonzero(changes["group"] == name) for name in sorted(set(changes["group"]))}
    rows = {**(groups if len(groups) > 1 else {}), "all": np.arange(len(changes))}
    means = []
    for of in rows.values():
        mean, noise = values[of].mean(), bands.half_width_of_mean(of, step)
        edges = band(mean, np.sqrt(np.square(values[of]).mean()), noise)
        means.append((float(edges[0]), float(edges[1]), str(verdicts(mean, *edges))))
    reasons = _reasons(answer, len(bands.errors_), skill, overused)
    if recorded is not None and train is not None and (words := recorded.unlike(answer.edited, train.groups)):
        reasons.append(words)
    return replace(
        answer,
        changes=changes.assign(low=low, high=high, verdict=verdicts(values, low, high)),
        level=bands.level,
        means=pd.DataFrame(means, index=list(rows), columns=["low", "high", "verdict"]),
        trust=Trust(means[-1][-1], tuple(reasons)),
    )


def _reasons(answer: WhatIf, runs: int, skill: float, overused: float) -> list[str]:
    """What a verdict rests on, in words; runs : how many were left out of a fit."""
    reasons = [f"skill {skill:.2f} on {runs} recorded runs, each left out of a fit"]
    if not runs:
        reasons = [f"too few recorded runs to leave one out; skill is taken to be {skill:.2f}"]
    if answer.widened != 1:
        reasons.append(f"bands {answer.widened:.2f} times as wide, after answers that were retrained")
    if overused > _NOTICEABLE:
        reasons.append(f"{overused:.0%} of what changes is use of examples beyond that of any recorded run")
    return reasons


def _other_rates(rates: tuple[Array, Array] | None, retrained: Run) -> list[str]:
    """A sentence where retraining had other learning rates than the simulation."""
    logged = recorded_rates(retrained)
    if rates is None or logged is None or np.allclose(logged, rates[1], rtol=0.01, atol=1e-3 * max(rates[1])):
        return []
    most = np.abs(logged - rates[1]).max() / max(rates[1].max(), 1e-300)
    return [f"retraining was at other learning rates than simulated, by up to {most:.0%} of the highest"]


def ask(
    runs: RunSet,
    simulator: Simulator | Fitted | str | Path,
    edit: Question,
    *,
    run_id: str | None = None,
    train: int = 20,
    validation: int = 2,
    schedule: str | None = None,
    level: float | None = 0.9,
    widened: float = 1.0,
    retrain: Retrain | None = None,
) -> WhatIf:
    """Ask a simulator about an edit of one run of a set; by default it is fitted to the others first.

    Parameters
    ----------
    simulator : to be fitted to ``train`` and ``validation`` runs, of which the edited one is none, if there
        is another (see :meth:`RunSet.split_to_fit`); or a fitted one, or its file, which is taken as it is.
    edit : what to change. run_id : the run whose curriculum is edited; None is the last of the set.
    schedule, level, widened, retrain : see :func:`what_if`. The bands of a fitted simulator have their own
        level.

    Raises ValueError if the edit changes nothing, and RunDataError for a simulator of other examples.
    """
    run = runs[runs.position(run_id) if run_id is not None else -1]
    _curricula(run, edit, runs.train, runs.test)  # raises before the work begins
    fitted = fitted_for(runs, run, simulator, train=train, validation=validation, level=level)
    asked: dict[str, Any] = {"schedule": schedule, "level": level, "widened": widened, "retrain": retrain}
    answer = what_if(fitted, run, edit, train=runs.train, test=runs.test, **asked)
    return replace(answer, notes=[*answer.notes, *fitted.notes])


def verified(answer: WhatIf, original: Run, retrained: Run) -> pd.DataFrame:
    """The changes beside those that retraining gave: columns ``retrained`` (the losses) and ``true_change``.

    Raises ValueError if the runs did not have these curricula.
    """
    if original.curriculum != answer.original or retrained.curriculum != answer.edited:
        raise ValueError("these runs were not trained on the curricula of the question")
    return answer.changes.assign(
        retrained=retrained.loss[-1], true_change=retrained.loss[-1] - original.loss[-1]
    )
