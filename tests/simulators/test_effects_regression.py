"""The effects regression against dense matrices, brute-force refits and a naive simulation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import ADAM, cut, known_runs, naive_momentum, train
from scipy.special import eval_legendre

from simfluence import Curriculum, RunSet
from simfluence.links import link, unlink
from simfluence.runs import ExampleTable
from simfluence.simulators import EffectsSimulator
from simfluence.simulators.effects.data import TrainingData
from simfluence.simulators.effects.model import EffectsModel, EffectsSettings
from simfluence.simulators.effects.momentum import USUAL
from simfluence.simulators.effects.regression import DRIFT_VARIANCE, EffectsRegression


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def made(rng, n: int, **options) -> EffectsRegression:
    """A regression on runs of different lengths."""
    runs, _ = known_runs(rng, n=n, tests=3, steps=9, runs=4, noise=0.01)
    ragged = RunSet([cut(runs[0], 7), *runs[1:]], runs.train, runs.test)
    data = TrainingData(ragged, np.empty((0, n, 3)), 1000)
    return EffectsRegression(data, EffectsSettings(USUAL, decay=0.3, link="identity", **options))


def dense(regression: EffectsRegression) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(W, Z before whitening, y) in loops; Z's columns are x φ_k for every k, then the drift's."""
    kappa, interval = regression.settings.noise_correlation, regression.interval
    rows = len(interval)
    whitening = np.zeros((rows, rows))
    for j in range(rows):
        whitening[j, j] = 1 / regression.spread[interval[j]]
        if interval[j] > 0:
            whitening[j, j - 1] = -kappa / regression.spread[interval[j - 1]]
    design = []
    for j in range(rows):
        x = regression.centered[j] * regression.scale
        drift = np.sqrt(DRIFT_VARIANCE) * np.eye(regression.intervals)[interval[j]]
        design.append(np.concatenate([*(phi * x for phi in regression.basis[j]), drift]))
    losses = regression.data.recorded.losses
    return whitening, np.array(design), np.concatenate([np.diff(own, axis=0) for own in losses])


@pytest.mark.parametrize("noise_correlation", [0.0, 0.9])
@pytest.mark.parametrize("n", [2, 12])  # fewer and more columns than rows
def test_effects_and_drift_are_the_ridge_solution(rng, n, noise_correlation):
    regression = made(rng, n, noise_correlation=noise_correlation)
    assert (regression.problem.design is None) == (n == 12)
    whitening, design, target = dense(regression)
    z, y = whitening @ design, whitening @ target
    np.testing.assert_allclose(regression.whiten(target), y, atol=1e-12)
    np.testing.assert_allclose(regression.whitener.toarray(), whitening, atol=1e-12)
    rows = regression.data.recorded.rows[1]
    np.testing.assert_allclose(regression.unwhiten(y[rows]), target[rows], atol=1e-12)
    theta = np.linalg.solve(z.T @ z + 0.3 * np.eye(z.shape[1]), z.T @ y)
    effects = theta[: -regression.intervals].reshape(-1, n, 3) * regression.scale
    model = regression.solve(0.3).model
    np.testing.assert_allclose(model.effects, effects, atol=1e-9)
    np.testing.assert_allclose(
        model.drift, np.sqrt(DRIFT_VARIANCE) * theta[-regression.intervals :], atol=1e-9
    )


def test_the_average_step_takes_in_the_centre(rng):
    regression = made(rng, 5)
    np.testing.assert_allclose(regression.centered.sum(0), 0, atol=1e-12)
    assert np.square(regression.centered * regression.scale).sum(1).mean() == pytest.approx(1)


def test_the_spread_of_noise_is_that_between_runs(rng):
    """Where increments of all runs are noise of a size that grows over training."""
    size = np.repeat([0.1, 1.0], 30)[:, None]
    losses = np.cumsum(np.concatenate([np.zeros((40, 1, 3)), size * rng.normal(size=(40, 60, 3))], 1), axis=1)
    runs = RunSet.from_arrays(rng.integers(0, 4, (40, 60, 2)), losses, train=4)
    data = TrainingData(runs, np.empty((0, 4, 3)), 10**6)
    spread = EffectsRegression(data, EffectsSettings(USUAL, link="identity")).spread
    assert np.square(spread).mean() == pytest.approx(1)
    assert spread[45] / spread[15] == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("n", [2, 12])
