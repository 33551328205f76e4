"""Learning rates of recorded runs: their mean over runs, and what they are relative to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simfluence import Curriculum, Run
from simfluence.errors import RunDataError
from simfluence.runs.schedule import RelativeRates, as_schedule, mean_learning_rate

NAN = np.nan


def run(rates, **optimizer) -> Run:
    steps = len(rates)
    return Run(
        id=f"{len(rates)}",
        curriculum=Curriculum.from_batches([[0]] * steps, 1),
        metrics={"loss": np.zeros((steps + 1, 1))},
        evaluated=np.arange(steps + 1),
        learning_rate=np.array(rates, float),
        train_loss=np.full(steps, NAN),
        optimizer=optimizer,
    )


def test_the_mean_is_over_the_runs_that_logged_a_step():
    runs = [run([1, 2, 3]), run([3, NAN, NAN, 8]), run([NAN] * 5)]
    np.testing.assert_allclose(mean_learning_rate(runs), [2, 2, 3, 8, 8])  # the last one goes on


def test_steps_that_nobody_logged_are_interpolated():
    np.testing.assert_allclose(mean_learning_rate([run([NAN, 1, NAN, 3, NAN])]), [1, 1, 2, 3, 3])


def test_a_known_constant_rate_of_the_optimizer_counts():
    runs = [run([NAN, NAN], lr=4.0), run([2, 2, 2])]
    np.testing.assert_allclose(mean_learning_rate(runs), [3, 3, 2])
    np.testing.assert_allclose(mean_learning_rate([run([1, NAN], lr=4.0)]), [1, 1])  # its own log counts more


def test_weights_count_runs_several_times():
    runs = [run([1, 2]), run([4, NAN])]
    np.testing.assert_allclose(
        mean_learning_rate(runs, [2, 1]), mean_learning_rate([runs[0], runs[0], runs[1]])
    )
    np.testing.assert_allclose(mean_learning_rate(runs, [0, 1]), [4, 4])


def test_without_any_rates_nothing_is_known():
    assert np.isnan(mean_learning_rate([run([NAN, NAN])])).all()


def test_given_rates_are_cut_to_the_steps_and_spread_over_the_runs():
    np.testing.assert_array_equal(as_schedule([1, 2, 3], 2, 2), [[1, 2], [1, 2]])
    np.testing.assert_array_equal(as_schedule([[1, 2], [3, 4]], 2, 1), [[1], [3]])
    as_schedule([1, 2, NAN], 2, 2)  # what is cut away does not matter


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([1.0], r"\[step\] = \(2,\) or \[run, step\] = \(3, 2\), got \(1,\)"),
        (np.ones((2, 2)), r"got \(2, 2\)"),
        (0.1, r"got \(\)"),
        ([1.0, -1.0], "finite and not negative"),
        ([1.0, NAN], "finite and not negative"),
        ([np.inf, 1.0], "finite and not negative"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        as_schedule(rates, 3, 2)


def test_relative_rates_are_multiples_of_the_mean():
    runs = [run([1, 3]), run([3, 5, 6])]
    found = RelativeRates.of(runs)
    assert found.usual == pytest.approx(4)
    np.testing.assert_allclose(found.schedule, [0.5, 1, 1.5])
    np.testing.assert_allclose(found.own(runs), [[0.25, 0.75, 1.5], [0.75, 1.25, 1.5]])
    np.testing.assert_allclose(found.at(2, 5)[1], [0.5, 1, 1.5, 1.5, 1.5])
    np.testing.assert_allclose(found.at(2, 2, [8, 4]), [[2, 1], [2, 1]])


def test_a_run_that_logged_nothing_follows_the_mean():
    runs = [run([1, 3]), run([NAN, NAN])]
    np.testing.assert_allclose(RelativeRates.of(runs).own(runs), [[0.5, 1.5], [0.5, 1.5]])


@pytest.mark.parametrize("rates", [[NAN, NAN], [0.0, 0.0]], ids=["unknown", "never trained"])
def test_without_rates_all_are_one_and_none_can_be_given(rates):
    found = RelativeRates.of([run(rates)])
    np.testing.assert_array_equal(found.at(1, 3), np.ones((1, 3)))
    with pytest.raises(RunDataError, match="did not log their learning rates"):
        found.at(1, 2, [0.1, 0.1])


def test_rates_of_zero_stay_zero():
    runs = [run([0, 2]), dataclasses.replace(run([0, 4]), id="other")]
    np.testing.assert_allclose(RelativeRates.of(runs).own(runs), [[0, 4 / 3], [0, 8 / 3]])
