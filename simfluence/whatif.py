"""What would have been learnt under an edited curriculum: the change, test example by test example.

``what_if`` is given a fitted simulator; ``ask`` fits one to a recorded run set first, as the command line
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from simfluence import curriculum as edits
from simfluence.curriculum import Curriculum, IntArray
from simfluence.evaluation.metrics import final_loss
from simfluence.runs import ExampleTable, Run, RunSet
from simfluence.simulators import PredictiveBands, Simulator

Array = npt.NDArray[np.float64]

EDITS: dict[str, Callable[..., Curriculum]] = {
    "remove": edits.remove,
    "keep": edits.keep,
    "repeat": edits.repeat,
    "put_before": edits.put_before,
    "shuffle": edits.shuffle,
}

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

    Raises ValueError for a curriculum without initial losses, or if retraining is asked for without a run.
    """
    run = original if isinstance(original, Run) else None
    curriculum = original.curriculum if isinstance(original, Run) else original
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
    answer = WhatIf(curriculum, edited, losses[0], losses[1], changes, bands.level if bands else None)
    if retrain is None:
        return answer
    if run is None:
        raise ValueError("retrain= takes a recorded run as the original, not a curriculum alone")
    return replace(answer, changes=verified(answer, run, retrain(run, edited)))


def ask(
    runs: RunSet,
    simulator: Simulator,
    edited_of: Callable[[Curriculum], Curriculum],
    *,
    run_id: str | None = None,
    train: int = 20,
    validation: int = 2,
    level: float | None = 0.9,
    retrain: Retrain | None = None,
) -> WhatIf:
    """Fit the simulator to the first runs of a set, and ask it about an edit of one of the others.

    Parameters
    ----------
    edited_of : the edit, a function of the run's curriculum.
    run_id : the run whose curriculum is edited; None is the last of the set.
    train, validation : how many runs the simulator is fitted to, see :meth:`RunSet.split_to_fit`.
    level : of the band around every edited loss; None for no bands. Bands take three training runs.
    retrain : see :func:`what_if`.
    """
    run = runs[runs.position(run_id) if run_id is not None else -1]
    to_fit, to_choose, notes = runs.split_to_fit(train, validation)
    fitted_to = {*to_fit.ids, *to_choose.ids}
    if run.id in fitted_to and len(fitted_to) < len(runs):
        notes.append(f"the simulator is fitted to {run.id} itself; choose a run that it has not seen")
    bands = None
    if level is not None and len(to_fit) < PredictiveBands.FEWEST_RUNS:
        notes.append("no bands, which take three runs to learn errors from")
    elif level is not None:
        bands = PredictiveBands(simulator, level).fit(to_fit, to_choose)
    fitted = simulator.fit(to_fit, to_choose) if bands is None else bands.simulator_
    assert fitted is not None
    edited = edited_of(run.curriculum)
    answer = what_if(fitted, run, edited, test=runs.test, bands=bands, retrain=retrain)
    return replace(answer, notes=notes)


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
    signs, mean changes, and the share of retrained losses within the band, where there is one."""
    predicted, true = changes["change"].to_numpy(), changes["true_change"].to_numpy()
    found = {
        "pearson": float(stats.pearsonr(predicted, true).statistic),
        "spearman": float(stats.spearmanr(predicted, true).statistic),
        "same_sign": float(np.mean(np.sign(predicted) == np.sign(true))),
        "mean_predicted": float(predicted.mean()),
        "mean_true": float(true.mean()),
    }
    if "low" in changes:
        found["in_band"] = float(changes["retrained"].between(changes["low"], changes["high"]).mean())
    return found


def edit(
    curriculum: Curriculum,
    name: str,
    train: ExampleTable,
    *,
    groups: Sequence[str] = (),
    ids: Sequence[Any] = (),
    before_groups: Sequence[str] = (),
    before_ids: Sequence[Any] = (),
    times: int | None = None,
    window: int | None = None,
    seed: int = 0,
) -> Curriculum:
    """An edit by name, of examples named by group or id (what the command line calls).

    ``before_groups`` and ``before_ids`` name what "put_before" puts the examples before; ``times`` is
    for "repeat", ``window`` for "shuffle". Raises ValueError for an unknown edit or one without
    examples.
    """
    if name not in EDITS:
        raise ValueError(f"no edit is named {name!r}; there are {', '.join(EDITS)}")
    if name == "shuffle":
        return edits.shuffle(curriculum, np.random.default_rng(seed), window=window)
    examples = _rows(train, groups, ids, name)
    if name == "repeat":
        if times is None:
            raise ValueError("repeat takes times=, how often each occurrence is to occur")
        return edits.repeat(curriculum, examples, times, rng=np.random.default_rng(seed))
    if name == "put_before":
        return edits.put_before(curriculum, examples, _rows(train, before_groups, before_ids, "before"))
    return EDITS[name](curriculum, examples)


def _rows(train: ExampleTable, groups: Sequence[str], ids: Sequence[Any], what: str) -> IntArray:
    if not groups and not ids:
        raise ValueError(f"{what}: name the training examples, by groups or by ids")
    return np.union1d(train.in_group(*groups) if groups else [], train.rows(ids)).astype(np.int64)


def describe(
    name: str,
    groups: Sequence[str] = (),
    ids: Sequence[Any] = (),
    before_groups: Sequence[str] = (),
    before_ids: Sequence[Any] = (),
    times: int | None = None,
    window: int | None = None,
    seed: int = 0,
) -> str:
    """An edit in words; arguments as for :func:`edit`. The seed is named where it matters and is not 0."""
    words = [name, *(str(value) for values in (groups, ids, before_groups, before_ids) for value in values)]
    words += [f"{key} {value}" for key, value in (("times", times), ("window", window)) if value is not None]
    if seed and name in ("repeat", "shuffle"):
        words.append(f"seed {seed}")
    return " ".join(words)
