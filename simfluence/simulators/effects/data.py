"""Recorded runs, made ready once for all fits to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import count_matrix, usual_batch_size
from simfluence.links import Link, has_log_odds, link
from simfluence.runs import RunSet
from simfluence.runs.schedule import RelativeRates
from simfluence.simulators.effects.grid import GridLosses, losses_on_grid, spread
from simfluence.simulators.effects.momentum import USUAL, Momentum, recorded_momentum
from simfluence.simulators.state import saved

Array = npt.NDArray[np.float64]

saved(RelativeRates)  # which fitted simulators hold

FEWEST_RUNS = 4
"""Fewer runs are too few to find effects of examples in, and to see how good they are."""


class TrainingData:
    """The runs of a fit.

    Parameters
    ----------
    scores : attribution scores [array, train, test], see :func:`as_scores`; may be empty.
    max_rows : the grid of steps is thinned until all runs have about that many intervals together.
    with_groups : whether shared groups of training and test examples count as scores.

    Attributes
    ----------
    recorded : the losses on the grid. momentum : the optimizer's. rates : relative learning rates;
        run_rates : those of each run [run, step].
    batch_size : the usual one.
    given_scores : as given. scores : the same, and last, where examples share groups, 1 for those pairs.
    with_initial : whether losses before the first step differ enough between runs to be a predictor.
    """

    def __init__(self, train: RunSet, scores: Array, max_rows: int, with_groups: bool = True) -> None:
        self.train, self.max_rows = train, max_rows
        self.recorded: GridLosses = losses_on_grid(train, max_rows)
        self.momentum: Momentum = recorded_momentum(train) or USUAL
        self.rates = RelativeRates.of(train.runs)
        self.run_rates = self.rates.own(train.runs)
        self.batch_size = usual_batch_size(train.curricula)
        self.given_scores, self.with_groups = scores, with_groups
        start = np.stack([losses[0] for losses in self.recorded.losses])
        later = np.concatenate([losses[1:] - start.mean(0) for losses in self.recorded.losses])
        self.with_initial = bool(len(train) > 2 and start.std(0).mean() > 0.02 * later.std(0).mean())

    @cached_property
    def scores(self) -> Array:
        shared = shared_group(self.train) if self.with_groups else None
        return self.given_scores if shared is None else np.concatenate([self.given_scores, shared[None]])

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of training and test examples."""
        return len(self.train.train), len(self.train.test)

    @property
    def has_log_odds(self) -> bool:
        """Whether the recorded losses are like −log p."""
        return has_log_odds(np.concatenate([run.loss.ravel() for run in self.train]))

    def levels(self, name: Link) -> list[Array]:
        """g(L), one [point, test] a run."""
        return [link(losses, name) for losses in self.recorded.losses]

    def without(self, runs: npt.NDArray[np.int64]) -> TrainingData:
        """The other runs, on a grid that is about as fine."""
        others = np.setdiff1d(np.arange(len(self.train)), runs)
        rows = max(self.max_rows * len(others) // len(self.train), 1)
        return TrainingData(self.train[others], self.given_scores, rows)

    def consumed(
        self, momentum: Momentum, with_rates: bool, weights: Sequence[Array] | None = None
    ) -> list[Array]:
        """Σ m̂ over each interval of the grid, one float [interval, train] a run.

        with_rates : whether m̂ is multiplied by the step's relative learning rate.
        weights : [use] of each run, what a use of an example counts; by default 1.
        """
        from simfluence.kernels.momentum import summed_counts  # compiled when first used

        rows = []
        for number, run in enumerate(self.train):
            counts = count_matrix([run.curriculum], self.batch_size, weights[number] if weights else None)
            rates = self.run_rates[number] if with_rates else np.ones(len(run))
            grid = self.recorded.grid[: len(self.recorded.losses[number])]
            evaluated = self.recorded.evaluated[number]
            at_grid = bool(np.isin(grid, evaluated).all())
            own = summed_counts(
                counts.indices,
                counts.indptr,
                counts.data,
                momentum.beta,
                momentum.bias_correction,
                rates,
                grid if at_grid else evaluated,
                self.shape[0],
            )
            rows.append(own if at_grid else spread(own, evaluated, grid))
        return rows


def shared_group(runs: RunSet) -> Array | None:
    """float [train, test]: 1 where both examples are of one group.

    None if that holds for no pair, or for all.
    """
    train, test = (np.asarray(table.groups, dtype=str) for table in (runs.train, runs.test))
    same = (train[:, None] == test[None]) & (train != "")[:, None]
    return same.astype(np.float64) if same.any() and not same.all() else None


def score_arrays(scores: Any, shape: tuple[int, int]) -> Array:
    """[array, train, test] of one or several arrays of scores, or things with an attribute ``scores``; or of
    none.

    Raises ValueError for another shape, or values that are not finite.
    """
    several = scores if isinstance(scores, list | tuple) else [] if scores is None else [scores]
    arrays = [np.asarray(getattr(one, "scores", one)) for one in several]
    if len(arrays) == 1 and arrays[0].ndim == 3:
        arrays = list(arrays[0])
    for array in arrays:
        if array.shape != shape:
            raise ValueError(f"scores must be [train, test] = {shape}, got {array.shape}")
    if not arrays:
        return np.empty((0, *shape))
    stacked = np.stack(arrays, dtype=np.float64, casting="unsafe")  # one copy: they are large
    if not np.isfinite(stacked).all():
        raise ValueError("scores must be finite")
    return stacked


def root_mean_squares(arrays: Array) -> Array:
    """Of each array, at least 1e-300: [array, train, test] → [array]."""
    return np.sqrt([np.vdot(one, one) / max(one.size, 1) for one in arrays]).clip(1e-300)


def as_scores(scores: Any, shape: tuple[int, int]) -> Array:
    """``score_arrays``, each divided by its root mean square."""
    arrays = score_arrays(scores, shape)
    arrays /= root_mean_squares(arrays)[:, None, None]
    return arrays
