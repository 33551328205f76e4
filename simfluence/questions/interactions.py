"""Whether training examples or groups stand in for each other: what is lost without both, against the sum.

Of a hundred near-copies of one picture, leaving out one changes little, since the others teach the same;
leaving out one half changes little, and leaving out both halves much: the halves are redundant. What only
works together is synergetic: without either, what the other teaches is lost as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from simfluence.curriculum import remove
from simfluence.fitted import Fitted
from simfluence.questions.groups import used_groups
from simfluence.questions.many import banded, chosen_tests, many_changes
from simfluence.questions.rank import PER
from simfluence.runs import ExampleTable, Run
from simfluence.runs.schedule import STRETCH
from simfluence.simulators import Simulator

SHARE = 0.1
"""Changes that miss their sum by less than this share of both are independent."""
REDUNDANT, INDEPENDENT, SYNERGETIC = "redundant", "independent", "synergetic"


def interactions(
    simulator: Simulator | Fitted,
    run: Run,
    *,
    train: ExampleTable,
    test: ExampleTable,
    per: str = "group",
    among: Sequence[str] | None = None,
    of: str | None = None,
    schedule: str = STRETCH,
    share: float = SHARE,
    widened: float = 1.0,
) -> pd.DataFrame:
    """What leaving out two groups, or two examples, changes together, against the sum of what each changes.

    Parameters
    ----------
    simulator : a fitted one. run : the recorded run whose curriculum is edited. train, test : the tables of
        its examples.
    per, among : pairs of these groups ("group"; None: all that the run used) or examples ("example", by id).
    of : a group of test examples or one test example, by name, or "all"; None is every group and all.
    schedule : what the learning rate does where steps vanish (``what_if``).
    share : how far the change of both may be from the sum, as a share of |first| + |second|, to count as
        independent.
    widened : how many times as wide as otherwise bands are to be.

    Returns
    -------
    One row a pair and set of test examples, with the columns first, second, test; change_first, change_second
    and change_both of the mean final loss of the set; interaction, the change of both less the sum; where
    the simulator has bands low, high and verdict, a band around the interaction and whether its sign is
    known; and kind:

    redundant : both together change more than the sum: one stands in for the other where only one is missing.
    synergetic : both together change less than the sum, or the other way: without either, the other is worth
        less.
    independent : both together change the sum, within ``share``.

    Groups are left out as ``what_if`` does it: later examples move up and fill the batches. Single examples
    are left out in place, from batches that shrink, since where all later examples move to would change more
    than a pair interacts. Simulated losses alone are compared, so that what two edits share of what the
    simulation misses does not count.

    Raises ValueError for unknown options, fewer than two groups or examples, or names that the run never
    used; RunDataError for names that are not in the table, or other test examples than those of the fit.
    """
    fitted = simulator if isinstance(simulator, Fitted) else Fitted(simulator)
    fitted.simulator.check_test_examples(test)
    tests = chosen_tests(test, of)
    if not 0 <= share < 1:
        raise ValueError(f"share must lie in 0 ≤ share < 1, got {share}")
    units = pair_units(run, train, per, among)
    pairs = list(itertools.combinations(range(len(units)), 2))
    rows = list(units.values())
    left_out = [*rows, *(np.concatenate([rows[one], rows[other]]) for one, other in pairs)]
    edited = [remove(run.curriculum, some, refill=per == "group") for some in left_out]
    found = many_changes(fitted, run, edited, schedule=schedule, with_residual=False, progress="interactions")
    single, both = found.change[: len(rows)], found.change[len(rows) :]
    first, second = (single[[pair[side] for pair in pairs]] for side in (0, 1))
    uses = np.asarray(run.curriculum.counts().sum(0))
    together = left_out[len(rows) :]
    pair_of = np.repeat(np.arange(len(pairs)), [len(some) for some in together])
    without = np.concatenate(together)
    by = sparse.csr_array((-uses[without], (pair_of, without)), shape=(len(pairs), len(train)))
    frame = banded(fitted, run, found.original, both - first - second, tests, by, train, widened)
    frame = frame.rename(columns={"change": "interaction"})
    at, names = np.array(pairs)[frame.pop("edit")], np.array(list(units), object)
    # one row a pair and set, pair by pair, as the frame has them
    alone, other, without_both = (
        np.stack([change[:, columns].mean(1) for columns in tests.values()], axis=1).ravel()
        for change in (first, second, both)
    )
    frame.insert(0, "first", names[at[:, 0]])
    frame.insert(1, "second", names[at[:, 1]])
    frame.insert(3, "change_first", alone)
    frame.insert(4, "change_second", other)
    frame.insert(5, "change_both", without_both)
    return frame.assign(kind=kinds(alone, other, without_both, share))


def kinds(
    first: npt.ArrayLike, second: npt.ArrayLike, both: npt.ArrayLike, share: float = SHARE
) -> npt.NDArray[np.str_]:
    """Whether two changes are redundant, independent or synergetic, by the change of both together.

    The direction that counts is that of the sum: both together change more in that direction than the sum
    (redundant), or less (synergetic).
    """
    one, other, together = (np.asarray(values, np.float64) for values in (first, second, both))
    beyond = (together - one - other) * np.where(one + other >= 0, 1.0, -1.0)
    tolerance = share * (np.abs(one) + np.abs(other))
    return np.where(beyond > tolerance, REDUNDANT, np.where(beyond < -tolerance, SYNERGETIC, INDEPENDENT))


def pair_units(
    run: Run, train: ExampleTable, per: str, among: Sequence[str] | None
) -> dict[str, npt.NDArray[np.int64]]:
    """The groups or examples of which pairs are asked, by name, as rows of the table.

    Raises ValueError and RunDataError as :func:`interactions` does.
    """
    if per not in PER:
        raise ValueError(f"per must be {' or '.join(map(repr, PER))}, got {per!r}")
    if per == "example" and among is None:
        raise ValueError("name the examples whose pairs are asked about, by their ids: among=")
    if per == "example":
        units = {str(name): train.rows([name]) for name in among or ()}
    elif among is None or run.curriculum.amounts is not None:
        used = used_groups(run, train)[0]
        units = {name: used[name] for name in among or used if name in used}
    else:
        units = {name: train.in_group(name) for name in among}
    if unused := [name for name, rows in units.items() if not np.isin(rows, run.curriculum.examples).any()]:
        raise ValueError(f"{run.id} never used {unused[0]!r}: there is nothing to leave out")
    if len(units) < 2:
        raise ValueError(f"a pair takes two training {per}s, got {', '.join(map(repr, units)) or 'none'}")
    uses = np.asarray(run.curriculum.counts().sum(0))
    if any(
        uses[np.concatenate(pair)].sum() == uses.sum() for pair in itertools.combinations(units.values(), 2)
    ):
        raise ValueError(f"without two of these {per}s nothing would be left of {run.id}")
    return units
