"""The default simulator finds what made the runs, and leaves alone what helps nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import known_runs, replaced, skill, with_losses
from log_linear import RATE, STEPS, TESTS, TRAIN, log_linear_runs, trained
from safetensors.numpy import load_file
from scipy import stats

from simfluence import RunSet, load_simulator
from simfluence.edit import Edit
from simfluence.errors import NotFittedError, RunDataError
from simfluence.links import link
from simfluence.runs import ExampleTable
from simfluence.simulators import AutoSimulator, DynamicsSimulator, EffectsSimulator, MeanTrajectory
from simfluence.simulators.auto import _is_less
from simfluence.whatif import what_if

RUNS = Path(__file__).parents[2] / "runs"
MEAN = "mean trajectory"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def recorded(name: str, scores: str = "scores") -> tuple[RunSet, np.ndarray]:
    """A committed run set, and its attribution scores."""
    return RunSet.load(RUNS / name), load_file(RUNS / name / f"{scores}.safetensors")["scores"]


# ------------------------------------------------------------------------------- what it consists of


def test_it_answers_counterfactuals_of_a_known_model(rng):
    runs, _ = known_runs(rng, noise=0.003)
    fit = AutoSimulator().fit(runs[:8])
    assert skill(fit, runs[:8], runs[8:]) > 0.8
    names = [MEAN, "effects with dynamics", "effects"]
    pairs = [f"{one} and {other}" for one, other in itertools.combinations(names, 2)]
    assert list(fit.candidates_) == [*names, *pairs]


def test_it_predicts_the_mean_of_its_members(rng):
    """They are fitted simulators as any others, in a list."""
    runs, effects = known_runs(rng, noise=0.02, runs=10, n=10)
    fit = AutoSimulator(-effects).fit(runs[:8])
    assert isinstance(fit.members_, list)
    fit.members_ = [make.fit(runs[:8]) for make in (EffectsSimulator(), DynamicsSimulator(-effects))]
    asked = runs.curricula, runs.initial_loss + 0.1
    own = [member.simulate(*asked) for member in fit.members_]
    np.testing.assert_allclose(fit.simulate(*asked), (own[0] + own[1]) / 2, rtol=1e-12)
    with pytest.raises(RunDataError, match="not those of these runs"):
        fit.members_[0].check_examples(RunSet(runs.runs, ExampleTable.numbered(10, "other-"), runs.test))


@pytest.mark.parametrize("validation", [0, 2])
def test_the_candidate_with_the_smallest_error_is_taken(rng, validation):
    """The error is that of out-of-fold predictions, and of validation runs if there are any."""
    runs, effects = known_runs(rng, noise=0.02, runs=12, n=10)
    train, other = runs[:8], runs[8 : 8 + validation]
    scores = -effects + 0.05 * rng.normal(size=effects.shape)
    fit = AutoSimulator(scores).fit(train, other)
    table = fit.selection
    assert len(table) == 10  # four candidates and their pairs
    assert dict(zip(table["candidate"], table["error"], strict=True)) == fit.candidates_
    assert table["taken"].sum() == 1
    assert table.loc[table["taken"], "error"].iloc[0] == fit.error_ == table["error"].min()
    error = np.square(fit.out_of_fold(train) - train.loss)[:, 1:].mean()
    if validation:
        wrong = np.square(fit.simulate(other.curricula, other.initial_loss) - other.loss)[:, 1:].mean()
        error = (8 * error + validation * wrong) / (8 + validation)
    assert fit.error_ == pytest.approx(error)


def test_candidates_are_the_simulators_that_their_names_say(rng):
    runs, effects = known_runs(rng, noise=0.02, n=10)
    fit = AutoSimulator(-effects).fit(runs[:8])
    for name, simulator in (
        (MEAN, EffectsSimulator(penalty=np.inf, link="identity")),
        ("effects", EffectsSimulator(-effects)),
        ("effects with dynamics", EffectsSimulator(-effects, "effects")),
        ("scores with dynamics", EffectsSimulator(-effects, "scores")),
    ):
        assert fit.candidates_[name] == pytest.approx(simulator.fit(runs[:8]).error_, rel=1e-9)


def test_asking_before_fitting():
    with pytest.raises(NotFittedError):
        _ = AutoSimulator().selection
    with pytest.raises(NotFittedError):
        AutoSimulator().save("nowhere")


# ----------------------------------------------------------------------------------- what helps nothing


def test_runs_that_differ_by_noise_alone_give_the_mean_trajectory():
    taken, skills = [], []
    for seed in range(4):
        runs, _ = known_runs(np.random.default_rng(seed), noise=0.05, effects=np.zeros((16, 5)))
        fit = AutoSimulator().fit(runs[:8])
        taken += fit.selection.query("taken")["candidate"].tolist()
        skills.append(skill(fit, runs[:8], runs[8:]))
    assert len(taken) == 4  # one each, also where several are equally good
    assert all(MEAN in name for name in taken)  # at most half of anything else
    assert min(skills) > -0.05


def test_one_test_example_and_many_training_examples_are_not_explained_by_luck():
    """Of eight runs and one test example the least error may be luck; the mean trajectory stays then."""
    taken, lucky = [], 0
    for seed in range(8):
        runs, _ = known_runs(np.random.default_rng(seed), noise=0.05, effects=np.zeros((200, 1)))
        fit = AutoSimulator().fit(runs[:8])
        taken.append(fit.taken_)
        lucky += min(fit.candidates_.values()) < fit.candidates_[MEAN]
    assert lucky > 2
    assert taken.count(MEAN) >= 7


@pytest.mark.parametrize("seed", range(20))
def test_less_by_a_paired_t_test(seed):
    rng = np.random.default_rng(seed)
    errors, gains = rng.uniform(1, 2, 3 + seed % 5), rng.uniform(-0.3, 0.9, 3 + seed % 5)
    others = errors + gains
    expected = stats.ttest_rel(errors, others, alternative="less").pvalue < 0.05
    assert _is_less(errors, others) == expected


def test_the_same_gain_in_every_run_is_a_gain():
    same = np.ones(4)
    assert _is_less(same, 2 * same)
    assert not _is_less(same, same)
    assert not _is_less(2 * same, same)
    assert not _is_less(np.array([1.0]), np.array([2.0]))
    assert not _is_less(np.array([np.nan, 1.0]), np.array([2.0, 2.0]))


def test_the_mean_trajectory_is_that_of_the_losses_whatever_a_run_starts_from(rng):
    """As the baseline of this name, which every skill is relative to."""
    runs, _ = known_runs(rng, noise=0.02, n=10)
    for number in (1, 5):
        fit = EffectsSimulator(penalty=np.inf, link="identity").fit(runs[:number])
        asked = runs.curricula, runs.initial_loss + 0.3
        same = MeanTrajectory().fit(runs[:number]).simulate(*asked)
        np.testing.assert_allclose(fit.simulate(*asked), same, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("true_effects", [True, False])
def test_useless_scores_do_not_hurt(seed, true_effects):
    """Out of fold never worse than the mean trajectory, and on new runs about as good as without scores."""
    rng = np.random.default_rng(seed)
    runs, effects = known_runs(rng, noise=0.02, effects=None if true_effects else np.zeros((16, 5)))
    train, test = runs[:8], runs[8:]
    fit = AutoSimulator(rng.normal(size=effects.shape)).fit(train)
    mean = EffectsSimulator(penalty=np.inf, link="identity").fit(train)
    own, base = (np.square(one.out_of_fold(train) - train.loss)[:, 1:].mean() for one in (fit, mean))
    assert own <= base * (1 + 1e-12)
    without = AutoSimulator().fit(train)
    assert skill(fit, train, test) > min(skill(without, train, test), 0) - 0.15


def test_scores_of_zero_are_no_disaster(rng):
    runs, _ = known_runs(rng, noise=0.01)
    fit, plain = AutoSimulator(np.zeros((16, 5))).fit(runs[:8]), AutoSimulator().fit(runs[:8])
    assert fit.error_ <= plain.error_
    assert skill(fit, runs[:8], runs[8:]) > skill(plain, runs[:8], runs[8:]) - 0.1


# ---------------------------------------------------------------------------------------- what helps


def test_true_scores_help(rng):
    runs, effects = known_runs(rng, noise=0.01, n=40)
    plain, informed = (
        skill(AutoSimulator(scores).fit(runs[:6]), runs[:6], runs[6:]) for scores in (None, -effects)
    )
    assert informed > plain + 0.2


def test_groups_shared_with_test_examples_help(rng):
    groups = [f"g{i % 5}" for i in range(40)]
    effects = np.array([[-0.05 * (i % 5 == z) for z in range(5)] for i in range(40)])
    runs, _ = known_runs(rng, n=40, effects=effects, noise=0.02, groups=groups)
    test = ExampleTable(pd.DataFrame({"id": list("abcde"), "group": [f"g{z}" for z in range(5)]}))
    grouped = RunSet(runs.runs, runs.train, test)
    known = skill(AutoSimulator().fit(grouped[:5]), runs[:5], runs[5:])
    assert known > skill(AutoSimulator().fit(runs[:5]), runs[:5], runs[5:]) + 0.2


def test_validation_runs_may_choose(rng):
    runs, _ = known_runs(rng)
    fit = AutoSimulator().fit(runs[:6], runs[6:8])
    assert skill(fit, runs[:6], runs[8:]) > 0.6


def test_effects_beside_dynamics_of_scores_on_recorded_runs():
    """At a high rate, where effects found in the runs alone predict little."""
    runs, scores = recorded("copa-minilm-high-rate")
    train, test = runs[:8], runs[8:22]
    fit = AutoSimulator(scores, max_rows=400).fit(train)
    assert "scores" in [member.kernel for member in fit.members_]
    assert skill(fit, train, test) > 0.2


# ------------------------------------------------------------------------------------------- few runs


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("kind", ["none", "useless"])
def test_few_runs_without_good_scores_stay_near_their_mean(number, kind):
    """Chance is what the scores do for other examples: of so few runs not always right, but mostly."""
    skills = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        runs, effects = known_runs(rng, noise=0.02, n=40)
        scores = rng.normal(size=effects.shape) if kind == "useless" else None
        skills.append(skill(AutoSimulator(scores).fit(runs[:number]), runs[:number], runs[4:]))
    assert np.median(skills) > -0.1


@pytest.mark.parametrize("number", [2, 3])
def test_few_runs_and_scores_are_enough(number, tmp_path):
    """Effects fitted to two of these recorded runs were at -.69."""
    runs, scores = recorded("rte-minilm")
    fit = AutoSimulator(scores).fit(runs[:number])
    assert [type(one) for one in fit.members_] == [DynamicsSimulator]
    assert skill(fit, runs[:number], runs[22:]) > 0.8
    assert fit.selection["candidate"].tolist() == ["scores with dynamics"]
    assert 0.9 < fit.explained_ < 1
    asked = runs[22:].curricula, runs[22:].initial_loss
    again = DynamicsSimulator(scores).fit(runs[:number])
    np.testing.assert_allclose(fit.simulate(*asked), again.simulate(*asked), rtol=1e-9)
    np.testing.assert_allclose(fit.refit(runs[:number]).simulate(*asked), fit.simulate(*asked), rtol=1e-9)
    fit.save(tmp_path / "auto")
    np.testing.assert_array_equal(load_simulator(tmp_path / "auto").simulate(*asked), fit.simulate(*asked))


@pytest.mark.parametrize("name", ["rte-minilm", "copa-minilm"])
def test_one_run_and_scores_answer_what_ifs(name):
    """Against the mean of twenty runs; that one run's own course is at -.5 to -.7."""
    runs, scores = recorded(name, "scores_adam")
    held_out = runs[22:]
    fit = AutoSimulator(scores).fit(runs[:1])
    predicted = fit.simulate(held_out.curricula, held_out.initial_loss)
    errors = [np.square(guess - held_out.loss).mean() for guess in (predicted, runs[:20].loss.mean(0))]
    assert 1 - errors[0] / errors[1] > 0.8
    own = fit.simulate(runs[:1].curricula, runs[:1].initial_loss)
    np.testing.assert_allclose(own, runs[:1].loss, atol=1e-6)