def test_left_out_rollouts_are_those_of_a_refit(rng, n):
    """To the other runs, with the spread of noise and the centre of x of all runs, as stated."""
    regression = made(rng, n)
    fit = regression.solve(0.3)
    left_out = fit.solution.left_out
    for number in range(1, 4):  # without the short run the grid stays as it is
        refit = EffectsRegression(regression.data.without(np.array([number])), regression.settings)
        for name in ("spread", "center", "scale"):
            refit.__dict__[name] = getattr(regression, name)
        model = refit.solve(0.3, leave_out=False).model
        run = regression.data.train[number]
        simulated = model.simulate([run.curriculum], run.initial_loss[None], np.ones((1, len(run))))[0]
        rows = regression.data.recorded.rows[number]
        residual = np.cumsum(regression.unwhiten(left_out[rows]), axis=0)
        np.testing.assert_allclose(simulated[1:], run.loss[1:] - residual, atol=1e-8)


def test_calibration_is_the_slope_of_left_out_deviations(rng):
    """c_j = Σ d̂ d / Σ d̂², drawn to 1 by the weight of one run, with a window of one point."""
    regression = made(rng, 5)
    fit = regression.solve(10.0)
    losses = regression.data.recorded.losses
    product, square = np.zeros(10), np.zeros(10)
    means = []
    for number in range(4):
        others = [other for other in range(4) if other != number]
        mean = [np.mean([losses[other][0] for other in others], axis=0)]
        for j in range(1, len(losses[number])):
            there = [losses[other] for other in others if len(losses[other]) > j]
            mean.append(mean[-1] + np.mean([other[j] - other[j - 1] for other in there], axis=0))
        means.append(np.array(mean))
        rows = regression.data.recorded.rows[number]
        residual = np.cumsum(regression.unwhiten(fit.solution.left_out[rows]), axis=0)
        rollout = losses[number][1:] - residual
        product[1 : len(rollout) + 1] += ((rollout - mean[1:]) * (losses[number][1:] - mean[1:])).sum(1)
        square[1 : len(rollout) + 1] += np.square(rollout - mean[1:]).sum(1)
    product, square = product[1:], square[1:]
    expected = np.clip((product + square / 4) / (square + square / 4), 0, 2)
    np.testing.assert_allclose(fit.calibration, [1.0, *expected], rtol=1e-9)
    for number, predicted in enumerate(fit.out_of_fold.predicted):
        rows = regression.data.recorded.rows[number]
        residual = np.cumsum(regression.unwhiten(fit.solution.left_out[rows]), axis=0)
        own = means[number][1:]
        rollout = own + fit.calibration[1 : len(own) + 1, None] * (losses[number][1:] - residual - own)
        np.testing.assert_allclose(predicted[1:], rollout, atol=1e-10)


def test_left_out_predictions_do_not_depend_on_the_run(rng):
    """But by the spread of noise and the calibration, which are those of all runs, and are held here."""
    first = made(rng, 5)
    losses = [own.copy() for own in first.data.recorded.losses]
    losses[2][1:] += rng.normal(size=losses[2][1:].shape)
    changed = first.data.without(np.array([], np.int64))
    changed.recorded = dataclasses.replace(changed.recorded, losses=losses)
    second = EffectsRegression(changed, first.settings)
    second.__dict__["spread"] = first.spread
    rollouts = []
    for regression in (first, second):
        rows = regression.data.recorded.rows[2]
        residual = np.cumsum(regression.unwhiten(regression.solve(0.3).solution.left_out[rows]), axis=0)
        rollouts.append(regression.data.recorded.losses[2][1:] - residual)
    np.testing.assert_allclose(rollouts[1], rollouts[0], atol=1e-9)


# --------------------------------------------------------------------------------------- simulate


