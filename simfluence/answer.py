"""The answer to a what-if: changes test example by test example, with their bands, verdict and notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum
from simfluence.runs.schedule import KEEP, STRETCH
from simfluence.trust import Trust

Array = npt.NDArray[np.float64]

GIVEN = "given"
"""The schedule of an answer whose learning rates were given as numbers."""


@dataclass(frozen=True)
class WhatIf:
    """A predicted answer; ``print`` shows it as a table.

    original, edited : the two curricula. before, after : losses under them, [step + 1, test] (NaN after the
    end of the shorter): of a recorded run the recorded ones before, and after the simulated ones with what
    is kept of the run's residual (:mod:`simfluence.residual`); of a curriculum alone both simulated.
    changes : one row a test example: id, group, initial, original, edited, change; the losses are those after
        the last step, and change = edited − original: negative means learnt better. With bands also low and
        high, the band around the change (:mod:`simfluence.trust`), and its verdict; after retraining also
        retrained (the loss) and true_change.
    level : of the bands; None without.
    means : with bands, low, high and verdict of the mean change of every group of test examples, and of all.
    trust : the verdict on the mean change of all, and what it rests on.
    notes : what should be known of how the answer was made, one sentence each.
    schedule : what the learning rate does under the edited curriculum: "stretch", "keep" or "given".
    learning_rate : the rates that the simulation was given, [step] of the original and of the edited
        curriculum; None where they are not known.
    widened : how many times as wide as otherwise the bands are, after answers that were retrained before.
    kept : of a recorded run, the share of its last residual (recorded − simulated loss) that the edited loss
        keeps; None of a curriculum alone.
    """

    original: Curriculum
    edited: Curriculum
    before: Array
    after: Array
    changes: pd.DataFrame
    level: float | None = None
    means: pd.DataFrame | None = None
    trust: Trust = field(default_factory=lambda: Trust("unknown", ("there are no bands",)))
    notes: list[str] = field(default_factory=list)
    schedule: str = STRETCH
    learning_rate: tuple[Array, Array] | None = None
    kept: float | None = None
    widened: float = 1.0

    def __str__(self) -> str:
        lines = [self.groups.to_markdown(floatfmt=".4f"), ""]
        if self.level is not None:
            lines.append(f"low, high: the {self.level:.0%} band of the change")
        lines += [f"verdict: {self.trust}", *self.explained()]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def explained(self) -> list[str]:
        """How the answer is to be read, beside its verdict: learning rates, what a shorter training changes
        by itself, what is kept of the recorded run, and how retraining agrees; a line each.
        """
        lines = [f"learning rate: {self._schedule}"]
        if (ended := self.of_length) is not None:
            lines.append(
                f"of length alone: {ended.mean():+.4f} on average, the original's losses after its first"
                f" {len(self.edited)} steps less those at its end"
            )
        if self.kept is not None:
            lines.append(f"original: as recorded; {self.kept:.0%} of what its simulation misses is kept")
        if "true_change" in self.changes:
            found = agreement(self.changes)
            said = (
                f"against retraining, over {len(self.changes)} test examples: Pearson {found['pearson']:.2f},"
                f" Spearman {found['spearman']:.2f}, same sign {found['same_sign']:.0%}"
            )
            if "in_band" in found and self.level is not None:
                said += f", {found['in_band']:.0%} within the {self.level:.0%} band"
            lines.append(said)
        return lines

    @property
    def of_length(self) -> Array | None:
        """What training for fewer steps changes by itself, [test]: the original's losses after as many steps
        as the edited curriculum has, less those at its end. None if the edited one is not shorter."""
        if len(self.edited) >= len(self.original):
            return None
        return np.asarray(self.before[len(self.edited)] - self.before[len(self.original)], np.float64)

    @property
    def groups(self) -> pd.DataFrame:
        """Mean losses and changes of every group of test examples and of all, with bands and verdicts."""
        found = by_group(self.changes)
        if self.means is None:
            return found
        place = list(found.columns).index("change") + 1
        return pd.concat([found.iloc[:, :place], self.means, found.iloc[:, place:]], axis=1)

    @property
    def _schedule(self) -> str:
        """What the learning rate does, in words."""
        if self.schedule == GIVEN:
            return "as given"
        if len(self.original) == len(self.edited):
            return "the original's, for as many steps"
        if self.schedule == KEEP:
            return "the original's step by step (schedule=keep)"
        return f"recomputed for {len(self.edited)} steps (schedule=stretch)"

    def summary(self) -> dict[str, Any]:
        """The answer as plain values: steps, schedule, level, verdict, notes, the mean change of length
        alone, mean losses and changes by group, the agreement with retraining if there was one, and all
        changes, a record a test example.
        """
        return {
            "steps": {"original": len(self.original), "edited": len(self.edited)},
            "schedule": self.schedule,
            "learning_rate": self.learning_rate and [rates.tolist() for rates in self.learning_rate],
            "kept": self.kept,
            "of_length": None if self.of_length is None else float(self.of_length.mean()),
            "level": self.level,
            "verdict": self.trust.verdict,
            "reasons": list(self.trust.reasons),
            "notes": self.notes,
            "groups": self.groups.to_dict("index"),
            "agreement": agreement(self.changes) if "true_change" in self.changes else None,
            "changes": self.changes.to_dict("records"),
        }


def by_group(changes: pd.DataFrame) -> pd.DataFrame:
    """Mean losses and changes of every group of test examples, and of all of them."""
    apart = ("id", "group", "low", "high", "verdict")
    columns = [column for column in changes.columns if column not in apart]
    everything = changes[columns].mean().to_frame("all").T.assign(examples=len(changes))
    if len(set(changes["group"])) < 2:
        return everything
    groups = changes.groupby("group")[columns].mean()
    return pd.concat([groups.assign(examples=changes["group"].value_counts()), everything])


def agreement(changes: pd.DataFrame) -> dict[str, float]:
    """How well predicted changes agree with true ones: correlations over test examples, share of right
    signs, mean changes, and the share of true changes within their bands, where there are any.

    Correlations are NaN where all predicted or all true changes are the same."""
    from scipy import stats  # takes long to import, and most answers are not retrained

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
        found["in_band"] = float(changes["true_change"].between(changes["low"], changes["high"]).mean())
    return found
