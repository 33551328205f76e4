"""What would have been learnt under an edited curriculum: the change, test example by test example.

``what_if`` is given a fitted simulator; ``ask`` fits one to a recorded run set first or reads it from a file,
as the command line does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from simfluence.curriculum import Curriculum
from simfluence.edit import Edit
from simfluence.evaluation.metrics import final_loss
from simfluence.fitted import Fitted, fit
from simfluence.runs import ExampleTable, Run, RunSet
from simfluence.simulators import PredictiveBands, Simulator

Array = npt.NDArray[np.float64]

Retrain = Callable[[Run, Curriculum], Run]
"""Trains again as the given run was trained, but on another curriculum, and returns the recording."""


@dataclass(frozen=True)
class WhatIf:
    """A predicted answer; ``print`` shows it as a table.

    original, edited : the two curricula. before, after : simulated losses under them, [step + 1, test]
    (NaN after the end of the shorter).
    changes : one row a test example: id, group, initial, original, edited, change; the losses are those after
        the last step, and change = edited − original: negative means learnt better. With bands also low and
        high, the band around the edited loss; after retraining also retrained (the loss) and true_change.
    level : of the band; None without one.
    notes : what should be known of how the answer was made, one sentence each.
    """

    original: Curriculum
    edited: Curriculum
    before: Array
    after: Array
    changes: pd.DataFrame
    level: float | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [by_group(self.changes).to_markdown(floatfmt=".4f")]
        if "true_change" in self.changes:
            found = agreement(self.changes)
            said = (
                f"against retraining, over {len(self.changes)} test examples: Pearson {found['pearson']:.2f},"
                f" Spearman {found['spearman']:.2f}, same sign {found['same_sign']:.0%}"
            )
            if "in_band" in found and self.level is not None:
                said += f", {found['in_band']:.0%} within the {self.level:.0%} band"
            lines += ["", said]
        return "\n".join(lines)


def what_if(
    simulator: Simulator,
    original: Run | Curriculum,
    edited: Curriculum,
    initial_loss: npt.ArrayLike | None = None,
    test: ExampleTable | None = None,
    *,
    learning_rate: npt.ArrayLike | None = None,
    bands: PredictiveBands | None = None,
    retrain: Retrain | None = None,
) -> WhatIf:
    """Simulate both curricula from the same initial losses.

    Parameters
    ----------
    original : a recorded run, or a curriculum with ``initial_loss`` [test].
    test : the table of the test examples, which names them in the answer.
    learning_rate : float [step], of both curricula; None is the mean schedule of the training runs.
    bands : fitted ones; they add a band around every edited loss. It is calibrated on runs like the training
        runs; of an edit unlike all of them it promises nothing.
    retrain : trains the recorded run ``original`` again on the edited curriculum, and so verifies the answer.

    Raises ValueError for a curriculum without initial losses, if nothing was edited, or if retraining is
    asked for without a run.
    """
    run = original if isinstance(original, Run) else None
    curriculum = original.curriculum if isinstance(original, Run) else original
    if edited == curriculum:
        raise ValueError(
            "the edited curriculum is the original one: an edit that changes nothing has no answer"
        )
    if initial_loss is None:
        if run is None:
            raise ValueError("a curriculum takes initial_loss=, the losses [test] before the first step")
        initial_loss = run.initial_loss
    if test is not None:
        simulator.check_test_examples(test)
    initial = np.asarray(initial_loss, np.float64)
    losses = simulator.simulate([curriculum, edited], initial, learning_rate)
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
    if bands is not None:
        low, high = (final_loss(edge)[0] for edge in bands.predict([edited], initial, learning_rate))
        changes = changes.assign(low=low, high=high)
    level, notes = bands.level if bands else None, simulator.notes
    answer = WhatIf(curriculum, edited, losses[0], losses[1], changes, level, notes)
    if retrain is None:
        return answer
    if run is None:
        raise ValueError("retrain= takes a recorded run as the original, not a curriculum alone")
    return replace(answer, changes=verified(answer, run, retrain(run, edited)))


def ask(
    runs: RunSet,
    simulator: Simulator | Fitted | str | Path,
    edit: Edit | Callable[[Curriculum], Curriculum],
    *,
    run_id: str | None = None,
    train: int = 20,
    validation: int = 2,
    level: float | None = 0.9,
    retrain: Retrain | None = None,
) -> WhatIf:
    """Ask a simulator about an edit of one run of a set; by default it is fitted to the others first.

    Parameters
    ----------
    simulator : to be fitted to ``train`` and ``validation`` runs, of which the edited one is none, if there
        is another (see :meth:`RunSet.split_to_fit`); or a fitted one, or its file, which is taken as it is.
    edit : what to change, or a function that changes a curriculum.
    run_id : the run whose curriculum is edited; None is the last of the set.
    level : of the band around every edited loss; None for no bands. Bands take three training runs. Those of
        a fitted simulator have their own level.
    retrain : see :func:`what_if`.

    Raises ValueError if the edit changes nothing, and RunDataError for a simulator of other examples.
    """
    run = runs[runs.position(run_id) if run_id is not None else -1]
    edited = edit.apply(run, runs.train) if isinstance(edit, Edit) else edit(run.curriculum)
    if isinstance(simulator, Simulator):
        options = {"train": train, "validation": validation}
        fitted = fit(runs, simulator, **options, level=level, held_out=run.id)
        notes = list(fitted.notes)
    else:
        fitted = simulator if isinstance(simulator, Fitted) else Fitted.load(simulator)
        notes = [str(fitted), *_differences(fitted, run, level)]
    fitted.simulator.check_examples(runs)
    if isinstance(edit, Edit) and (unused := edit.unused(run.curriculum, runs.train)):
        notes.append(f"{run.id} never used {', '.join(unused)}")
    bands = fitted.bands if level is not None else None
    answer = what_if(fitted.simulator, run, edited, test=runs.test, bands=bands, retrain=retrain)
    return replace(answer, notes=[*answer.notes, *notes])


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


def verified(answer: WhatIf, original: Run, retrained: Run) -> pd.DataFrame:
    """The changes beside those that retraining gave: columns ``retrained`` (the losses) and ``true_change``.

    Raises ValueError if the runs did not have these curricula.
    """
    if original.curriculum != answer.original or retrained.curriculum != answer.edited:
        raise ValueError("these runs were not trained on the curricula of the question")
    return answer.changes.assign(
        retrained=retrained.loss[-1], true_change=retrained.loss[-1] - original.loss[-1]
    )


def by_group(changes: pd.DataFrame) -> pd.DataFrame:
    """Mean losses and changes of every group of test examples, and of all of them."""
    columns = [column for column in changes.columns if column not in ("id", "group", "low", "high")]
    everything = changes[columns].mean().to_frame("all").T.assign(examples=len(changes))
    if len(set(changes["group"])) < 2:
        return everything
    groups = changes.groupby("group")[columns].mean()
    return pd.concat([groups.assign(examples=changes["group"].value_counts()), everything])


def agreement(changes: pd.DataFrame) -> dict[str, float]:
    """How well predicted changes agree with true ones: correlations over test examples, share of right
    signs, mean changes, and the share of retrained losses within the band, where there is one.

    Correlations are NaN where all predicted or all true changes are the same."""
    predicted, true = changes["change"].to_numpy(), changes["true_change"].to_numpy()
    differ = min(np.ptp(predicted), np.ptp(true)) > 0
    found = {
        "pearson": float(stats.pearsonr(predicted, true).statistic) if differ else np.nan,
        "spearman": float(stats.spearmanr(predicted, true).statistic) if differ else np.nan,
        "same_sign": float(np.mean(np.sign(predicted) == np.sign(true))),
        "mean_predicted": float(predicted.mean()),
        "mean_true": float(true.mean()),
    }
    if "low" in changes:
        found["in_band"] = float(changes["retrained"].between(changes["low"], changes["high"]).mean())
    return found
