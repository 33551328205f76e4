"""Fitting training dynamics: the Jacobian against finite differences, and what runs of a known model give."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from families import cut, replaced, with_losses
from log_linear import MOMENTUM, STEPS, TESTS, TRAIN, log_linear_runs, trained

from simfluence import RunSet
from simfluence.links import link
from simfluence.simulators.dynamics.fit import (
    _CHANGING,
    _NUMBERS,
    KEPT_KNOTS,
    RATE_KNOTS,
    _Curves,
    _Family,
    _LeastSquares,
    explained_share,
    fit_dynamics,
)
from simfluence.simulators.dynamics.model import batches_of
from simfluence.simulators.effects.data import TrainingData


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def data_of(runs: RunSet, max_rows: int = 4000) -> TrainingData:
    return TrainingData(runs, np.empty((0, TRAIN, TESTS)), max_rows)


def ragged_runs(rng, number: int, sizes: tuple[int, ...]) -> tuple[RunSet, np.ndarray]:
    """Runs of different lengths and batch sizes with learning rates, and the true kernel."""
    _, train, test = log_linear_runs(rng, 1)
    batches = [[rng.integers(0, TRAIN, rng.choice(sizes)) for _ in range(12)] for _ in range(number)]
    runs = RunSet.from_arrays(batches, [trained(some, train, test) for some in batches], train=TRAIN)
    cuts = [
        dataclasses.replace(cut(run, 12 - 3 * (at % 3)), learning_rate=rng.uniform(1, 2, 12 - 3 * (at % 3)))
        for at, run in enumerate(runs)
    ]
    return RunSet(cuts, runs.train, runs.test), train @ test.T


@pytest.mark.parametrize("changing", [False, True], ids=["fixed kernel", "changing kernel"])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("sizes", [(3,), (1, 2, 4)], ids=str)
def test_the_jacobian_is_finite_differences(rng, changing, number, sizes):
    runs, kernel = ragged_runs(rng, number, sizes)
    data = data_of(runs)
    curves = _Curves(data, whole=changing)
    family = _Family(-kernel, data, curves)
    free = np.full(_NUMBERS + RATE_KNOTS + KEPT_KNOTS, True)
    free[_CHANGING] = changing
    problem = _LeastSquares(family, curves, free, few=2.0)
    problem.base = family.starts()[4]
    numbers = problem.base[free] + 0.1 * rng.normal(size=free.sum())
    step = 1e-6 * np.eye(len(numbers))
    expected = np.stack(
        [(problem.residuals(numbers + h) - problem.residuals(numbers - h)) / 2e-6 for h in step], axis=1
    )
    found = problem.jacobian(numbers)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-7)
    if number > 1:  # the losses depend on them, not only the penalties; two knots of log γ lie between steps
        losses = expected[: len(expected) - len(family.penalties(problem.base, 2.0))]
        assert (np.abs(losses).max(0) > 1e-7).sum() >= free.sum() - (2 if changing else 3)


def test_the_penalties_are_those_stated(rng):
    """Those of the rates and of κ and β, and those of a changing kernel times ``few``."""
    runs, kernel = ragged_runs(rng, 2, (3,))
    data = data_of(runs)
    family = _Family(-kernel, data, _Curves(data, whole=False))
    numbers = rng.normal(size=_NUMBERS + RATE_KNOTS + KEPT_KNOTS)
    kappa, beta, eta, q = numbers[:_NUMBERS]
    gamma, alpha = np.split(numbers[_NUMBERS:], [RATE_KNOTS])
    usual = 0.5 * np.log(TRAIN / TESTS), np.log(0.9 / 0.1)
    expected = np.square(np.diff(gamma)).mean() / 10
    expected += ((kappa - usual[0]) ** 2 + (beta - usual[1]) ** 2) / 100
    changing = (
        np.square(np.diff(alpha)).mean() + np.square(alpha).mean() / 10 + q**2 / 100 + 3 * eta**2 / 1000
    )
    found = np.square(family.penalties(numbers, 2.5)).sum()
    assert found == pytest.approx(expected + 2.5 * changing)


def test_the_true_kernel_leaves_nothing_and_none_leaves_all(rng):
    runs, train, test = log_linear_runs(rng, 3)
    for few in (runs[:1], runs[:2], runs):
        data = data_of(few)
        curves = _Curves(data, whole=True)
        nothing = np.zeros((len(few), len(curves.points), TESTS))
        assert np.square(curves.wrong(nothing)).sum() == pytest.approx(1)
        true = np.stack([link(run.loss, "log_odds") for run in few])
        exactly = (true - true[:, :1])[:, curves.points]
        assert np.square(curves.wrong(exactly)).sum() < 0.005
        assert fit_dynamics(-train @ test.T, data, changing=True).misfit < 0.05


@pytest.mark.parametrize(("number", "counts"), [(1, 1), (2, 1 / 2), (3, 1 / 3)])
def test_whole_curves_count_as_one_run_of_few(rng, number, counts):
    """A change that all runs share is nothing of deviations, and all of whole curves."""
    runs, _, _ = log_linear_runs(rng, number)
    floored = with_losses(runs, np.maximum(runs.loss, 0.1))
    curves = _Curves(data_of(floored), whole=True)
    true = floored.loss[:, curves.points]
    shared = link(true, "log_odds") - link(true[:, :1], "log_odds") + 0.5
    off = np.log1p(np.exp(link(true, "log_odds") + 0.5)) - true
    share = np.square(off[:, 1:]).sum() / np.square(true - true[:, :1])[:, 1:].sum()
    assert np.square(curves.wrong(shared)).sum() == pytest.approx(counts * share, abs=1e-12)


def test_what_is_predicted_has_the_level_of_the_runs(rng):
    """On log(eᴸ − 1), the mean over the runs at every step; runs end at different steps."""
    runs, train, test = log_linear_runs(rng, 3)
    ragged = RunSet([runs[0], cut(runs[1], 10), runs[2]], runs.train, runs.test)
    dynamics = fit_dynamics(-train @ test.T, data_of(ragged), changing=False).dynamics
    found = np.log(np.expm1(dynamics.simulate(ragged.curricula, np.ones((3, STEPS)))))
    true = link(ragged.loss, "log_odds")
    np.testing.assert_allclose(found[:, :11].mean(0), true[:, :11].mean(0), atol=1e-9)
    np.testing.assert_allclose(found[[0, 2], 11:].mean(0), true[[0, 2], 11:].mean(0), atol=1e-9)


def predicted(dynamics, runs: RunSet) -> np.ndarray:
    return dynamics.simulate(runs.curricula, np.ones((len(runs), STEPS)))


def skill_of(dynamics, fitted: RunSet, test: RunSet) -> float:
    wrong, base = (
        np.square(guess - test.loss).mean() for guess in (predicted(dynamics, test), fitted.loss.mean(0))
    )
    return 1 - wrong / base


def test_effects_whose_spectrum_is_another_are_put_right(rng):
    runs, train, test = log_linear_runs(rng, 16)
    left, values, right = np.linalg.svd(train @ test.T, full_matrices=False)
    flat = (left * values**0.5) @ right
    true, changed, fixed = (
        fit_dynamics(-effects, data_of(runs), changing=changing)
        for effects, changing in ((train @ test.T, False), (flat, True), (flat, False))
    )
    errors = [np.square(predicted(one.dynamics, runs) - runs.loss).mean() for one in (true, changed, fixed)]
    assert changed.numbers[3] > 0.15  # (Σ^½)^{1 + 2q} is to be Σ
    assert errors[1] < 0.5 * errors[2]
    assert (fixed.numbers[_CHANGING] == 0).all()
    assert fixed.dynamics.growth == 0
    assert (fixed.dynamics.kept == 1).all()
    assert (fixed.dynamics.metric == 1).all()


@pytest.mark.parametrize("number", [1, 2])
def test_scores_and_whole_curves_of_few_runs_are_enough(rng, number):
    """What the curves of one or two runs are, is enough to predict others; against the mean of all eight."""
    runs, train, test = log_linear_runs(rng, 8)
    found = fit_dynamics(-7.0 * train @ test.T, data_of(runs[:number]), changing=True, whole=True)
    dynamics = found.dynamics
    assert found.explained > 0.75
    assert skill_of(dynamics, runs, runs[2:]) > 0.85
    own = predicted(dynamics, runs[:number])
    np.testing.assert_allclose(own.mean(0), runs[:number].loss.mean(0), atol=0.02)  # the level is theirs


def test_inner_products_and_a_few_runs_are_enough(rng):
    """The recorded momentum is wrong, and is put right."""
    runs, train, test = log_linear_runs(rng, 8)
    wrongly = replaced(runs, optimizer={"class": "SGD", "momentum": 0.9})
    dynamics = fit_dynamics(-7.0 * train @ test.T, data_of(wrongly[:4]), changing=False).dynamics
    assert skill_of(dynamics, runs[:4], runs[4:]) > 0.97  # not 1: how u and v share sizes is a guess
    assert dynamics.momentum.beta == pytest.approx(MOMENTUM, abs=0.08)
    assert not dynamics.momentum.bias_correction


def test_the_usual_rate_is_that_of_the_runs(rng):
    """Weights of uses are then about the residuals, whatever the units of γ: their mean is that of ρ."""
    runs, kernel = ragged_runs(rng, 3, (2,))
    data = data_of(runs)
    dynamics = fit_dynamics(-kernel, data, changing=False).dynamics
    gamma = [
        data.run_rates[number, : len(run)] * dynamics.profile[: len(run)] for number, run in enumerate(runs)
    ]
    assert dynamics.usual == pytest.approx(np.concatenate(gamma).mean())


def test_a_start_at_the_solution_needs_few_evaluations(rng):
    runs, train, test = log_linear_runs(rng, 4)
    whole = fit_dynamics(-train @ test.T, data_of(runs), changing=True)
    again = fit_dynamics(-train @ test.T, data_of(runs), changing=True, start=whole.numbers, evaluations=2)
    assert again.misfit == pytest.approx(whole.misfit, rel=1e-3)


def test_a_thinned_grid_gives_nearly_the_same(rng):
    runs, train, test = log_linear_runs(rng, 4)
    coarse = fit_dynamics(-train @ test.T, data_of(runs, max_rows=40), changing=True).dynamics
    assert skill_of(coarse, runs, runs) > 0.9


@pytest.mark.parametrize("number", [1, 3])
def test_the_share_that_few_runs_are_explained(rng, number):
    """By the correlations of fluctuations, and of deviations of several runs, written out."""
    runs, train, test = log_linear_runs(rng, number)
    noisy = with_losses(runs, runs.loss * np.exp(rng.normal(0, 0.01, runs.loss.shape)))
    data = data_of(noisy)
    found = fit_dynamics(-train @ test.T, data, changing=True, whole=True).dynamics
    levels = np.stack(data.levels("log_odds"))
    changed = found.changed(batches_of(noisy.curricula), data.recorded.grid, np.ones((number, STEPS)))

    def fluctuations(run):
        increments = np.diff(run, axis=0)
        half = max(len(run) // 6, 5) // 2
        padded = np.pad(increments, ((half, half), (0, 0)), mode="edge")
        means = [padded[t : t + 2 * half + 1].mean(0) for t in range(len(increments))]
        return increments - np.stack(means)

    pairs = [[np.concatenate([fluctuations(run) for run in runs]).ravel() for runs in (levels, changed)]]
    if number > 1:
        pairs.append([(runs - runs.mean(0)).ravel() for runs in (levels, changed)])
    shares = [(true @ guess) ** 2 / (true @ true) / (guess @ guess) for true, guess in pairs]
    assert explained_share(found, data) == pytest.approx(np.mean(shares), rel=1e-6)
    assert 0.1 < np.mean(shares) < 0.99


@pytest.mark.parametrize("number", [1, 3])
def test_deviations_of_few_runs_are_multiplied_by_the_root_of_what_is_explained(rng, number):
    runs, train, test = log_linear_runs(rng, number)
    wrong = train @ test.T + 0.7 * np.linalg.norm(train @ test.T) * rng.normal(size=(TRAIN, TESTS)) / 20
    found = fit_dynamics(-wrong, data_of(runs), changing=True, whole=True)
    kernel = found.dynamics.train @ found.dynamics.test.T
    assert 0.05 < found.explained < 0.95
    size = np.sqrt(found.explained) / np.sqrt(np.square(wrong).mean())
    np.testing.assert_allclose(kernel, size * wrong, rtol=1e-6, atol=1e-9)


def test_what_is_at_odds_with_the_fluctuations_explains_nothing(rng):
    runs, train, test = log_linear_runs(rng, 1)
    right = fit_dynamics(-train @ test.T, data_of(runs), changing=True, whole=True).dynamics
    assert explained_share(right, data_of(runs)) > 0.75
    assert explained_share(dataclasses.replace(right, test=-right.test), data_of(runs)) == 0


def test_a_curve_that_all_test_examples_share_explains_nothing(rng):
    """Losses of few points, which any kernel meets whose effects have one sign."""
    (run,) = runs = log_linear_runs(rng, 1)[0]
    at = np.array([0, 3, 12, STEPS])
    curve = 1 + np.exp(-at / 10)[:, None] + 0.01 * rng.normal(size=(len(at), TESTS))
    few = dataclasses.replace(run, evaluated=at, metrics={"loss": curve})
    data = data_of(RunSet([few], runs.train, runs.test))
    found = fit_dynamics(-rng.uniform(0.5, 1.5, (TRAIN, TESTS)), data, changing=True, whole=True)
    assert explained_share(found.dynamics, data) < 0.3


def test_what_was_learnt_does_not_grow_by_itself(rng):
    """α ≤ 1, also where deviations between the recorded runs grow faster than training makes them."""
    runs, train, test = log_linear_runs(rng, 6)
    level = link(runs.loss, "log_odds")
    growing = level.mean(0) + (level - level.mean(0)) * np.linspace(1, 4, STEPS + 1)[:, None]
    data = data_of(with_losses(runs, np.log1p(np.exp(growing))))
    kept = fit_dynamics(-train @ test.T, data, changing=True).dynamics.kept
    assert kept.max() <= 1
    assert kept.max() > 0.98
