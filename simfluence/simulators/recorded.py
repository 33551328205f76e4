"""What was recorded for a fit, so that an answer can say where its question leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from simfluence.curriculum import Curriculum
from simfluence.runs import Run, RunSet
from simfluence.runs.run import FEW_EVALUATIONS
from simfluence.runs.schedule import recorded_rates
from simfluence.runs.start import UNLIKE
from simfluence.simulators import state as states

Array = npt.NDArray[np.float64]

_ELSEWHERE = 0.25
"""How far a learning rate may leave those recorded, as a share of the usual one, before a note says so."""
_FAR = 1.25
"""An edit that uses a group this many times as often as any recorded run, or as seldom, is unlike them."""
_SHOWN = 3
_SPARSE = 5.0
"""Losses recorded once in more steps than these are said to be sparse (analysis/results/sparse.md)."""
_ALIKE = 1.1
"""Runs whose highest learning rates are within this factor are trained alike."""


@states.saved
@dataclass(frozen=True)
class Recorded:
    """What the runs of a fit had in common.

    steps : of the longest run.
    lowest, highest : float [step], the learning rates of every step over the runs that came so far; empty
        where no run's rates are known.
    uses : float32 [run, train], how often each run used every training example.
    mixed : in what settings the runs differ, in words; "" where they do not.
    every : in how many steps losses were recorded once, the median over runs.
    start_alike : whether the runs start from the same weights; None if that is not known.
    """

    steps: int
    lowest: Array
    highest: Array
    uses: npt.NDArray[np.float32]
    mixed: str
    every: float
    start_alike: bool | None

    @classmethod
    def of(cls, train: RunSet) -> Recorded:
        """That of the runs of a fit."""
        runs = train.runs
        steps = max(len(run) for run in runs)
        known = [found for run in runs if (found := recorded_rates(run)) is not None]
        reached = max((len(rates) for rates in known), default=0)
        lowest, highest = np.full(reached, np.inf), np.zeros(reached)
        for rates in known:
            lowest[: len(rates)] = np.minimum(lowest[: len(rates)], rates)
            highest[: len(rates)] = np.maximum(highest[: len(rates)], rates)
        uses = np.stack([_uses(run.curriculum) for run in runs])
        known_losses = [np.isfinite(run.loss).any(1) & (run.evaluated > 0) for run in runs]
        every = float(
            np.median(
                [len(run) / max(int(there.sum()), 1) for run, there in zip(runs, known_losses, strict=True)]
            )
        )
        return cls(steps, lowest, highest, uses, _mixed(runs, known), every, train.start_alike)

    @property
    def notes(self) -> list[str]:
        """What should be known of every answer, one sentence each."""
        notes = [UNLIKE] if self.start_alike is False else []
        if self.every > _SPARSE:
            notes.append(
                f"losses were recorded once in {self.every:.0f} steps: without scores, effects of examples"
                " used in between cannot be separated"
            )
        evaluations = len(self.uses) * (1 + round(self.steps / self.every))
        if evaluations < FEW_EVALUATIONS < self.steps:
            notes.append(
                f"there are losses at {evaluations} steps in all: how they moved between these is not known,"
                " and predictions may be worse than none; record more (evaluate_within)"
            )
        return notes

    def beyond(self, curricula: Sequence[Curriculum], rates: Sequence[Array] | None) -> list[str]:
        """What a question about these curricula at these learning rates (None: not known) asks beyond what
        was recorded, one sentence each.
        """
        notes = []
        if (beyond := max(len(curriculum) for curriculum in curricula) - self.steps) > 0:
            are = "step is" if beyond == 1 else "steps are"
            notes.append(f"{beyond} {are} beyond the longest recorded run ({self.steps} steps)")
        if rates is not None and len(self.highest) and (far := max(self._outside(one) for one in rates)):
            notes.append(
                f"the learning rate is unlike those recorded at the same step: by up to {far:.0%} of the"
                " usual rate"
            )
        asked = np.unique(np.concatenate([curriculum.examples for curriculum in curricula]))
        if unused := int((self.uses[:, asked] == 0).all(0).sum()):
            notes.append(
                f"{unused} of the {len(asked)} training examples asked about were used by no recorded run"
            )
        if self.mixed:
            notes.append(f"the recorded runs have mixed settings: {self.mixed}")
        return notes

    def overused(self, original: Curriculum, edited: Curriculum) -> float:
        """The share of what an edit changes of uses of examples, 0 … 1, by which examples are used more often
        than in any recorded run.
        """
        before = _uses(original)
        return float(self.overused_by(before, sparse.csr_array((_uses(edited) - before)[None]))[0])

    def distance(self, edited: Curriculum, groups: Sequence[str]) -> float:
        """How much further than recorded runs an edited curriculum is from their mean, in shares of groups:
        the total variation distance, 0 … 1, less its mean over the recorded runs.
        """
        none = sparse.csr_array((1, self.uses.shape[1]))
        return float(self.distance_by(_uses(edited), none, groups)[0])

    def overused_by(self, uses: npt.NDArray[Any], changes: sparse.csr_array) -> Array:
        """``overused`` of many edits of one run, float [edit].

        uses : [train], how often the run used every example. changes : sparse [edit, train], by how much more
        or less often each edit uses it.
        """
        most = self.uses.max(0)
        before, entries = np.maximum(uses - most, 0), changes.tocoo()
        at, by = entries.coords[1], entries.data
        beyond = np.maximum(uses[at] + by - most[at], 0) - before[at]
        count = changes.shape[0]
        more = before.sum() + np.bincount(entries.coords[0], beyond, minlength=count)
        changed = np.bincount(entries.coords[0], np.abs(by), minlength=count)
        return np.divide(np.minimum(more, changed), changed, out=np.zeros(count), where=changed > 0)

    def distance_by(self, uses: npt.NDArray[Any], changes: sparse.csr_array, groups: Sequence[str]) -> Array:
        """``distance`` of many edits of one run, float [edit]; arguments as of :meth:`overused_by`."""
        _, label = np.unique(np.asarray(groups), return_inverse=True)
        member = sparse.csr_array((np.ones(len(label)), (np.arange(len(label)), label)))
        recorded, edited = self.uses @ member, uses @ member + (changes @ member).toarray()
        shares, edited_shares = (
            used / np.maximum(used.sum(1, keepdims=True), 1e-300) for used in (recorded, edited)
        )
        usual = shares.mean(0)
        apart, others = (np.abs(of - usual).sum(1) / 2 for of in (edited_shares, shares))
        return np.asarray(np.maximum(apart - others.mean(), 0.0), np.float64)

    def unlike(self, edited: Curriculum, groups: Sequence[str]) -> str:
        """In words, the groups of training examples that an edited curriculum uses far more or less often
        than every recorded run did; "" where there are none. groups : one label a training example.
        """
        labels, uses, found = np.asarray(groups), _uses(edited), []
        for name in dict.fromkeys(groups):
            of_group = labels == name
            recorded, now = self.uses[:, of_group].sum(1), float(uses[of_group].sum())
            low, high = float(recorded.min()), float(recorded.max())
            if now < low / _FAR or now > high * _FAR:
                found.append((max(low / max(now, 0.5), now / max(high, 0.5)), name, now, low, high))
        words = [
            f"{name or 'training examples'} {now:.4g} times (recorded runs: {low:.4g} to {high:.4g})"
            for _, name, now, low, high in sorted(found, reverse=True)[:_SHOWN]
        ]
        more = f" and {len(found) - _SHOWN} more groups" if len(found) > _SHOWN else ""
        return f"the edit uses {', '.join(words)}{more}" if found else ""

    def _outside(self, rates: Array) -> float:
        """How far the rates leave those recorded, as a share of the usual rate; 0 where that is little."""
        steps, usual = min(len(rates), len(self.highest)), float((self.lowest + self.highest).mean()) / 2
        if not steps or usual <= 0:
            return 0.0
        rates = rates[:steps]
        far = np.maximum(rates - self.highest[:steps], self.lowest[:steps] - rates).max() / usual
        return float(far) if far > _ELSEWHERE else 0.0


def _uses(curriculum: Curriculum) -> npt.NDArray[np.float32]:
    """How often a curriculum uses every training example, [train]."""
    return np.asarray(curriculum.counts().sum(0), np.float32)


def _mixed(runs: Sequence[Run], rates: Sequence[Array]) -> str:
    """In what settings of the optimizer, and in what highest learning rates, runs differ."""
    settings = [run.optimizer for run in runs if run.optimizer]
    names = sorted({name for one in settings for name in one} - {"lr", "initial_lr", "groups"})
    found = []
    for name in names:
        values = sorted({str(one.get(name)) for one in settings})
        if len(values) > 1:
            found.append(f"{name} {', '.join(values)}")
    highest = [float(one.max()) for one in rates]
    if highest and max(highest) > _ALIKE * min(highest):
        found.append(f"highest learning rates from {min(highest):.3g} to {max(highest):.3g}")
    return "; ".join(found)
