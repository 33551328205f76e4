"""The deviation family against definitions written out naively, brute-force refits and known effects."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import known_runs, naive_memory, skill

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.ridge import leave_run_out
from simfluence.runs import RunSet
from simfluence.simulators import EffectsSimulator, MeanTrajectory, load_simulator
from simfluence.simulators.effects.features import Features, membership, progress_basis
from simfluence.simulators.effects.grid import record_on_grid, smooth, sum_over_intervals
from simfluence.simulators.effects.momentum import momentum_counts, optimizer_momentum


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---------------------------------------------------------------------------------------- momentum


@pytest.mark.parametrize(("beta", "corrected"), [(0.0, True), (0.9, True), (0.7, False)])
def test_remembered_counts_are_the_moving_average(rng, beta, corrected):
    batches = rng.integers(0, 6, (9, 3))
    curriculum = Curriculum.from_batches(batches, 6)
    expected = naive_memory(batches, 6, beta, corrected)
    np.testing.assert_allclose(momentum_counts(curriculum, beta, corrected, 3), expected, atol=1e-14)


def test_a_corrected_memory_weighs_every_step_like_a_batch(rng):
    curriculum = Curriculum.from_batches([[0], [1, 2], [3, 3, 1]], 4)
    np.testing.assert_allclose(momentum_counts(curriculum, 0.8, True, 2.0).sum(1), 2.0)


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ({"class": "AdamW", "betas": [0.8, 0.999]}, (0.8, True)),
        ({"class": "torch.optim.Adam", "betas": (0.9, 0.99)}, (0.9, True)),
        ({"class": "SGD", "momentum": 0.95}, (0.95, False)),
        ({"class": "SGD"}, (0.0, False)),
        ({}, None),
        ({"class": "Mystery", "betas": [0.5, 0.5]}, None),
    ],
)
def test_memory_follows_from_the_recorded_optimizer(optimizer, momentum):
    assert optimizer_momentum(optimizer) == momentum


# ---------------------------------------------------------------------------------------- blocks


def test_blocks_are_what_they_say():
    curriculum = Curriculum.from_batches([[0, 1], [0, 2], [0, 1]], 3)
    groups = membership(["a", "b", "b"])
    assert groups is not None
    blocks = ("examples", "groups", "seen")
    features = Features(3, blocks, 0.0, True, 2.0, np.array([1.0, 2.0]), groups=groups)(curriculum)
    counts = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 0]]) * np.array([[1], [2], [2]])  # the last rate stays
    np.testing.assert_allclose(features[:, :3], counts)
    np.testing.assert_allclose(features[:, 3:5], counts @ groups)
    known = 1 - np.exp(-np.array([[0, 0, 0], [1, 1, 0], [2, 1, 1]]))
    np.testing.assert_allclose(features[:, 5:], counts * known)


def test_groups_that_tell_nothing_are_no_groups():
    assert membership(["a", "a"]) is None
    assert membership(["a", "b"]) is None


def test_progress_basis_has_mean_variance_one():
    basis = progress_basis(np.arange(1, 2001), 2000, 0.4)
    assert np.square(basis).sum(1).mean() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(
        progress_basis([5, 10, 99], 10, 0.4)[1:].std(0) > 0, np.ones(6, bool) * 0 + [0, 1, 1, 1, 1, 1]
    )
    np.testing.assert_allclose(progress_basis([1, 7], 10, 0.0), 1.0)


# ---------------------------------------------------------------------------------------- design


def test_intervals_add_up(rng):
    features = rng.normal(size=(7, 2))
    grid = np.array([0, 2, 5, 7])
    expected = [features[:2].sum(0), features[2:5].sum(0), features[5:].sum(0)]
    np.testing.assert_allclose(sum_over_intervals(features, grid), expected)
    np.testing.assert_allclose(sum_over_intervals(features[:6], grid), expected[:2])


def test_missing_losses_are_interpolated(rng):
    runs, _ = known_runs(rng, runs=2, steps=6)
    losses = runs.loss
    losses[0, 3, 1] = np.nan
    holed = RunSet.from_arrays(
        [list(c) for c in runs.curricula], losses, train=runs.train, allow_nonfinite=True
    )
    recorded = record_on_grid(holed, 100)
    assert recorded.losses[0][3, 1] == pytest.approx((losses[0, 2, 1] + losses[0, 4, 1]) / 2)
    losses[0, :, 1] = np.nan
    losses[0, 0, 1] = np.inf
    holed = RunSet.from_arrays(
        [list(c) for c in runs.curricula], losses, train=runs.train, allow_nonfinite=True
    )
    with pytest.raises(RunDataError, match="no finite loss"):
        record_on_grid(holed, 100)


def test_the_grid_is_thinned_to_the_rows_allowed(rng):
    runs, _ = known_runs(rng, runs=3, steps=20)
    recorded = record_on_grid(runs, 15)
    assert recorded.grid[0] == 0
    assert recorded.grid[-1] == 20
    assert recorded.runs[-1].stop <= 18


def test_smooth_is_a_moving_average():
    np.testing.assert_allclose(smooth(np.array([0.0, 3.0, 6.0]), 3), [1.0, 3.0, 5.0])


# ------------------------------------------------------------------------------------ dual ridge


def test_leaving_runs_out_in_closed_form_is_refitting(rng):
    rows, tests, q = 24, 3, 2
    root = rng.normal(size=(rows, 10))
    kernel, target = root @ root.T, rng.normal(size=(rows, tests))
    means = rng.normal(size=(rows, q, tests))
    runs = [slice(0, 8), slice(8, 14), slice(14, 24)]
    fit = leave_run_out.solve(leave_run_out.Problem(kernel, target, means, runs), 0.5, pooling=1e-9)
    for run in runs:
        inside = np.ones(rows, bool)
        inside[run] = False
        for z in range(tests):
            inverse = np.linalg.inv(kernel[np.ix_(inside, inside)] + 0.5 * np.eye(inside.sum()))
            h = means[inside, :, z]
            c = np.linalg.solve(h.T @ inverse @ h, h.T @ inverse @ target[inside, z])
            predicted = means[run, :, z] @ c + kernel[run][:, inside] @ inverse @ (target[inside, z] - h @ c)
            np.testing.assert_allclose(fit.left_out[run, z], target[run, z] - predicted, atol=1e-5)


def test_a_penalty_too_small_is_refused():
    singular = leave_run_out.Problem(np.ones((3, 3)), np.ones((3, 1)), np.empty((3, 0, 1)), [slice(0, 3)])
    with pytest.raises(ValueError, match="too small"):
        leave_run_out.solve(singular, 1e-30)


# ------------------------------------------------------------------------------------- simulator


def test_known_effects_are_recovered_up_to_the_average_batch(rng):
    runs, effects = known_runs(rng, runs=20, n=8)
    fit = EffectsSimulator(decay=0.0, penalty=1e-4).fit(runs[:16])
    found = fit.scale_[:, None] * fit.effects_[0]
    np.testing.assert_allclose(found - found.mean(0), effects - effects.mean(0), atol=2e-3)
    assert skill(fit, runs[:16], runs[16:]) > 0.99


def test_memory_matters(rng):
    runs, _ = known_runs(rng, noise=0.002)
    with_memory = skill(EffectsSimulator().fit(runs[:8]), runs[:8], runs[8:])
    without = skill(EffectsSimulator(momentum=0.0, noise_correlation=0.0).fit(runs[:8]), runs[:8], runs[8:])
    assert with_memory > max(0.9, without)


def test_true_scores_make_few_runs_enough(rng):
    runs, effects = known_runs(rng, noise=0.01, n=40)
    few = runs[:4]
    plain = skill(EffectsSimulator().fit(few), few, runs[4:])
    informed = EffectsSimulator(scores=-7 * effects).fit(few)
    assert skill(informed, few, runs[4:]) > max(0.8, plain)
    assert (informed.mean_coefficients_[0] < 0).all()  # positive scores lower losses


def test_left_out_rollouts_are_those_of_refits(rng):
    """Exact but for the spread of noise, centring and calibration, which are those of all runs."""
    runs, _ = known_runs(rng, noise=0.005)
    fit = EffectsSimulator(penalty=0.1).fit(runs)
    refit = EffectsSimulator(penalty=0.1).fit(runs[1:])
    simulated = refit.simulate(runs.curricula[:1], runs.initial_loss[:1])[0]
    deviation = runs.loss[0] - runs[1:].loss.mean(0)
    assert np.abs(simulated - fit.out_of_fold_losses_[0]).max() < 0.1 * np.abs(deviation).max()


def test_an_infinite_penalty_is_the_mean_trajectory(rng):
    runs, _ = known_runs(rng)
    fit = EffectsSimulator(penalty=np.inf).fit(runs)
    mean = MeanTrajectory().fit(runs)
    np.testing.assert_allclose(
        fit.simulate(runs.curricula, runs.initial_loss), mean.simulate(runs.curricula, runs.initial_loss)
    )


@pytest.mark.parametrize("runs_used", [1, 2])
def test_one_or_two_runs_stay_near_the_mean_trajectory(rng, runs_used):
    runs, _ = known_runs(rng)
    train = runs[:runs_used]
    fit = EffectsSimulator().fit(train)
    assert skill(fit, train, runs[2:]) > -0.2


def test_initial_losses_that_differ_are_used(rng):
    runs, _ = known_runs(rng, runs=16)
    losses = runs.loss + rng.normal(size=(16, 1, 5))
    shifted = RunSet.from_arrays(np.array([list(c) for c in runs.curricula]), losses, train=runs.train)
    fit = EffectsSimulator().fit(shifted[:12])
    assert fit.with_initial_
    assert skill(fit, shifted[:12], shifted[12:]) > 0.9


def test_the_log_odds_link_recovers_a_model_in_that_space(rng):
    runs, _ = known_runs(rng, runs=16, noise=0.001)
    losses = np.logaddexp(0, 2 * (runs.loss - 2))
    linked = RunSet.from_arrays(
        np.array([list(c) for c in runs.curricula]),
        losses,
        train=runs.train,
        optimizer={"class": "Adam", "betas": [0.9, 0.9]},
    )
    train, test = linked[:12], linked[12:]
    right = skill(EffectsSimulator(link="log_odds").fit(train), train, test)
    assert right > max(0.95, skill(EffectsSimulator().fit(train), train, test))


def test_runs_of_different_length_recorded_every_third_step(rng):
    runs, _ = known_runs(rng, runs=16)
    shorter = []
    for number, run in enumerate(runs):
        steps = 30 if number % 2 else 24
        at = np.arange(0, steps + 1, 3)
        shorter.append(
            dataclasses.replace(
                run,
                curriculum=Curriculum.from_batches(list(run.curriculum)[:steps], 16),
                metrics={"loss": run.loss[at]},
                evaluated=at,
                learning_rate=run.learning_rate[:steps],
                train_loss=run.train_loss[:steps],
            )
        )
    fit = EffectsSimulator().fit(RunSet(shorter[:12], runs.train, runs.test))
    np.testing.assert_array_equal(fit.grid_, np.arange(0, 31, 3))
    assert skill(fit, runs[:12], runs[12:]) > 0.9


def test_edited_curricula_of_other_lengths_and_batch_sizes(rng):
    runs, _ = known_runs(rng)
    fit = EffectsSimulator(blocks=["seen"]).fit(runs)
    curricula = [
        Curriculum.from_batches([[0]], 16),
        Curriculum.from_batches([[1, 2, 3, 4]] * 45, 16),
    ]
    losses = fit.simulate(curricula, runs.initial_loss[0])
    assert losses.shape == (2, 46, 5)
    assert np.isnan(losses[0, 2:]).all()
    assert np.isfinite(losses[1]).all()


def test_saved_and_loaded_it_says_the_same_and_fits_again(rng, tmp_path):
    runs, effects = known_runs(rng, groups=["a", "b"] * 8)
    fit = EffectsSimulator(scores=[effects, effects**2], blocks=["groups"], penalty=np.inf).fit(runs)
    fit = EffectsSimulator(scores=[effects, effects**2], blocks=["groups"]).fit(runs)
    fit.save(tmp_path / "simulator")
    loaded = load_simulator(tmp_path / "simulator")
    first = fit.simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(loaded.simulate(runs.curricula, runs.initial_loss), first)
    again = loaded.fit(runs).simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(again, first)


def test_bad_input_is_named(rng):
    runs, effects = known_runs(rng)
    for wrong in ({"penalty": 0.0}, {"momentum": 1.0}, {"decay": 1.0}, {"link": "x"}, {"blocks": ["x"]}):
        with pytest.raises(ValueError, match="must"):
            EffectsSimulator(**wrong)
    with pytest.raises(ValueError, match=r"\[train, test\]"):
        EffectsSimulator(scores=effects.T).fit(runs)
    with pytest.raises(ValueError, match="finite"):
        EffectsSimulator(scores=effects * np.nan).fit(runs)
    with pytest.raises(ValueError, match="redundancy"):
        EffectsSimulator(redundancy=effects).fit(runs)


def test_left_out_losses_are_of_every_step(rng):
    runs, _ = known_runs(rng, noise=0.005)
    fit = EffectsSimulator(penalty=0.1, max_rows=len(runs) * 10).fit(runs)
    assert len(fit.grid_) == 11  # of 31
    losses = fit.left_out(runs)
    assert losses.shape == runs.loss.shape
    np.testing.assert_array_equal(losses[:, fit.grid_], fit.out_of_fold_losses_)
    np.testing.assert_allclose(losses[:, 1], (2 * losses[:, 0] + losses[:, 3]) / 3, rtol=1e-12)
