"""What the effects regression is given (grids, what was consumed, groups, priors), written out naively."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from families import counts_of, cut, known_runs, naive_momentum, replaced, with_losses

from simfluence import Curriculum, RunSet
from simfluence.curriculum import count_matrix
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.simulators.effects.data import TrainingData, as_scores, shared_group
from simfluence.simulators.effects.grid import losses_on_grid, mean_over_runs, smooth
from simfluence.simulators.effects.model import progress_basis
from simfluence.simulators.effects.momentum import Momentum
from simfluence.simulators.effects.prior import prior_prediction


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------------- grid


def test_missing_losses_are_interpolated_along_the_mean(rng):
    """Half of two runs' mean is this run, of which no more than a line is known, half the other."""
    runs, _ = known_runs(rng, runs=2, steps=6)
    losses = runs.loss
    losses[0, 3, 1] = np.nan
    recorded = losses_on_grid(with_losses(runs, losses), 100)
    bend = losses[1, 3, 1] - (losses[1, 2, 1] + losses[1, 4, 1]) / 2
    assert recorded.losses[0][3, 1] == pytest.approx((losses[0, 2, 1] + losses[0, 4, 1] + bend) / 2)
    known = np.isfinite(losses)
    np.testing.assert_array_equal(np.stack(recorded.losses)[known], losses[known])
    losses[0, :, 1] = np.nan
    losses[0, 0, 1] = np.inf
    with pytest.raises(RunDataError, match="no finite loss of test example 1"):
        losses_on_grid(with_losses(runs, losses), 100)


def test_the_grid_is_thinned_to_the_rows_allowed(rng):
    runs, _ = known_runs(rng, runs=3, steps=20)
    recorded = losses_on_grid(runs, 15)
    assert recorded.grid[0] == 0
    assert recorded.grid[-1] == 20
    assert recorded.rows[-1].stop <= 18
    for run, losses in zip(runs, recorded.losses, strict=True):
        np.testing.assert_array_equal(losses, run.loss[recorded.grid])


def test_rows_of_runs_of_different_lengths(rng):
    runs, _ = known_runs(rng, runs=3, steps=8)
    ragged = RunSet([cut(runs[0], 8), cut(runs[1], 3), cut(runs[2], 8, every=2)], runs.train, runs.test)
    recorded = losses_on_grid(ragged, 100)
    np.testing.assert_array_equal(recorded.grid, np.arange(9))
    assert [rows.stop - rows.start for rows in recorded.rows] == [8, 3, 8]
    np.testing.assert_array_equal(recorded.interval, [*range(8), *range(3), *range(8)])
    np.testing.assert_array_equal(recorded.losses[2][::2], runs[2].loss[::2])


def test_a_run_without_losses_after_its_start_is_named(rng):
    runs, _ = known_runs(rng, runs=2, steps=4)
    start = dataclasses.replace(runs[1], metrics={"loss": runs[1].loss[:1]}, evaluated=np.arange(1))
    with pytest.raises(RunDataError, match=r"'run-001' has no losses after its first step"):
        losses_on_grid(RunSet([runs[0], start], runs.train, runs.test), 100)


def test_smooth_is_a_moving_average():
    np.testing.assert_allclose(smooth(np.array([0.0, 3.0, 6.0]), 3), [1.0, 3.0, 5.0])


def test_the_mean_over_runs_is_of_those_that_got_so_far():
    short, long = np.array([[1.0], [np.nan]]), np.array([[3.0], [5.0], [7.0]])
    np.testing.assert_allclose(mean_over_runs([short, long]), [[2.0], [5.0], [7.0]])


def test_the_progress_basis_has_mean_variance_one():
    basis = progress_basis(np.arange(1, 2001), 2000, 0.4)
    assert np.square(basis).sum(1).mean() == pytest.approx(1, abs=1e-3)
    assert basis.shape[1] == 6
    assert progress_basis([1], 10, 0.1).shape[1] == 3  # what is negligible is left out
    np.testing.assert_array_equal(
        progress_basis([10, 99], 10, 0.4)[1], progress_basis([11], 10, 0.4)[0]
    )  # after the end
    np.testing.assert_allclose(progress_basis([1, 7], 10, 0.0), 1.0)


# --------------------------------------------------------------------------------------- consumed


