"""The default simulator: a few fixed candidates, chosen and averaged by how well they predict runs they never
saw.

The candidates:

    the mean trajectory        nothing is learnt about curricula; always among the candidates
    effects with dynamics      training dynamics whose kernel are effects found in the runs; effects beside it
    scores with dynamics       training dynamics whose kernel are the given scores; effects beside them
    effects                    without dynamics; of fewer than 16 runs, where dynamics are easily misled

Each candidate predicts every training run by a fit that left this run out (and the validation runs, if there
are any). Taken is the candidate, or the mean of the two candidates, with the smallest mean squared error, if
it is smaller than that of the mean trajectory by a one-sided paired t-test over runs at five per cent; else
the mean trajectory. Dynamics need four runs. With scores and fewer runs, dynamics with the scores as their
kernel are taken at once, if they explain anything of what is peculiar to these runs; what they say is
multiplied by the root of the share that they explain (``explained_share`` in dynamics/fit.py).

Of runs that consume shares of groups, the candidates are the mean trajectory and ``shares``, which chooses
between both itself.

All this happens in units that suit the losses (units.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit  # Student's quantile; scipy.stats takes long to import

from simfluence.curriculum import Curriculum, of_shares
from simfluence.errors import NotFittedError
from simfluence.runs import RunSet
from simfluence.simulators.base import SIMULATORS, Array, Simulator, register, stages
from simfluence.simulators.dynamics.cross_fit import LEAST_EXPLAINED, MANY_RUNS, stages_of
from simfluence.simulators.dynamics.kernels import fit_scores
from simfluence.simulators.dynamics.simulator import DynamicsSimulator
from simfluence.simulators.effects.data import FEWEST_RUNS, TrainingData
from simfluence.simulators.effects.simulator import EffectsSimulator, on_every_step
from simfluence.simulators.scores import portable_scores
from simfluence.simulators.shares import ShareSimulator
from simfluence.simulators.units import Units

_MEAN = "mean trajectory"
_RUNS_FOR_DYNAMICS = 6
"""Of fewer runs, dynamics of effects are taken beside another candidate only: their errors on runs that were
left out are too small there (analysis/LOG.md)."""


@register
class AutoSimulator(Simulator):
    """The mean of one or two fixed candidates, chosen by their errors on runs that they have not seen.

    Parameters
    ----------
    scores : attribution scores [train, test], or a list of several, in the order of the steps that they were
        taken at; arrays, or anything with an attribute ``scores``. Positive lowers the loss; any units.
    max_rows : the grid of steps is thinned until regressions have about that many rows.

    Attributes
    ----------
    members_ : the fitted simulators whose mean is predicted, one or two; in the units ``units_``, as
        ``out_of_fold_`` is.
    error_ : all-steps MSE on runs that were left out of the fit; NaN for a single run.
    candidates_ : what was compared: name → error. taken_ : the name of what was chosen.
    explained_ : of few runs and scores, the share of what is peculiar to them that the scores explain, 0 … 1;
        NaN of four runs or more.
    out_of_fold_ : float [run, point of ``grid_``, test], the training runs as predicted by fits without them.
    """

    name: ClassVar[str] = "auto"
    takes_shares: ClassVar[bool] = True
    fitted: ClassVar[tuple[str, ...]] = (
        "error_",
        "candidates_",
        "taken_",
        "explained_",
        "grid_",
        "out_of_fold_",
        "lengths_",
        "units_",
    )
    members_: list[Simulator]

    def __init__(self, scores: Any = None, max_rows: int = 2000) -> None:
        self.scores = scores
        self.max_rows = max_rows

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self.explained_, self.units_ = np.nan, Units()
        if of_shares([*train.curricula, *(validation.curricula if validation is not None else [])]):
            self._take_shares(ShareSimulator(max_rows=self.max_rows).fit(train), train)
            return
        self.units_ = Units.of(train)
        train = self.units_.runs_into(train)
        validation = None if validation is None else self.units_.runs_into(validation)
        data = EffectsSimulator(self.scores, max_rows=self.max_rows).training_data(train)
        if len(train) < FEWEST_RUNS and len(data.given_scores) and self._take_scores(data):
            return
        candidates = self._candidates(len(train))
        kernels = sum(candidate.kernel is not None for candidate in candidates.values())
        with stages(stages_of(data) * kernels, "fit auto") as bar:
            for candidate in candidates.values():
                candidate.examples_, candidate.recorded_ = self.examples_, self.recorded_
                candidate._fit_to(data, validation, bar.update)
        self._choose(candidates, data, validation)

    def _candidates(self, runs: int) -> dict[str, EffectsSimulator]:
        """Those that this many runs may be fitted by."""
        rows = self.max_rows
        candidates = {_MEAN: EffectsSimulator(penalty=np.inf, link="identity", max_rows=rows)}
        if runs >= FEWEST_RUNS:
            candidates["effects with dynamics"] = EffectsSimulator(self.scores, "effects", max_rows=rows)
        if 1 < runs < MANY_RUNS:
            candidates["effects"] = EffectsSimulator(self.scores, max_rows=rows)
        if runs >= FEWEST_RUNS and self.scores is not None:
            candidates["scores with dynamics"] = EffectsSimulator(self.scores, "scores", max_rows=rows)
        return candidates

    def _choose(
        self, candidates: dict[str, EffectsSimulator], data: TrainingData, validation: RunSet | None
    ) -> None:
        """The one or two candidates whose mean has the smallest error, or the mean trajectory."""
        errors = {}
        for size in (1, 2):
            for names in itertools.combinations(candidates, size):
                if names == ("effects with dynamics",) and len(data.train) < _RUNS_FOR_DYNAMICS:
                    continue
                members = [candidates[name] for name in names]
                errors[names] = _errors(members, data, validation)
        best = min(errors, key=lambda names: errors[names].mean())
        if not _is_less(errors[best], errors[_MEAN,]):
            best = (_MEAN,)
        square = self.units_.scale**2
        self.candidates_ = {
            " and ".join(names): float(error.mean()) * square for names, error in errors.items()
        }
        self.taken_ = " and ".join(best)
        self.error_ = self.candidates_[self.taken_]
        members = [candidates[name] for name in best]
        self._take(members, np.mean([one.out_of_fold_ for one in members], axis=0), data)

    def _take_scores(self, data: TrainingData) -> bool:
        """Of few runs: dynamics with the scores as their kernel, if they explain any of what is peculiar to
        these runs. Returns whether they do.
        """
        self.explained_ = 0.0
        if data.has_log_odds:
            with stages(1, "fit auto"):
                found, _ = fit_scores(data.given_scores, data)
            self.explained_ = found.explained
        if self.explained_ < LEAST_EXPLAINED:
            return False
        dynamics = DynamicsSimulator(list(data.given_scores), self.max_rows)
        dynamics.examples_, dynamics.recorded_ = self.examples_, self.recorded_
        dynamics.set_dynamics(found.dynamics, data)
        self.taken_ = "scores with dynamics"
        self.candidates_, self.error_ = {self.taken_: np.nan}, np.nan
        self._take([dynamics], np.empty((0, len(data.recorded.grid), data.shape[1])), data)
        return True

    def _take_shares(self, member: ShareSimulator, train: RunSet) -> None:
        """Of runs that consume shares of groups."""
        self.members_, self.lengths_ = [member], [len(run) for run in train]
        self.grid_ = np.arange(max(self.lengths_) + 1)
        self.out_of_fold_ = np.empty((0, len(self.grid_), len(train.test)))
        mean = member.mean_error_
        self.candidates_ = {_MEAN: mean, member.name: mean * member.error_}
        self.taken_ = _MEAN if np.isinf(member.penalty_) else member.name
        self.error_ = self.candidates_[self.taken_]

    @property
    def _of_shares(self) -> bool:
        """Whether it was fitted to runs that consume shares of groups."""
        return isinstance(self.members_[0], ShareSimulator)

    def _take(self, members: list[Any], out_of_fold: Array, data: TrainingData) -> None:
        self.members_ = members
        self.grid_, self.lengths_ = data.recorded.grid, [len(run) for run in data.train]
        self.out_of_fold_ = out_of_fold

    def refit(self, train: RunSet) -> Self:
        """A copy with the same members, each refitted to other runs over the same examples."""
        self.check_examples(train)
        other = type(self)(**self.get_params())
        other._learn_of(train)
        other.candidates_, other.error_ = self.candidates_, self.error_
        other.taken_, other.explained_, other.units_ = self.taken_, self.explained_, self.units_
        if isinstance(member := self.members_[0], ShareSimulator):
            other._take_shares(member.refit(train), train)
            return other
        train = self.units_.runs_into(train)
        data = EffectsSimulator(self.scores, max_rows=self.max_rows).training_data(train)
        members = [member.refit(train) for member in self.members_]
        known = [one.out_of_fold_ for one in members if isinstance(one, EffectsSimulator)]
        other._take(members, np.mean(known, axis=0) if known else self.out_of_fold_[:0], data)
        return other

    # --------------------------------------------------------------------------------- predictions

    def _simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, learning_rate: npt.ArrayLike | None = None
    ) -> Array:
        if of_shares(curricula) != self._of_shares:
            of, asked = ("shares of groups", "counted examples")[:: 1 if self._of_shares else -1]
            raise ValueError(f"this simulator was fitted to runs of {of}, but a curriculum is of {asked}")
        start = self.units_.into(initial_loss)
        losses = [member.simulate(curricula, start, learning_rate) for member in self.members_]
        return self.units_.out_of(np.mean(losses, axis=0))

    def first_order(
        self,
        curriculum: Curriculum,
        initial_loss: Array,
        steps: npt.NDArray[np.int64],
        examples: npt.NDArray[np.int64],
        learning_rate: npt.ArrayLike | None = None,
    ) -> Array | None:
        """What one more use changes to first order: the mean of what the members say."""
        start = self.units_.into(initial_loss)
        total = np.zeros((len(steps), len(start)))
        for member in self.members_:
            found = member.first_order(curriculum, start, steps, examples, learning_rate)
            if found is None:
                return None
            total += found
        return total * (self.units_.scale / len(self.members_))

    def out_of_fold(self, train: RunSet) -> Array:
        """The training runs, each as predicted by a fit that has not seen it, float [run, step + 1, test].

        train : the runs that this simulator was fitted to. Linear between the points of ``grid_``; NaN after
        a run's end. Raises ValueError for other runs, or where too few were fitted.
        """
        self.check_examples(train)
        if not len(self.out_of_fold_):  # shares, or few runs and scores: nothing was left out in the fit
            return super().out_of_fold(train)
        predicted = on_every_step(self.out_of_fold_, self.grid_, self.lengths_, train)
        return self.units_.out_of(predicted)

    @property
    def selection(self) -> pd.DataFrame:
        """What was compared: candidate, error (all-steps MSE on runs that were not seen), taken."""
        if self.examples_ is None:
            raise NotFittedError(f"call fit() on this {type(self).__name__} first")
        rows = [(name, error, name == self.taken_) for name, error in self.candidates_.items()]
        return pd.DataFrame(rows, columns=["candidate", "error", "taken"])

    @property
    def notes(self) -> list[str]:
        """Of few runs, whether and how far scores were used; of shares, that they were not; and what every
        simulator says.
        """
        if self.scores is not None and self._of_shares:
            said = "the scores were not used: the runs consume shares of groups, not single examples"
            return [*super().notes, said]
        if np.isnan(self.explained_) or self.scores is None:
            return super().notes
        runs = f"the {len(self.lengths_)} runs" if len(self.lengths_) > 1 else "the one run"
        if self.explained_ < LEAST_EXPLAINED:
            return [
                *super().notes,
                f"the scores were not used: they explain nothing of what is peculiar to {runs} of the fit",
            ]
        return [
            *super().notes,
            f"the scores explain {self.explained_:.0%} of what is peculiar to {runs} of the fit; predicted"
            f" changes are the root of that, {self.explained_**0.5:.0%}, of what they say",
        ]

    # ------------------------------------------------------------------------------ keeping it

    def state(self) -> dict[str, Any]:
        """As every simulator; the members' states are in it."""
        state = super().state()
        return {**state, "members": [member.state() for member in self.members_]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The simulator whose ``state()`` that was; RunDataError if something is missing."""
        simulator = super().from_state(state)
        simulator.members_ = [SIMULATORS[member["name"]].from_state(member) for member in state["members"]]
        return simulator

    def _portable_params(self) -> dict[str, Any]:
        return {**self.get_params(), "scores": portable_scores(self.scores)}


def _errors(members: Sequence[EffectsSimulator], data: TrainingData, validation: RunSet | None) -> Array:
    """All-steps MSE of the mean of these simulators' predictions, on each training run, by a fit that left it
    out, and on each validation run; NaN of a single run that could not be left out.
    """
    if len(data.train) < 2:
        predicted: list[Array] = []
    else:
        predicted = list(np.mean([member.out_of_fold_ for member in members], axis=0))
    true = list(data.recorded.losses[: len(predicted)])
    if validation is not None:
        initial = validation.initial_loss.astype(np.float64)
        simulated = [member.simulate(validation.curricula, initial) for member in members]
        predicted += list(np.mean(simulated, axis=0))
        true += list(validation.loss)
    if not true:
        return np.array([np.nan])
    pairs = zip(predicted, true, strict=True)
    return np.array([np.nanmean(np.square(guess[1 : len(known)] - known[1:])) for guess, known in pairs])


def _is_less(errors: Array, others: Array) -> bool:
    """Whether the mean error over runs is less, by a one-sided paired t-test at five per cent.

    mean d > t sd(d)/√R with d = others − errors [run]; written out, since d may be the same for all runs.
    """
    gains, runs = others - errors, len(errors)
    if runs < 2:
        return False
    return bool(gains.mean() > stdtrit(runs - 1, 0.95) * gains.std(ddof=1) / np.sqrt(runs))
