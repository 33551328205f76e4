"""The simulator that chooses itself: members of the deviation family, compared on runs they never saw.

Every candidate is scored by its leave-one-run-out rollouts (and those of validation runs, if given), with a
penalty of its own. Starting from what is usually best, one setting is changed at a time, and a change is
kept if it lowers the error by more than a percent; then so for effects beside a dynamics (alternation.py),
and, with scores, beside one that has those. The best is taken, or the mean of what two say where that errs
less. One to three runs cannot tell effects that hold from effects that do not: where there are scores, a
dynamics has those. The mean trajectory is among the candidates of every step (penalty inf), so that a set
from which nothing can be learnt about curricula gets just that.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

from simfluence.curriculum import Curriculum, usual_batch_size
from simfluence.errors import NotFittedError
from simfluence.runs import RunSet
from simfluence.simulators.base import Array
from simfluence.simulators.dynamics.cross_fit import AlternatingFit, cross_fitted, of_scores
from simfluence.simulators.dynamics.linearised import LinearisedModel, recorded_update
from simfluence.simulators.effects.fitting import FEWEST_RUNS, Chosen, Fitting, Settings, as_scores
from simfluence.simulators.effects.momentum import USUAL_MOMENTUM, recorded_momentum
from simfluence.simulators.effects.simulator import EffectsSimulator

MARGIN = 0.01  # how much lower, relatively, the error must be
NEARLY = 0.2  # how much higher it may be to be worth improving, or must be lower where nothing is left out
_SEARCH_ROWS = 1600
_PARTNER = "partner_"


class AutoSimulator(EffectsSimulator):
    """A deviation simulator whose settings are chosen by leave-one-run-out rollouts.

    Parameters
    ----------
    scores : attribution scores [train, test], or a list of several; used where they help. Positive
        lowers the loss; any units.
    linearised : Jacobians of all examples (``attribution.linearised``), which predicts most of what a
        curriculum changes; used if it helps. What they say at the start are scores too, from four runs on.
    redundancy : [train, train] ≥ 0, which examples stand for each other (blocks.py); used if it helps.
    max_rows : the grid of steps is thinned until the regression has about that many rows.

    Attributes
    ----------
    selection_ : what was tried, in order: change, error, penalty, kept. See ``selection`` and
        ``explain``. from_linearised_ : how many of the last ``scores_`` are the linearised's, 0 or 1. Others as
        in ``EffectsSimulator``; where the answer is the mean of two members, ``partner_…`` are those of
        the second, ``error_`` and ``out_of_fold_losses_`` are of the mean.
    """

    name: ClassVar[str] = "auto"

    def __init__(
        self,
        scores: Any = None,
        redundancy: npt.ArrayLike | None = None,
        linearised: LinearisedModel | None = None,
        max_rows: int = 4000,
    ) -> None:
        super().__init__(scores=scores, redundancy=redundancy, linearised=linearised, max_rows=max_rows)

    def _fit(self, train: RunSet, validation: RunSet | None) -> None:
        self._read_arrays()
        self._read_linearised(train)
        self.selection_: list[dict[str, Any]] = []
        fitting = Fitting(train, validation, self.scores_, self.redundancy_, self.max_rows, self.linearised)
        search = fitting
        most = max(8, _SEARCH_ROWS // max(len(fitting.recorded.grid) - 1, 1))
        if len(train) > most and validation is None:  # settings depend little on the number of runs
            part = train[np.linspace(0, len(train) - 1, most).astype(np.int64)]
            rows = self.max_rows * most // len(train)  # the same grid of steps
            search = Fitting(part, None, self.scores_, self.redundancy_, rows, self.linearised)
        best = self._search(search, train)
        if search is not fitting:
            best = fitting.choose_penalty(best.settings, start=_start(best))
            self._note("all training runs", best, True)
        members = [best]
        momentum = recorded_momentum(train) or (best.settings.momentum, best.settings.corrected)
        found = [cross_fitted(fitting, momentum)]
        if len(train) >= FEWEST_RUNS and len(fitting.given_scores):
            found.append(of_scores(fitting, momentum))
        members = self._with_dynamics(fitting, best, [one for one in found if one is not None])
        self._keep(fitting, members[0])
        self._join(fitting, members[1:])

    def _read_linearised(self, train: RunSet) -> None:
        """What it knows at the start becomes the last of the scores."""
        self.from_linearised_ = 0
        if self.linearised is not None and len(train) >= FEWEST_RUNS:
            known = self.linearised.scores(recorded_update(train)[0], usual_batch_size(train.curricula))
            self.scores_ = np.concatenate([self.scores_, as_scores(known, known.shape)])
            self.from_linearised_ = 1

    def _search(self, fitting: Fitting, train: RunSet) -> Chosen:
        """The best member without a dynamics."""
        beta, corrected = recorded_momentum(train) or (USUAL_MOMENTUM, True)
        settings = Settings(
            momentum=beta,
            corrected=corrected,
            means=() if fitting.few else tuple(range(len(fitting.scores))),
            prior="linearised" if "linearised" in fitting.predicted_before else "",
        )
        best = fitting.choose_penalty(settings)
        self._note("start", best, True)
        return best if len(train) == 1 else self._improve(fitting, best, self._changes(fitting, train))

    def _with_dynamics(self, fitting: Fitting, best: Chosen, dynamics: list[AlternatingFit]) -> list[Chosen]:
        """``best``, or a member beside a dynamics, or two whose mean is better still."""
        fitting.predicted_before |= {one.name: one.predicted_before for one in dynamics}
        if not dynamics:
            return [best]
        if fitting.few:
            return self._dynamics_alone(fitting, best, dynamics[0])
        members, rows = [best], [len(self.selection_)]
        for one in dynamics:
            members.append(self._beside(fitting, best, one))
            rows.append(len(self.selection_))
        chosen = [best]
        for member in members[1:]:
            if member.error < (1 - MARGIN) * chosen[0].error:
                chosen = [member]
        pairs = list(itertools.combinations(members, 2))
        errors = [fitting.error_of_mean(pair) for pair in pairs]
        least = int(np.argmin(errors))
        together = errors[least] < chosen[0].error
        chosen = list(pairs[least]) if together else chosen
        for member, start, end in zip(members[1:], rows, rows[1:], strict=False):
            for tried in self.selection_[start:end] if not any(member is one for one in chosen) else ():
                tried["kept"] = False
        for pair, error in zip(pairs, errors, strict=True):
            said = " and ".join(
                f"prior {prior}" if (prior := one.settings.prior) else "no prior" for one in pair
            )
            mean = dataclasses.replace(pair[1], errors={pair[1].penalty: error})
            self._note(f"the mean of {said}", mean, together and pair is pairs[least])
        return chosen

    def _beside(self, fitting: Fitting, best: Chosen, rounds: AlternatingFit) -> Chosen:
        """The best member with that dynamics."""
        settings = dataclasses.replace(best.settings, blocks=("examples",), link="log_odds", decay=0.1)
        other = fitting.choose_penalty(dataclasses.replace(settings, **rounds.change), start=0.1)
        self._note(f"prior {rounds.name}", other, True)
        if other.error < (1 + NEARLY) * best.error:
            other = self._improve(fitting, other, self._changes_of_the_rest())
        return other

    def _dynamics_alone(self, fitting: Fitting, best: Chosen, rounds: AlternatingFit) -> list[Chosen]:
        """The dynamics of the scores if it errs much less than the mean trajectory, or else ``best``.

        Of a single run nothing can err: there it is taken unless there is a linearised.
        """
        settings = dataclasses.replace(best.settings, link="log_odds", means=(), **rounds.change)
        predicted_now = fitting.choose_penalty(settings, penalty=np.inf)
        drift = fitting.choose_penalty(best.settings, penalty=np.inf)
        if len(fitting.train) == 1:
            kept = not best.settings.prior
        else:
            kept = predicted_now.error < (1 - NEARLY) * drift.error
        for tried in self.selection_ if kept else ():
            tried["kept"] = False
        self._note("dynamics of the scores alone: few runs", predicted_now, kept)
        return [predicted_now if kept else best]

    # ------------------------------------------------------------------------------ the mean of two

    def refit(self, train: RunSet) -> Self:
        """A copy with the same settings and penalties, fitted to other runs over the same examples."""
        fitting, partner = self._fitting(train, None), self._partner()
        other = copy.copy(self)
        other._keep(fitting, self._again(fitting))
        other._join(fitting, [] if partner is None else [partner._again(fitting)])
        return other

    def _join(self, fitting: Fitting, others: list[Chosen]) -> None:
        """Keep a second member, if there is one; after ``_keep``."""
        for name in [name for name in vars(self) if name.startswith(_PARTNER)]:
            delattr(self, name)
        for chosen in others:
            partner = self._like_self()
            partner._keep(fitting, chosen)
            for name, value in vars(partner).items():
                if name.endswith("_") and value is not vars(self).get(name):
                    setattr(self, _PARTNER + name, value)
            self.out_of_fold_losses_ = (self.out_of_fold_losses_ + partner.out_of_fold_losses_) / 2
            wrong = [
                np.square(predicted_now[: len(true)] - true)[1:]
                for predicted_now, true in zip(self.out_of_fold_losses_, fitting.recorded.losses, strict=True)
            ]
            self.error_ = float(np.concatenate(wrong).mean())

    def _partner(self) -> EffectsSimulator | None:
        """The second member, if there is one."""
        fitted = {name: value for name, value in vars(self).items() if name.startswith(_PARTNER)}
        if not fitted:
            return None
        partner = self._like_self()
        vars(partner).update({name.removeprefix(_PARTNER): value for name, value in fitted.items()})
        return partner

    def _like_self(self) -> EffectsSimulator:
        """A member for the same examples and scores."""
        member = EffectsSimulator()
        vars(member).update(vars(self))
        for name in [name for name in vars(member) if name.startswith((_PARTNER, "predictor_"))]:
            delattr(member, name)
        return member

    def _simulate(self, curricula: Sequence[Curriculum], initial_loss: Array) -> Array:
        losses = super()._simulate(curricula, initial_loss)
        partner = self._partner()
        return losses if partner is None else (losses + partner._simulate(curricula, initial_loss)) / 2

    def _restore(self, arrays: dict[str, Any], plain: dict[str, Any]) -> Self:
        super()._restore(arrays, plain)
        if self.linearised is not None and self.from_linearised_:
            self.scores = list(self.scores_[:-1]) or None
        if partner := self._partner():
            partner._predictor()  # TypeError where fields are missing
        return self

    # ---------------------------------------------------------------------------------- what is tried

    def _improve(self, fitting: Fitting, best: Chosen, changes: Iterable[dict[str, Any]]) -> Chosen:
        """The best after these changes, one after the other, each kept if it pays."""
        for change in changes:
            settings = dataclasses.replace(best.settings, **change)
            if settings == best.settings:
                continue
            tried = fitting.choose_penalty(settings, start=_start(best))
            kept = tried.error < (1 - MARGIN) * best.error
            self._note(", ".join(f"{key} {value}" for key, value in change.items()), tried, kept)
            best = tried if kept else best
        return best

    @staticmethod
    def _changes(fitting: Fitting, train: RunSet) -> Iterator[dict[str, Any]]:
        """What is tried, in this order."""
        if min(losses.min() for losses in fitting.recorded.losses) > 0:
            yield {"link": "log_odds"}
        recorded = recorded_momentum(train)
        if recorded is None:
            for beta in (0.0, 0.8, 0.95):
                yield {"momentum": beta, "noise_correlation": beta}
        else:  # at high rates, directions change faster than the optimizer forgets
            for factor in (0.9, 0.75):
                yield {"momentum": factor * recorded[0]}
        for noise_correlation in (0.8, 0.5, 0.0, 0.97):
            yield {"noise_correlation": noise_correlation}
        for decay in (0.1, 0.5):
            yield {"decay": decay}
        if fitting.groups is not None:
            yield {"blocks": ("examples", "groups")}
        yield {"blocks": ("examples", "seen")}
        everything = () if fitting.few else tuple(range(len(fitting.scores)))
        for out_of_fold in everything if len(everything) > 1 else ():
            yield {"means": tuple(number for number in everything if number != out_of_fold)}
        if everything:
            yield {"means": ()}
        if "linearised" in fitting.predicted_before:
            yield {"prior": ""}
        if np.ptp(fitting.rates) > 1e-6:
            yield {"rates": False}

    @staticmethod
    def _changes_of_the_rest() -> Iterator[dict[str, Any]]:
        """What is tried, in this order, of the effects on what a dynamics leaves over."""
        yield {"link": "identity"}
        for noise_correlation in (0.5, 0.0):
            yield {"noise_correlation": noise_correlation}
        for decay in (0.0, 0.3):
            yield {"decay": decay}
        yield {"means": ()}

    def _note(self, change: str, chosen: Chosen, kept: bool) -> None:
        self.selection_.append(
            {"change": change, "error": chosen.error, "penalty": chosen.penalty, "kept": kept}
        )

    @property
    def selection(self) -> pd.DataFrame:
        """What was tried: change, error (all-steps MSE on runs not seen), penalty, kept."""
        if not hasattr(self, "selection_"):
            raise NotFittedError(f"call fit() on this {type(self).__name__} first")
        return pd.DataFrame(self.selection_)

    def explain(self) -> str:
        """In words: what was chosen, and what was tried and not kept."""
        frame = self.selection
        lines = []
        for member in (self, self._partner()):
            if member is not None:
                said = ", ".join(f"{key} {value}" for key, value in member.settings_.items())
                lines += [f"settings: {said}", f"penalty: {member.penalty_:g}"]
                if np.isinf(member.penalty_):
                    lines[-1] += " (the mean trajectory: nothing else did better)"
        if self.error_ is not None:
            lines.append(f"all-steps MSE of rollouts of runs left out: {self.error_:.4g}")
        for row in frame.itertuples():
            lines.append(f"  {'kept' if row.kept else 'no  '}  {row.error:.4g}  {row.change}")
        return "\n".join(lines)


def _start(best: Chosen) -> float:
    """The penalty to begin with near a fit."""
    return best.penalty if np.isfinite(best.penalty) else 0.1
