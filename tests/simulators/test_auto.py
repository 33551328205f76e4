"""The simulator that chooses itself finds what made the runs, and leaves alone what tells nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import known_runs, skill
from safetensors.numpy import load_file

from simfluence.errors import NotFittedError, RunDataError
from simfluence.runs import RunSet
from simfluence.simulators import AutoSimulator, DynamicsSimulator, EffectsSimulator, load_simulator


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def test_it_answers_counterfactuals_of_a_known_model(rng):
    runs, _ = known_runs(rng, noise=0.003)
    fit = AutoSimulator().fit(runs[:8])
    assert skill(fit, runs[:8], runs[8:]) > 0.9
    assert fit.selection["kept"].iloc[0]
    assert fit.error_ == pytest.approx(fit.selection.query("kept")["error"].iloc[-1])
    assert "momentum 0.9" in fit.explain()


def test_an_unknown_optimizer_is_found_out(rng):
    runs, _ = known_runs(rng, beta=0.0, optimizer=None, noise=0.003)
    fit = AutoSimulator().fit(runs[:9])
    assert fit.settings_["momentum"] == 0.0
    assert skill(fit, runs[:9], runs[9:]) > 0.8


def test_scores_are_used_where_they_help_and_dropped_where_not(rng):
    runs, effects = known_runs(rng, noise=0.02, n=40)
    assert AutoSimulator(scores=-effects).fit(runs[:6]).settings_["means"] == (0,)
    noise = rng.normal(size=effects.shape)
    both = AutoSimulator(scores=[noise, -effects]).fit(runs[:6])
    assert 1 in both.settings_["means"]


def test_runs_that_differ_by_noise_alone_give_the_mean_trajectory(rng):
    runs, _ = known_runs(rng, noise=0.05, effects=np.zeros((16, 5)))
    fit = AutoSimulator().fit(runs[:8])
    assert skill(fit, runs[:8], runs[8:]) > -0.1


@pytest.mark.parametrize("runs_used", [1, 2, 3])
def test_few_runs_are_no_disaster(rng, runs_used):
    runs, _ = known_runs(rng)
    fit = AutoSimulator().fit(runs[:runs_used])
    assert skill(fit, runs[:runs_used], runs[4:]) > -0.2


@pytest.mark.parametrize(("runs_used", "at_least"), [(2, 0.8), (3, 0.8)])
def test_two_runs_and_scores_are_answered_by_what_the_scores_know(runs_used, at_least, tmp_path):
    """Effects fitted to two of these runs were at -.69: left-out runs cannot choose among so few."""
    folder = Path(__file__).parents[2] / "runs" / "rte-minilm"
    runs, scores = RunSet.load(folder), load_file(folder / "scores.safetensors")["scores"]
    noise = np.random.default_rng(0).normal(size=scores.shape)
    fit = AutoSimulator(scores=[scores, noise]).fit(runs[:runs_used])
    assert skill(fit, runs[:runs_used], runs[22:]) > at_least
    assert fit.selection.query("kept")["change"].tolist() == ["dynamics of the scores alone: few runs"]
    fit.save(tmp_path / "auto")
    asked = runs[22:].curricula, runs[22:].initial_loss
    np.testing.assert_array_equal(load_simulator(tmp_path / "auto").simulate(*asked), fit.simulate(*asked))
    np.testing.assert_allclose(fit.refit(runs[:runs_used]).simulate(*asked), fit.simulate(*asked))


def test_validation_runs_check_effects_that_two_runs_alone_cannot():
    folder = Path(__file__).parents[2] / "runs" / "rte-minilm"
    runs, scores = RunSet.load(folder), load_file(folder / "scores.safetensors")["scores"]
    fit = AutoSimulator(scores=scores).fit(runs[:2], runs[2:6])
    assert np.isfinite(fit.selection["penalty"]).any()
    assert skill(fit, runs[:2], runs[22:]) > 0.85


def test_scores_that_know_nothing_are_left_alone_by_two_runs():
    """Told from chance by giving them to other examples: not always right about so little, but mostly."""
    skills = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        runs, effects = known_runs(rng, noise=0.02, n=40)
        fit = AutoSimulator(scores=rng.normal(size=effects.shape)).fit(runs[:2])
        skills.append(skill(fit, runs[:2], runs[4:]))
    assert np.median(skills) > -0.2


def test_groups_shared_with_test_examples_are_found(rng):
    import pandas as pd

    from simfluence.runs import ExampleTable

    groups = [f"g{i % 5}" for i in range(40)]
    effects = np.array([[-0.05 * (i % 5 == z) for z in range(5)] for i in range(40)])
    runs, _ = known_runs(rng, n=40, effects=effects, noise=0.02, groups=groups)
    test = ExampleTable(pd.DataFrame({"id": list("abcde"), "group": [f"g{z}" for z in range(5)]}))
    runs = RunSet(runs.runs, runs.train, test)
    fit = AutoSimulator().fit(runs[:5])
    assert fit.settings_["means"] == (0,)
    assert skill(fit, runs[:5], runs[5:]) > 0.6


def test_validation_runs_choose_if_given(rng):
    runs, _ = known_runs(rng)
    fit = AutoSimulator().fit(runs[:6], runs[6:8])
    assert skill(fit, runs[:6], runs[8:]) > 0.8


def test_saved_and_loaded(rng, tmp_path):
    runs, effects = known_runs(rng, noise=0.01)
    fit = AutoSimulator(scores=-effects).fit(runs[:6])
    fit.save(tmp_path / "auto")
    loaded = load_simulator(tmp_path / "auto")
    assert isinstance(loaded, AutoSimulator)
    assert loaded.explain() == fit.explain().replace("('examples',)", "['examples']").replace("(0,)", "[0]")
    np.testing.assert_allclose(
        loaded.simulate(runs.curricula, runs.initial_loss), fit.simulate(runs.curricula, runs.initial_loss)
    )


def test_asking_before_fitting(rng):
    with pytest.raises(NotFittedError):
        AutoSimulator().explain()


def test_scores_that_know_nothing_are_no_member_that_counts(rng):
    runs, _ = known_runs(rng, noise=0.003)
    for scores in (np.zeros((16, 5)), rng.normal(size=(16, 5))):
        fit = AutoSimulator(scores=scores).fit(runs[:8])
        assert skill(fit, runs[:8], runs[8:]) > 0.9


def test_a_file_without_all_fields_is_an_error_when_loaded(tmp_path):
    runs = RunSet.load(Path(__file__).parents[2] / "runs" / "rte-minilm")[:4]
    fits = DynamicsSimulator(np.ones((200, 40))).fit(runs), AutoSimulator().fit(runs)
    for fit, name in zip(fits, ("dynamics_kept_", "predictor_kept_"), strict=True):
        out_of_fold = next(key for key in vars(fit) if key.endswith(name))
        delattr(fit, out_of_fold)
        fit.save(tmp_path / fit.name)
        with pytest.raises(RunDataError, match="kept"):
            load_simulator(tmp_path / fit.name)


def test_effects_beside_replayed_scores_are_a_member(tmp_path):
    """At a high rate, where effects found in the runs alone say little."""
    folder = Path(__file__).parents[2] / "runs" / "copa-minilm-high-rate"
    runs = RunSet.load(folder)
    train, test = runs[:8], runs[8:22]
    scores = load_file(folder / "scores.safetensors")["scores"]
    fit = AutoSimulator(scores=scores).fit(train)
    assert "prior replayed" in set(fit.selection.loc[fit.selection["kept"], "change"])
    assert "replayed" in fit.explain()
    assert skill(fit, train, test) > 0.25
    losses = fit.simulate(test.curricula, test.initial_loss)
    fit.save(tmp_path / "auto")
    loaded = load_simulator(tmp_path / "auto")
    np.testing.assert_allclose(loaded.simulate(test.curricula, test.initial_loss), losses, rtol=1e-12)
    again = loaded.refit(train)
    np.testing.assert_allclose(again.simulate(test.curricula, test.initial_loss), losses, rtol=1e-9)


def test_two_members_that_err_in_different_places_are_averaged(tmp_path):
    """A recorded set where effects that add up and a dynamics are about as good."""
    runs = RunSet.load(Path(__file__).parents[2] / "runs" / "copa-minilm")
    train, test = runs[[0, 3, 6, 9, 12, 15, 18, 21]], runs[22:]
    fit = AutoSimulator().fit(train)
    assert fit.selection.iloc[-1][["change", "kept"]].tolist() == [
        "the mean of no prior and prior dynamics",
        True,
    ]
    assert fit.explain().count("settings:") == 2
    assert fit.error_ == pytest.approx(np.square(fit.out_of_fold(train) - train.loss)[:, 1:].mean())
    asked = test.curricula, test.initial_loss
    members = [EffectsSimulator.simulate(member, *asked) for member in (fit._like_self(), fit._partner())]
    losses = fit.simulate(*asked)
    np.testing.assert_allclose(losses, (members[0] + members[1]) / 2, rtol=1e-12)
    wrong = [np.square(predicted_now - test.loss).mean() for predicted_now in (losses, *members)]
    assert wrong[0] < np.mean(wrong[1:])
    fit.save(tmp_path / "auto")
    np.testing.assert_array_equal(load_simulator(tmp_path / "auto").simulate(*asked), losses)
    np.testing.assert_allclose(fit.refit(train).simulate(*asked), losses, rtol=1e-9)