def naive_losses(
    model: EffectsModel,
    curriculum: Curriculum,
    start: np.ndarray,
    rates: np.ndarray,
    prior: np.ndarray | None,
    weights: np.ndarray | None,
) -> np.ndarray:
    """[step + 1, test], with one loop over steps and one over training examples."""
    name, grid, total = model.settings.link, model.grid, model.grid[-1]
    n, tests = model.effects.shape[1:]
    taken, use = np.zeros((len(curriculum), n)), 0
    for step, batch in enumerate(curriculum):
        for example in batch:
            taken[step, example] += model.batch_size / len(batch) * (1 if weights is None else weights[use])
            use += 1
    acting = naive_momentum(taken, model.settings.momentum.beta, model.settings.momentum.bias_correction)
    variance = model.settings.decay ** np.arange(len(model.effects))
    levels = [link(start, name)]
    for t in range(1, len(curriculum) + 1):
        progress = min((2 * t - 1) / total - 1, 1.0)
        polynomials = [eval_legendre(k, progress) for k in range(6)]
        change = np.zeros(tests)
        if t <= total:
            j = next(j for j in range(len(grid) - 1) if grid[j] < t <= grid[j + 1])
            change += model.drift[j] / (grid[j + 1] - grid[j])
        for i in range(n):
            x = rates[t - 1] * acting[t - 1, i] - model.center[i]
            for k, share in enumerate(variance / variance.sum()):
                change += x * np.sqrt(share * (2 * k + 1)) * polynomials[k] * model.effects[k, i]
            for q, scores in enumerate(model.scores):
                change += (
                    x * scores[i] * sum(polynomials[k] * model.coefficients[3 * q + k] for k in range(3))
                )
        if len(model.coefficients) > 3 * len(model.scores):
            own = model.coefficients[-2:]
            change += (levels[0] - model.initial) * (own[0] + polynomials[1] * own[1])
        levels.append(levels[-1] + change)
    losses = []
    for t, level in enumerate(levels):
        at = min(t, total)
        average = np.array([np.interp(at, grid, column) for column in model.average.T])
        level = average + np.interp(at, grid, model.calibration) * (level - average)
        if prior is not None:
            known = link(prior[t], name) - model.prior_average[at]
            level = level + np.interp(at, grid, model.prior_slope) * known
        losses.append(unlink(level, name))
    return np.array(losses)


@pytest.mark.parametrize("kernel", [None, "scores", "effects"])
@pytest.mark.parametrize("name", ["identity", "log_odds"])
def test_simulating_is_the_naive_loop(rng, kernel, name):
    """With scores, groups, other initial losses and rates, batches of any size, a thinned grid."""
    groups, effects = list("aabbcc"), 0.1 * rng.normal(size=(6, 3))
    batches = [[rng.integers(0, 6, rng.integers(1, 5)) for _ in range(12)] for _ in range(7)]
    losses = [train(some, rng.uniform(4, 5, 3), effects, drift=-0.02, beta=0.9) for some in batches]
    tables = [ExampleTable.numbered(len(own)).frame.assign(group=own) for own in (groups, list("abd"))]
    rates = rng.uniform(1, 2, (7, 12))
    runs = RunSet.from_arrays(
        batches,
        losses,
        train=ExampleTable(tables[0]),
        test=ExampleTable(tables[1]),
        learning_rate=rates,
        optimizer=ADAM,
    )
    runs = RunSet([*runs[:6], cut(runs[6], 9)], runs.train, runs.test)
    fit = EffectsSimulator(-effects, kernel, penalty=0.2, link=name, decay=0.3, max_rows=30).fit(runs)
    model = fit.model_
    assert model.with_initial
    assert len(model.scores) == 2  # given, and shared groups
    assert np.diff(model.grid).max() == 3
    long = Curriculum.from_batches([*batches[0], *batches[1][:4]], 6)
    curricula, given = [long, runs[6].curriculum], rng.uniform(1, 2, (2, 16))
    start = rng.uniform(4, 5, (2, 3))
    simulated = fit.simulate(curricula, start, given)
    relative = given / fit.rates_.usual
    prior = weights = [None, None]
    if kernel is not None:
        prior, weights = (
            fit.dynamics_.simulate(curricula, relative),
            fit.dynamics_.use_weights(curricula, relative),
        )
        relative = np.ones_like(relative)  # which are in the weights
    for run, curriculum in enumerate(curricula):
        expected = naive_losses(model, curriculum, start[run], relative[run], prior[run], weights[run])
        np.testing.assert_allclose(simulated[run, 1 : len(curriculum) + 1], expected[1:], atol=1e-10)