@pytest.mark.parametrize("with_rates", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_was_consumed_is_the_definition(rng, with_rates, weighted):
    """Σ r_t m̂_t over intervals of three steps, of batches of different sizes, uses weighted."""
    batches = [[rng.integers(0, 5, rng.integers(1, 5)) for _ in range(9)] for _ in range(3)]
    runs = RunSet.from_arrays(batches, rng.uniform(1, 2, (3, 10, 2)), train=5)
    runs = RunSet(
        [dataclasses.replace(run, learning_rate=rng.uniform(0, 1, 9)) for run in runs], runs.train, runs.test
    )
    data = TrainingData(runs, np.empty((0, 5, 2)), max_rows=9)
    np.testing.assert_array_equal(data.recorded.grid, [0, 3, 6, 9])
    weights = [rng.uniform(0.5, 1, len(run.curriculum.examples)) for run in runs] if weighted else None
    found = data.consumed(Momentum(0.7, True), with_rates, weights)
    usual = float(np.mean([run.learning_rate for run in runs]))
    assert data.batch_size == np.median([len(batch) for run in batches for batch in run])
    for number, run in enumerate(runs):
        taken, use = np.zeros((9, 5)), 0
        for step, batch in enumerate(run.curriculum):
            for example in batch:
                weight = weights[number][use] if weighted else 1.0
                taken[step, example] += weight * data.batch_size / len(batch)
                use += 1
        acting = naive_momentum(taken, 0.7, True)
        if with_rates:
            acting *= run.learning_rate[:, None] / usual
        np.testing.assert_allclose(found[number], acting.reshape(3, 3, 5).sum(1), atol=1e-12)


@pytest.mark.parametrize("max_rows", [1000, 16])
def test_what_was_consumed_between_evaluations_is_spread_evenly(rng, max_rows):
    """On a grid of every step, and on one on which few of the evaluations lie."""
    batches = rng.integers(0, 6, (4, 20, 2))
    runs = RunSet.from_arrays(batches, rng.uniform(1, 2, (4, 21, 3)), train=6)
    uneven = []
    for run, every in zip(runs, [1, 3, 7, 19], strict=True):
        at = np.unique([*range(0, 21, every), 20])
        uneven.append(dataclasses.replace(run, metrics={"loss": run.loss[at]}, evaluated=at))
    data = TrainingData(RunSet(uneven, runs.train, runs.test), np.empty((0, 6, 3)), max_rows)
    grid = data.recorded.grid
    assert (grid[0], grid[-1], len(grid)) == (0, 20, 21 if max_rows == 1000 else 5)
    for run, found in zip(uneven, data.consumed(Momentum(0.8, True), False), strict=True):
        acting = naive_momentum(counts_of(run.curriculum, 6), 0.8, True)
        if not set(grid) <= set(run.evaluated):
            for begin, end in itertools.pairwise(run.evaluated):
                acting[begin:end] = acting[begin:end].mean(0)
        expected = [acting[begin:end].sum(0) for begin, end in itertools.pairwise(grid)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_step_whose_losses_are_all_missing_was_not_evaluated(rng):
    runs, _ = known_runs(rng, runs=2, steps=6)
    losses = runs.loss
    losses[0, 3] = np.nan
    one, other = (
        TrainingData(made, np.empty((0, 16, 5)), 100).consumed(Momentum(0.5, True), False)[0]
        for made in (runs, with_losses(runs, losses))
    )
    np.testing.assert_allclose(other[2:4], np.repeat(one[2:4].mean(0, keepdims=True), 2, axis=0))
    np.testing.assert_array_equal(other[[0, 1, 4, 5]], one[[0, 1, 4, 5]])


def test_every_batch_counts_like_one_of_the_usual_size():
    curriculum = Curriculum.from_batches([[0], [1, 2], [3, 3, 1, 0]], 4)
    found = count_matrix([curriculum], 2.0).toarray()
    np.testing.assert_allclose(found, [[2, 0, 0, 0], [0, 1, 1, 0], [0.5, 0.5, 0, 1]])
    found = count_matrix([curriculum], 2.0, np.arange(7.0)).toarray()
    np.testing.assert_allclose(found, [[0, 0, 0, 0], [0, 1, 2, 0], [3, 2.5, 0, 3.5]])


def test_rates_of_other_runs_stay_what_they_were(rng):
    runs, _ = known_runs(rng, runs=4, steps=6)
    data = TrainingData(replaced(runs, learning_rate=np.linspace(2, 1, 6)), np.empty((0, 16, 5)), 1000)
    others = data.without(np.array([1, 2]))
    assert others.train.ids == ["run-000", "run-003"]
    np.testing.assert_allclose(others.run_rates, data.run_rates[[0, 3]])
    np.testing.assert_allclose(counts_of(list(runs[3].curriculum), 16).sum(), 18)


# ------------------------------------------------------------------------------ scores and groups


def test_shared_groups_count_as_scores(rng):
    def tables(train: list[str], test: list[str]) -> RunSet:
        frames = [ExampleTable.numbered(len(groups)).frame.assign(group=groups) for groups in (train, test)]
        runs, _ = known_runs(rng, runs=2, steps=3, n=len(train), tests=len(test))
        return RunSet(runs.runs, *map(ExampleTable, frames))

    runs = tables(["a", "b", ""], ["b", "a", ""])
    np.testing.assert_array_equal(shared_group(runs), [[0, 1, 0], [1, 0, 0], [0, 0, 0]])
    data = TrainingData(runs, np.empty((0, 3, 3)), 100)
    np.testing.assert_array_equal(data.scores, [shared_group(runs)])
    assert len(TrainingData(runs, np.empty((0, 3, 3)), 100, with_groups=False).scores) == 0
    assert shared_group(tables(["a", "a"], ["a", "a"])) is None  # all alike
    assert shared_group(tables(["a", "b"], ["c", "d"])) is None  # none alike


def test_scores_come_in_any_number_and_units(rng):
    one, other = rng.normal(size=(2, 4, 3))

    class Holder:
        scores = other

    unit = [array / np.sqrt(np.square(array).mean()) for array in (one, other)]
    np.testing.assert_allclose(as_scores([7 * one, Holder()], (4, 3)), unit)
    np.testing.assert_allclose(as_scores(np.stack([one, other]), (4, 3)), unit)
    np.testing.assert_allclose(as_scores(one, (4, 3)), unit[:1])
    assert as_scores(None, (4, 3)).shape == (0, 4, 3)
    np.testing.assert_array_equal(as_scores(np.zeros((4, 3)), (4, 3)), np.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match=r"\[train, test\] = \(4, 3\), got \(3, 4\)"):
        as_scores(one.T, (4, 3))
    with pytest.raises(ValueError, match="finite"):
        as_scores(one * np.nan, (4, 3))


# ------------------------------------------------------------------------------------------ prior


def test_the_prior_prediction_is_scaled_to_what_the_runs_show(rng):
    """c by the formula, smoothed over a window of one point; runs that are left out do not count."""
    predicted = [rng.normal(size=(6, 3)) for _ in range(4)]
    true = [0.7 * own + 0.1 * rng.normal(size=(6, 3)) for own in predicted]
    grid = np.arange(6)

    def slope(numbers: list[int]) -> np.ndarray:
        given, found = np.stack(predicted), np.stack(true)
        d_given, d = given - given.mean(0), found - found.mean(0)
        product = (d_given * d)[numbers].sum((0, 2))
        square = np.square(d_given)[numbers].sum((0, 2))
        extra = square / len(numbers)
        return (product + extra) / (square + extra)

    found = prior_prediction(predicted, true, grid)
    np.testing.assert_allclose(found.average, np.mean(predicted, axis=0))
    np.testing.assert_allclose(found.slope, slope([0, 1, 2, 3]), rtol=1e-9)
    for number, own in enumerate(predicted):
        deviation = own - found.average
        others = [other for other in range(4) if other != number]
        np.testing.assert_allclose(found.runs[number], found.slope[:, None] * deviation)
        np.testing.assert_allclose(found.out_of_fold[number], slope(others)[:, None] * deviation, rtol=1e-9)


def test_a_prior_prediction_that_is_right_is_taken_as_it_is(rng):
    true = [rng.normal(size=(7, 3)) for _ in range(5)]
    found = prior_prediction(true, [own[::3] for own in true], np.array([0, 3, 6]))
    np.testing.assert_allclose(found.slope, 1.0)
    np.testing.assert_allclose(found.runs[2], (true[2] - np.mean(true, axis=0))[::3])


def test_a_prior_prediction_without_differences_changes_nothing(rng):
    true = [rng.normal(size=(4, 3)) for _ in range(5)]
    found = prior_prediction([np.ones((4, 3))] * 5, true, np.arange(4))
    np.testing.assert_array_equal(found.runs, np.zeros((5, 4, 3)))
