"""Learning rates of recorded runs: their mean over runs, and what they are relative to it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simfluence import Curriculum, Run
from simfluence.errors import RunDataError
from simfluence.runs.schedule import (
    RelativeRates,
    as_schedule,
    edited_rates,
    kept,
    mean_learning_rate,
    recorded_rates,
    stretched,
)

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


def linear(steps: int, warmup: int = 0) -> np.ndarray:
    """As transformers' get_linear_schedule_with_warmup says it, step by step."""
    rising = [step / warmup for step in range(warmup)]
    falling = [(steps - step) / (steps - warmup) for step in range(warmup, steps)]
    return np.array(rising + falling)


@pytest.mark.parametrize("steps", [1, 7, 20, 21, 64])
def test_constant_and_linear_rates_are_stretched_exactly(steps):
    np.testing.assert_allclose(stretched(linear(20), steps), linear(steps), atol=1e-12)
    np.testing.assert_allclose(stretched(np.full(20, 3.0), steps), np.full(steps, 3.0))
    np.testing.assert_allclose(stretched(np.array([3.0]), steps), np.full(steps, 3.0))


@pytest.mark.parametrize("steps", [40, 200])
def test_a_warm_up_that_is_a_share_of_the_steps_is_stretched_too(steps):
    np.testing.assert_allclose(stretched(linear(100, 10), steps), linear(steps, steps // 10), atol=1e-12)


@pytest.mark.parametrize("steps", [5, 12, 40, 200])
def test_a_warm_up_of_so_many_steps_is_kept(steps):
    warmup = min(10, steps)
    found = stretched(linear(100, 10), steps, warmup=10)
    np.testing.assert_allclose(found[:warmup], linear(100, 10)[:warmup])
    np.testing.assert_allclose(found[warmup:], linear(steps, 10)[warmup:] if steps > 10 else [], atol=1e-12)
    trained = dataclasses.replace(run(linear(100, 10)), config={"warmup_steps": 10})
    np.testing.assert_array_equal(edited_rates(trained, steps, "stretch"), found)


@pytest.mark.parametrize("steps", [50, 75, 160])
def test_a_stretched_cosine_is_near_the_recomputed_one(steps):
    cosine = [0.5 * (1 + np.cos(np.pi * np.arange(n) / n)) for n in (75, steps)]
    np.testing.assert_allclose(stretched(cosine[0], steps), cosine[1], atol=1e-3)
    assert (stretched(cosine[0], steps) >= 0).all()


def test_kept_rates_are_the_recorded_ones_and_the_last_goes_on():
    rates = np.array([1.0, 3.0, 2.0])
    np.testing.assert_array_equal(kept(rates, 2), [1, 3])
    np.testing.assert_array_equal(kept(rates, 5), [1, 3, 2, 2, 2])
    np.testing.assert_array_equal(edited_rates(run(rates), 5, "keep"), [1, 3, 2, 2, 2])


def test_equal_length_changes_no_rate():
    rates = np.random.default_rng(0).uniform(0, 1, 9)
    for schedule in ("stretch", "keep"):
        np.testing.assert_allclose(edited_rates(run(rates), 9, schedule), rates, rtol=1e-12)


def test_rates_that_are_not_known_are_none():
    assert recorded_rates(run([NAN, NAN])) is None
    assert edited_rates(run([NAN, NAN]), 4, "stretch") is None
    np.testing.assert_array_equal(edited_rates(run([NAN, NAN], lr=4.0), 3, "keep"), [4, 4, 4])
    np.testing.assert_allclose(recorded_rates(run([1, NAN, 3])), [1, 2, 3])


def test_a_schedule_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"must be 'stretch' .* or 'keep' .*, got 'cosine'"):
        edited_rates(run([1.0, 1.0]), 3, "cosine")