def test_shared_groups_are_no_part_of_the_kernel_of_few_runs(rng):
    """The kernel is the given scores, with or without groups."""
    runs, train, test = log_linear_runs(rng, 2)
    frames = [table.frame.assign(group=["a", "b"] * (len(table) // 2)) for table in (runs.train, runs.test)]
    grouped = RunSet(runs.runs, *map(ExampleTable, frames))
    asked = runs.curricula, runs.initial_loss
    plain, known = (AutoSimulator(train @ test.T).fit(some).simulate(*asked) for some in (runs, grouped))
    np.testing.assert_array_equal(plain, known)


def test_one_run_and_useless_scores_go_as_that_run_went(rng):
    runs, _, _ = log_linear_runs(rng, 2)
    useless = np.random.default_rng(7).normal(size=(TRAIN, TESTS))
    for scores in (useless, None):
        fit = AutoSimulator(scores).fit(runs[:1])
        assert fit.selection["taken"].tolist() == [True]
        predicted = fit.simulate(runs[1:].curricula, runs[1:].initial_loss)
        np.testing.assert_allclose(predicted[0], runs[0].loss, atol=1e-6)
        assert bool(fit.notes) == (scores is not None)
        assert all("of what is peculiar to the one run" in note for note in fit.notes)


def test_scores_that_explain_a_part_of_one_run_move_it_by_that_part(rng):
    """Half of each score is noise; answers say the share, and are damped by it."""
    runs, train, test = log_linear_runs(rng, 2)
    scores = train @ test.T
    noise = np.random.default_rng(7).normal(size=scores.shape) * scores.std()
    whole, part = (AutoSimulator(some).fit(runs[:1]) for some in (scores, scores + noise))
    assert whole.explained_ > 0.75 > 0.6 > part.explained_ > 0.05
    assert f"{part.explained_:.0%} of what is peculiar to the one run" in part.notes[0]
    moves = [
        np.square(fit.simulate(runs[1:].curricula, runs[1:].initial_loss)[0] - runs[0].loss).mean()
        for fit in (whole, part)
    ]
    assert moves[1] < moves[0]
    answer = what_if(part, runs[1], Edit("shuffle").apply(runs[1], runs.train))
    assert set(part.notes) <= set(answer.notes)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6])
def test_scores_of_a_run_with_a_reversed_kernel_do_no_harm(rng, number):
    """Scores with the wrong sign: the mean of the runs is predicted, or nearly so."""
    runs, train, test = log_linear_runs(rng, 10)
    fit = AutoSimulator(-train @ test.T).fit(runs[:number])
    assert skill(fit, runs[:number], runs[6:]) > -0.02


def test_initial_losses_that_differ_shift_what_one_run_and_scores_predict(rng):
    """The log-odds, by what those before the first step differ by."""
    runs, train, test = log_linear_runs(rng, 1)
    fit = AutoSimulator(train @ test.T).fit(runs)
    assert isinstance(fit.members_[0], DynamicsSimulator)
    plain = fit.simulate(runs.curricula, runs.initial_loss)[0]
    moved = fit.simulate(runs.curricula, runs.initial_loss + 0.3)[0]
    shift = (link(runs.initial_loss + 0.3, "log_odds") - link(runs.initial_loss, "log_odds"))[0]
    np.testing.assert_allclose(np.log(np.expm1(moved)), np.log(np.expm1(plain)) + shift, atol=1e-9)


# -------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("number", [2, 8])
def test_the_learning_rate_scales_what_is_predicted(rng, number):
    """Against training that went at half the rate."""
    runs, train, test = log_linear_runs(rng, 12)
    logged = replaced(runs, learning_rate=np.full(STEPS, RATE))
    fit = AutoSimulator(train @ test.T).fit(logged[:number])
    asked = runs[8:].curricula, runs[8:].initial_loss
    slower = np.stack([trained(run.curriculum, train, test, RATE / 2) for run in runs[8:]])
    usual, half = fit.simulate(*asked), fit.simulate(*asked, learning_rate=np.full(STEPS, RATE / 2))
    wrong = [np.square(losses - losses.mean(0) - slower + slower.mean(0)).mean() for losses in (usual, half)]
    assert wrong[1] < 0.5 * wrong[0]


@pytest.mark.parametrize(("few", "least"), [(8, 0.5), (2, 0.1)])
def test_losses_below_zero_and_single_zeros_are_no_obstacle(rng, few, least):
    runs, effects = known_runs(rng, noise=0.01)
    losses = runs.loss.copy()
    losses[0, 9, 1] = 0
    for changed in (with_losses(runs, losses), with_losses(runs, runs.loss - 5)):
        fit = AutoSimulator(-effects).fit(changed[:few])
        assert skill(fit, changed[:few], changed[8:]) > least
