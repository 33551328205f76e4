"""Many edits of one run at once, each answered as :func:`simfluence.whatif.what_if` answers a single one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from tqdm import tqdm

from simfluence.curriculum import Curriculum
from simfluence.evaluation.metrics import final_loss
from simfluence.fitted import Fitted
from simfluence.residual import carried
from simfluence.runs import ExampleTable, Run
from simfluence.runs.schedule import STRETCH, edited_rates, recorded_rates
from simfluence.simulators import Simulator
from simfluence.trust import change_band, verdicts

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_BYTES = 2**28
"""Losses that are simulated at once take no more memory."""


@dataclass(frozen=True)
class Changes:
    """What many edits of a run change.

    edited : the curricula. original : float [test], losses after the last step of the original run.
    change : float [edit, test], edited − original after the last step; negative means learnt better.
    """

    edited: Sequence[Curriculum]
    original: Array
    change: Array


def many_changes(
    simulator: Simulator | Fitted,
    run: Run,
    edited: Sequence[Curriculum],
    *,
    schedule: str = STRETCH,
    with_residual: bool = True,
    progress: str | None = None,
) -> Changes:
    """The changes that a fitted simulator predicts of many edits of a run.

    Parameters
    ----------
    edited : the edited curricula, of any lengths.
    schedule : what the learning rate does where an edit changes the number of steps (``what_if``).
    with_residual : as ``what_if`` does it, the original is the run as it was recorded, and an edit keeps part
        of what the simulation misses of it (:mod:`simfluence.residual`). False: simulated losses alone are
        compared, so that what two edits share of the residual does not enter their difference.
    progress : what the work is called beside a progress bar, where it takes over five seconds.

    Raises ValueError if there is no edit, and what :meth:`Simulator.simulate` raises.
    """
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    if not edited:
        raise ValueError("there is no edit to ask about")
    rates_of = rates_by_length(fitted.simulator, run, schedule)
    initial = run.initial_loss.astype(np.float64)
    own = recorded_rates(run) if rates_of else None
    simulated = fitted.simulator.simulate([run.curriculum], initial, own)[0]
    original, change = final_loss(simulated[None])[0], np.empty((len(edited), len(initial)))
    size = max(int(_BYTES / 8 / max(len(initial), 1) / (max(map(len, edited)) + 1)), 1)
    # The longest first: curricula that are simulated together take the memory of the longest.
    order = sorted(range(len(edited)), key=lambda number: -len(edited[number]))
    with tqdm(total=len(edited), desc=progress, delay=5, leave=False, disable=progress is None) as bar:
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            curricula = [edited[number] for number in chosen]
            rates = _padded([rates_of(len(one)) for one in curricula]) if rates_of else None
            losses = fitted.simulator.simulate(curricula, initial, rates)
            change[chosen] = final_loss(losses) - original
            bar.update(len(chosen))
    if with_residual:
        for number, one in enumerate(edited):
            rates_both = (own, rates_of(len(one))) if rates_of and own is not None else None
            found = carried(run, one, simulated.copy(), rates_both)
            change[number] += found.carried[-1] - found.residual[-1]
        original = original + carried(run, run.curriculum, simulated).residual[-1]
    return Changes(edited, original, change)


def with_bands(
    fitted: Fitted,
    run: Run,
    changes: Changes,
    rows: Mapping[str, IntArray],
    train: ExampleTable,
    widened: float = 1.0,
) -> pd.DataFrame:
    """The mean change of sets of test examples under every edit, with bands as ``what_if`` puts them.

    rows : name → which test examples. Columns: edit (its number), test, change, and where the simulator has
    bands low, high and verdict; one row an edit and set.
    """
    uses = [np.asarray(one.counts().sum(0)) for one in (run.curriculum, *changes.edited)]
    by = sparse.csr_array(np.stack(uses[1:]) - uses[0])
    steps = np.array([len(one) for one in changes.edited])
    return banded(fitted, run, changes.original, changes.change, rows, by, train, widened, steps)


def banded(
    fitted: Fitted,
    run: Run,
    original: Array,
    change: Array,
    rows: Mapping[str, IntArray],
    by: sparse.csr_array,
    train: ExampleTable,
    widened: float = 1.0,
    steps: int | IntArray = 0,
) -> pd.DataFrame:
    """What :func:`with_bands` returns, of changes [edit, test] whose curricula need not be at hand.

    original : float [test], the final losses of the original run. by : sparse [edit, train], by how much more
    or less often each edit uses each training example. steps : of the edited curricula, where they are
    longer than the original.
    """
    bands, found = fitted.bands, []
    moved = np.sqrt(np.square(original - run.initial_loss).mean())
    last = np.broadcast_to(np.maximum(len(run), steps), len(change))
    recorded, overused, far = fitted.simulator.recorded_, np.zeros(1), np.zeros(1)
    if recorded is not None and bands is not None:
        uses = np.asarray(run.curriculum.counts().sum(0))
        overused, far = recorded.overused_by(uses, by), recorded.distance_by(uses, by, train.groups)
    for name, of in rows.items():
        mean = change[:, of].mean(1)
        frame = pd.DataFrame({"edit": np.arange(len(change)), "test": name, "change": mean})
        if bands is not None:
            noise = {step: bands.half_width_of_mean(of, step) for step in np.unique(last)}
            low, high = change_band(
                mean,
                np.sqrt(np.square(change[:, of]).mean(1)),
                np.array([noise[step] for step in last]),
                skill=bands.skill_[np.minimum(last, len(bands.skill_) - 1)],
                level=bands.level,
                overused=overused,
                unlike=far * moved,
                widened=widened,
            )
            frame = frame.assign(low=low, high=high, verdict=verdicts(mean, low, high))
        found.append(frame)
    return pd.concat(found).sort_values("edit", kind="stable", ignore_index=True)


def chosen_tests(test: ExampleTable, of: str | None = None) -> dict[str, IntArray]:
    """Sets of test examples by name: every group and "all"; or only the group, or the example, named ``of``.

    Raises ValueError if there is neither such a group nor such an example.
    """
    groups = {name: np.flatnonzero(np.asarray(test.groups) == name) for name in sorted(set(test.groups))}
    if of is None or of == "all":
        everything = {"all": np.arange(len(test))}
        return everything if of == "all" or len(groups) < 2 else {**groups, **everything}
    if of in groups:
        return {of: groups[of]}
    if of in test.ids:
        return {of: np.array([test.ids.index(of)])}
    raise ValueError(f"there is no group of test examples, nor a test example, named {of!r}")


def rates_by_length(simulator: Simulator, run: Run, schedule: str) -> Callable[[int], Array] | None:
    """From a number of steps to learning rates [step]; None where the run's, or those of the fit, are not
    known.
    """
    recorded = simulator.recorded_
    if (recorded is not None and not len(recorded.highest)) or recorded_rates(run) is None:
        return None
    known: dict[int, Array] = {}

    def of(steps: int) -> Array:
        if steps not in known:
            rates = edited_rates(run, steps, schedule)
            assert rates is not None
            known[steps] = rates
        return known[steps]

    return of


def _padded(rates: Sequence[Array]) -> Array:
    """[run, step], 0 after the end of a shorter one, where nothing is read."""
    padded = np.zeros((len(rates), max(map(len, rates))))
    for row, own in zip(padded, rates, strict=True):
        row[: len(own)] = own
    return padded
