"""Losses as functions of what groups have given: known laws, scikit-learn's ridge, and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from simfluence import (
    AutoSimulator,
    Curriculum,
    MeanTrajectory,
    PredictiveBands,
    RunSet,
    ShareSimulator,
    load_simulator,
)
from simfluence.errors import RunDataError
from simfluence.evaluation.metrics import counterfactual_skill
from simfluence.runs import ExampleTable, Run
from simfluence.simulators.shares import consumed_shares, kernel

STEPS, GROUPS = 12, 4


def schedules(count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares [run, step, group] that change once, at a random step."""
    phases = rng.dirichlet(np.ones(GROUPS), (count, 2))
    second = np.arange(STEPS) >= rng.integers(3, 10, count)[:, None]
    return np.where(second[..., None], phases[:, [1]], phases[:, [0]])


def constant(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.repeat(rng.dirichlet(np.ones(GROUPS), (count, 1)), STEPS, axis=1)


def so_far(shares: np.ndarray) -> np.ndarray:
    """The mean shares of the steps up to each."""
    return np.cumsum(shares, axis=1) / np.arange(1, STEPS + 1)[:, None]


def several_phases(count: int, rng: np.random.Generator) -> np.ndarray:
    """Shares that change once or twice."""
    found = np.empty((count, STEPS, GROUPS))
    for run in found:
        changes = np.sort(rng.choice(np.arange(2, STEPS), rng.integers(1, 3), replace=False))
        run[:] = rng.dirichlet(np.ones(GROUPS), 3)[np.searchsorted(changes, np.arange(STEPS), side="right")]
    return found


def mixing_law(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    law = np.random.default_rng(7).normal(0, 0.5, (GROUPS, 3))
    return 1.5 + 2 * np.arange(1, STEPS + 1)[:, None] ** -0.3 * np.exp(so_far(shares) @ law)


def power_laws(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each group's tokens so far lower each loss by a power law: returns diminish."""
    powers = np.random.default_rng(8).uniform(0.1, 0.6, (GROUPS, 3))
    return 1 + ((1 + np.cumsum(shares, axis=1))[..., None] ** -powers).sum(2)


def saturating(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a group can give is bounded, and the less is left the less it gives."""
    fixed = np.random.default_rng(6)
    gains, scales = fixed.uniform(0.1, 1, (GROUPS, 3)), fixed.uniform(1, 8, (GROUPS, 3))
    return 1.5 + (gains * np.exp(-np.cumsum(shares, axis=1)[..., None] / scales)).sum(2)


def forgetting(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A step counts .8 times as much with each step after it."""
    law = np.random.default_rng(9).uniform(0, 0.5, (GROUPS, 3))
    age = np.arange(STEPS)[:, None] - np.arange(STEPS)
    return 1.5 + 2 * np.exp(-np.einsum("ts,rsg->rtg", 0.8**age * (age >= 0), shares) @ law)


def noise(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(1, 2, (*shares.shape[:2], 3))


def recorded(shares: np.ndarray, later: np.ndarray, units: float = 1.0, every: int = 1) -> RunSet:
    """Runs with these losses [run, step, test] after their steps, evaluated every so many."""
    runs = []
    evaluated = np.arange(0, shares.shape[1] + 1, every)
    for number, (of_run, losses) in enumerate(zip(shares, later, strict=True)):
        whole = np.vstack([np.full(losses.shape[1], 5.0), losses])
        unknown = np.full(len(of_run), np.nan)
        curriculum = Curriculum.from_shares(of_run, units)
        metrics = {"loss": whole[evaluated]}
        runs.append(Run(f"run-{number}", curriculum, metrics, evaluated, unknown, unknown))
    return RunSet(runs, ExampleTable.numbered(shares.shape[2]), ExampleTable.numbered(later.shape[2]))


def skill(simulator: ShareSimulator, train: RunSet, test: RunSet) -> float:
    """Of the simulator, fitted here, over the mean trajectory."""
    squares = [
        np.square(one.fit(train).simulate(test.curricula, test.initial_loss) - test.loss)
        for one in (simulator, MeanTrajectory())
    ]
    return float(counterfactual_skill(*squares))


@pytest.mark.parametrize("draw", [constant, schedules])
@pytest.mark.parametrize("law", [mixing_law, power_laws])
def test_known_laws_of_what_was_consumed_so_far_are_found(law, draw) -> None:
    rng = np.random.default_rng(0)
    shares = draw(44, rng)
    runs = recorded(shares, law(shares, rng))
    simulator = ShareSimulator()
    assert skill(simulator, runs[:24], runs[24:]) > 0.97
    assert simulator.recency_ == 0
    assert simulator.error_ < 0.05


@pytest.mark.parametrize("law", [saturating, power_laws])
def test_several_phases_are_predicted_as_well_as_by_ridge_on_shares_and_roots(law) -> None:
    """One ridge regression a step of log losses on the shares of what was consumed so far and their roots."""
    rng = np.random.default_rng(0)
    shares = several_phases(64, rng)
    runs = recorded(shares, law(shares, rng) + rng.normal(0, 0.003, (64, STEPS, 3)))
    features = np.concatenate([so_far(shares), np.sqrt(so_far(shares))], axis=2)
    logs, errors = np.log(runs.loss[:, 1:]), 0.0
    for step in range(STEPS):
        ridge = Ridge(1e-4 * 24).fit(features[:24, step], logs[:24, step])
        predicted = np.exp(ridge.predict(features[24:, step]))
        errors += float(np.square(predicted - runs.loss[24:, step + 1]).sum())
    mean = MeanTrajectory().fit(runs[:24]).simulate(runs[24:].curricula, runs[24:].initial_loss)
    of_ridge = 1 - errors / np.square(mean - runs[24:].loss).sum()
    simulator = ShareSimulator()
    assert skill(simulator, runs[:24], runs[24:]) > max(of_ridge - 0.005, 0.95)
    for group in np.eye(GROUPS):  # further parts of a group help less and less, as in the law
        asked = [p * group + (1 - p) * (1 - group) / (GROUPS - 1) for p in np.linspace(0.05, 0.75, 8)]
        curricula = [Curriculum.from_shares(np.tile(one, (STEPS, 1))) for one in asked]
        losses = simulator.simulate(curricula, runs.initial_loss[0])[:, -1]
        assert (np.diff(losses, 2, axis=0) > 0).mean() > 0.9


def test_forgetting_is_seen_where_shares_change() -> None:
    rng = np.random.default_rng(0)
    shares = schedules(44, rng)
    runs = recorded(shares, forgetting(shares, rng))
    simulator = ShareSimulator()
    chosen = skill(simulator, runs[:24], runs[24:])
    assert simulator.recency_ > 0
    assert chosen > 0.9
    assert chosen > skill(ShareSimulator(recency=0.0), runs[:24], runs[24:])


def test_losses_without_a_pattern_are_the_mean_trajectory() -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shares = constant(16, rng)
        runs = recorded(shares, noise(shares, rng))
        assert skill(ShareSimulator(), runs[:12], runs[12:]) > -0.02


def test_few_runs_are_no_worse_than_their_mean() -> None:
    for count in (2, 3, 4, 5, 6):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            shares = constant(count + 20, rng)
            runs = recorded(shares, power_laws(shares, rng) + rng.normal(0, 0.05, (count + 20, STEPS, 3)))
            assert skill(ShareSimulator(), runs[:count], runs[count:]) > -0.02


def test_predictions_stay_near_what_was_recorded() -> None:
    rng = np.random.default_rng(0)
    shares = constant(12, rng)
    runs = recorded(shares, mixing_law(shares, rng))
    far = Curriculum.from_shares(shares[0], 1000.0)
    losses = ShareSimulator(penalty=1e-4, floor=0.0).fit(runs).simulate([far], runs.initial_loss[0])[0, 1:]
    levels = np.log(runs.loss[:, 1:])
    beyond = np.ptp(levels, axis=0)
    assert (np.log(losses) >= levels.min(0) - beyond - 1e-12).all()
    assert (np.log(losses) <= levels.max(0) + beyond + 1e-12).all()


def test_no_penalty_below_infinity_is_the_mean_trajectory() -> None:
    rng = np.random.default_rng(0)
    shares = schedules(8, rng)
    runs = recorded(shares, mixing_law(shares, rng))
    asked = runs.curricula, runs.initial_loss
    ours = ShareSimulator(penalty=np.inf).fit(runs).simulate(*asked)
    np.testing.assert_allclose(ours, MeanTrajectory().fit(runs).simulate(*asked), rtol=1e-12)


def test_a_step_is_scikit_learns_kernel_ridge() -> None:
    """On centred kernels and targets, which is ridge regression with a free intercept."""
    rng = np.random.default_rng(0)
    shares = constant(20, rng)
    runs = recorded(shares, mixing_law(shares, rng))
    simulator = ShareSimulator(penalty=0.01, floor=0.5).fit(runs[:15])
    last, x = runs.loss[:, -1], shares[:, -1]
    floor = 0.5 * runs[:15].loss[:, 1:].min((0, 1))
    gram = kernel(x, x)
    of_fit = gram[:15, :15].mean(0)
    centred = gram - gram[:, :15].mean(1, keepdims=True) - gram[:15].mean(0) + of_fit.mean()
    targets = np.log(last[:15] - floor)
    penalty = 0.01 * np.trace(centred[:15, :15]) / 15
    reference = KernelRidge(alpha=penalty, kernel="precomputed").fit(
        centred[:15, :15], targets - targets.mean(0)
    )
    expected = np.exp(reference.predict(centred[15:, :15]) + targets.mean(0)) + floor
    simulated = simulator.simulate(runs[15:].curricula, runs[15:].initial_loss)
    np.testing.assert_allclose(simulated[:, -1], expected, rtol=1e-8)


def test_the_error_is_that_of_refits_without_each_run() -> None:
    rng = np.random.default_rng(0)
    shares = schedules(9, rng)
    runs = recorded(shares, power_laws(shares, rng) + rng.normal(0, 0.01, (9, STEPS, 3)))
    simulator = ShareSimulator(penalty=0.03, floor=0.0, recency=1.0).fit(runs)
    squares = {"ours": 0.0, "mean": 0.0}
    for run in range(9):
        others = np.delete(np.arange(9), run)
        ours = ShareSimulator(penalty=0.03, floor=0.0, recency=1.0).fit(runs[others])
        # the same scales as in the fit to all runs
        ours.unit_ = simulator.unit_
        for name, one in (("ours", ours), ("mean", MeanTrajectory().fit(runs[others]))):
            predicted = one.simulate([runs[run].curriculum], runs[run].initial_loss)[0]
            squares[name] += np.square(predicted - runs[run].loss).sum()
    # λ is relative to the kernel's mean variance, which hardly depends on a single run
    assert simulator.error_ == pytest.approx(squares["ours"] / squares["mean"], rel=0.15)


def test_the_scale_of_units_and_the_order_of_groups_change_nothing() -> None:
    rng = np.random.default_rng(0)
    shares = schedules(14, rng)
    losses = power_laws(shares, rng)
    order = rng.permutation(GROUPS)
    simulated = []
    for consumed, units in ((shares, 1.0), (shares, 1e9), (shares[..., order], 1.0)):
        runs = recorded(consumed, losses, units)
        simulated.append(
            ShareSimulator().fit(runs[:10]).simulate(runs[10:].curricula, runs[10:].initial_loss)
        )
    np.testing.assert_allclose(simulated[1], simulated[0], rtol=1e-6)
    np.testing.assert_allclose(simulated[2], simulated[0], rtol=1e-6)


def test_twice_the_units_of_a_run_are_twice_what_it_consumed() -> None:
    shares = schedules(1, np.random.default_rng(0))[0]
    once, twice = (consumed_shares(Curriculum.from_shares(shares, units), 10.0, 1.0) for units in (10, 20))
    np.testing.assert_allclose(twice, 2 * once)
    weights = np.arange(1, STEPS + 1)[:, None]
    np.testing.assert_allclose(once[-1], (weights * shares).sum(0) / weights.sum())


def test_returns_of_a_group_diminish() -> None:
    """More and more of one group in place of the others, under power laws."""
    rng = np.random.default_rng(0)
    shares = constant(40, rng)
    runs = recorded(shares, power_laws(shares, rng))
    part = np.linspace(0.05, 0.7, 10)[:, None, None]
    asked = (1 - part) * [0.0, 1 / 3, 1 / 3, 1 / 3] + part * [1.0, 0, 0, 0]
    curricula = [Curriculum.from_shares(np.repeat(one, STEPS, axis=0)) for one in asked]
    losses = ShareSimulator().fit(runs).simulate(curricula, runs.initial_loss[0])[:, -1]
    true = power_laws(np.repeat(asked, STEPS, axis=1), rng)[:, -1]
    assert np.square(losses - true).mean() < 0.1 * true.var(0).mean()


def test_sparse_evaluation_and_late_steps_of_few_runs() -> None:
    """Losses every fourth step; the last of them of three runs alone."""
    rng = np.random.default_rng(0)
    shares = constant(30, rng)
    runs = recorded(shares, mixing_law(shares, rng), every=4)
    cut = [
        run if number < 3 else Run(run.id, run.curriculum, {"loss": run.loss[:-1]}, run.evaluated[:-1],
                                   run.learning_rate, run.train_loss)
        for number, run in enumerate(runs[:24])
    ]  # fmt: skip
    train, test = RunSet(cut, runs.train, runs.test), runs[24:]
    simulator = ShareSimulator().fit(train)
    assert [one.step for one in simulator.regressions_] == [4, 8, 12]
    assert simulator.regressions_[2].base == 1
    assert skill(simulator, train, test) > 0.97
    late = simulator.simulate(test.curricula, test.initial_loss)[:, -1]
    mean = np.stack([run.loss[-1] for run in cut[:3]]).mean(0)
    last = test.loss[:, -1]
    assert np.square(late - last).sum() < 0.1 * np.square(mean - last).sum()


def test_losses_below_zero_are_regressed_as_they_are() -> None:
    rng = np.random.default_rng(0)
    shares = constant(30, rng)
    runs = recorded(shares, mixing_law(shares, rng) - 3)
    simulator = ShareSimulator()
    assert skill(simulator, runs[:20], runs[20:]) > 0.9
    assert simulator.least_ is None


def test_removing_a_group_is_asked_in_one_line() -> None:
    from simfluence.edit import Edit
    from simfluence.whatif import ask

    rng = np.random.default_rng(0)
    shares = constant(20, rng)
    named = recorded(shares, mixing_law(shares, rng))
    names = [{"id": name, "group": name} for name in ("web", "code", "maths", "books")]
    runs = RunSet(named.runs, ExampleTable.of(names), named.test)
    answer = ask(runs, ShareSimulator(), Edit("remove", groups="code"), train=18)
    without = shares[-1].copy()
    without[:, 1] = 0
    without /= without.sum(1, keepdims=True)
    true = mixing_law(without[None], rng)[0, -1] - mixing_law(shares[-1:], rng)[0, -1]
    np.testing.assert_allclose(answer.changes["change"], true, atol=0.03)


# ------------------------------------------------------------------------------------- by default


def test_auto_takes_shares_and_is_kept_in_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shares = schedules(30, rng)
    runs = recorded(shares, power_laws(shares, rng))
    train, test = runs[:20], runs[20:]
    simulator, alone = AutoSimulator().fit(train), ShareSimulator().fit(train)
    expected = alone.simulate(test.curricula, test.initial_loss)
    np.testing.assert_array_equal(simulator.simulate(test.curricula, test.initial_loss), expected)
    left_out = simulator.out_of_fold(train)[:, 1:] - train.loss[:, 1:]
    assert simulator.error_ == pytest.approx(np.square(left_out).mean(), rel=0.5)
    assert simulator.selection["taken"].tolist() == [False, True]
    simulator.save(tmp_path / "auto.safetensors")
    again = load_simulator(tmp_path / "auto.safetensors")
    np.testing.assert_array_equal(again.simulate(test.curricula, test.initial_loss), expected)
    assert again.notes == []


def test_bands_hold_what_they_promise_and_are_wide_between_evaluations() -> None:
    inside = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        shares = several_phases(60, rng)
        runs = recorded(shares, power_laws(shares, rng) + rng.normal(0, 0.02, (60, STEPS, 3)), every=4)
        bands = PredictiveBands(AutoSimulator()).fit(runs[:20])
        low, high = bands.predict(runs[20:].curricula, runs[20:].initial_loss)
        true = runs[20:].loss
        known = np.isfinite(true)
        known[:, 0] = False
        inside.append(((low <= true) & (true <= high))[known].mean())
        assert ((high - low)[:, 5:] > 0.01).all()
    assert 0.85 < np.mean(inside) < 0.95


def test_losses_without_a_pattern_are_the_mean_trajectory_by_default() -> None:
    rng = np.random.default_rng(0)
    shares = constant(12, rng)
    simulator = AutoSimulator().fit(recorded(shares, noise(shares, rng)))
    assert simulator.taken_ == "mean trajectory"


def test_auto_says_that_scores_were_not_used() -> None:
    rng = np.random.default_rng(0)
    shares = constant(12, rng)
    simulator = AutoSimulator(scores=np.ones((GROUPS, 3))).fit(recorded(shares, power_laws(shares, rng)))
    assert simulator.notes == [
        "the scores were not used: the runs consume shares of groups, not single examples"
    ]


@pytest.mark.parametrize("simulator", [AutoSimulator(), ShareSimulator()])
def test_shares_and_counted_examples_are_not_mixed(simulator) -> None:
    rng = np.random.default_rng(0)
    shares = constant(12, rng)
    runs = recorded(shares, power_laws(shares, rng))
    counted = Curriculum.from_batches([[0, 1]] * STEPS, GROUPS)
    first = runs[0]
    other = Run("counted", counted, first.metrics, first.evaluated, first.learning_rate, first.train_loss)
    mixed = RunSet([*runs, other], runs.train, runs.test)
    with pytest.raises(ValueError, match="12 of 13 curricula consume shares of groups, the others counted"):
        simulator.fit(mixed)


def test_auto_simulates_what_it_was_fitted_to() -> None:
    rng = np.random.default_rng(0)
    shares = constant(12, rng)
    runs = recorded(shares, power_laws(shares, rng))
    counted = Curriculum.from_batches([[0, 1]] * STEPS, GROUPS)
    with pytest.raises(ValueError, match="fitted to runs of shares of groups, but a curriculum is of co"):
        AutoSimulator().fit(runs).simulate([counted], runs.initial_loss[0])
    of_counted = RunSet.from_arrays([[[0], [1]], [[2], [3]]], np.ones((2, 3, 2)), train=GROUPS)
    with pytest.raises(ValueError, match="fitted to runs of counted examples, but a curriculum is of shares"):
        AutoSimulator().fit(of_counted).simulate([runs[0].curriculum], np.ones(2))


@pytest.mark.parametrize(
    "wrong", [{"penalty": 0.0}, {"penalty": -1.0}, {"floor": 1.0}, {"floor": -0.1}, {"recency": -1.0}]
)
def test_hyperparameters_outside_their_range(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShareSimulator(**wrong)


def test_a_test_example_without_losses_is_named() -> None:
    rng = np.random.default_rng(0)
    shares = constant(3, rng)
    losses = mixing_law(shares, rng)
    losses[:, :, 1] = np.nan
    with pytest.raises(RunDataError, match="fewest of '1'"):
        ShareSimulator().fit(recorded(shares, losses))
