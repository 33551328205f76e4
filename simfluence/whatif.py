"""What would have been learnt under an edited curriculum: the change, test example by test example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from simfluence import curriculum as edits
from simfluence.curriculum import Curriculum, IntArray
from simfluence.evaluation.metrics import final_loss
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import PredictiveBands, Simulator

Array = npt.NDArray[np.float64]

EDITS: dict[str, Callable[..., Curriculum]] = {
    "remove": edits.remove,
    "keep": edits.keep,
    "repeat": edits.repeat,
    "put_before": edits.put_before,
    "shuffle": edits.shuffle,
}


@dataclass(frozen=True)
class WhatIf:
    """A predicted answer.

    original, edited : the two curricula. before, after : simulated losses under them, [step + 1, test]
    (NaN after the end of the shorter).
    changes : one row a test example: id, group, initial, original, edited, change; the losses are
        those after the last step, and change = edited − original: negative means learnt better.
    """

    original: Curriculum
    edited: Curriculum
    before: Array
    after: Array
    changes: pd.DataFrame


def what_if(
    simulator: Simulator,
    original: Curriculum,
    edited: Curriculum,
    initial_loss: npt.ArrayLike,
    test: ExampleTable | None = None,
) -> WhatIf:
    """Simulate both curricula from the same initial losses [test]; ``test`` names the test examples."""
    initial = np.asarray(initial_loss, np.float64)
    losses = simulator.simulate([original, edited], initial)
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
    return WhatIf(original, edited, losses[0], losses[1], changes)


def with_band(answer: WhatIf, bands: PredictiveBands, initial_loss: npt.ArrayLike) -> WhatIf:
    """The same answer with a band around each edited loss: columns ``low`` and ``high``.

    The band is calibrated on runs like the training runs; of an edit unlike all of them it promises nothing.
    """
    low, high = (final_loss(edge)[0] for edge in bands.predict([answer.edited], np.asarray(initial_loss)))
    return replace(answer, changes=answer.changes.assign(low=low, high=high))


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
