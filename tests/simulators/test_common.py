"""What holds for every simulator; a new one in SIMULATORS inherits all of it."""

from __future__ import annotations

import dataclasses
import inspect
import warnings

import numpy as np
import pytest
from families import cut, replaced
from omegaconf import OmegaConf

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.cli import conf_folder
from simfluence.errors import NotFittedError, RunDataError
from simfluence.runs import ExampleTable, Run
from simfluence.simulators import SIMULATORS, PredictiveBands, SimulationWarning, Simulator, make_simulator
from simfluence.simulators.markov.simulator import MarkovSimulator

pytestmark = pytest.mark.filterwarnings("ignore::simfluence.simulators.SimulationWarning")

LEARNT_NOTHING = ("persistence", "scores")
"""Simulators that predict the same whatever they are fitted to (without scores)."""


@pytest.fixture(params=list(SIMULATORS))
def simulator(request: pytest.FixtureRequest) -> Simulator:
    return make_simulator(request.param)


def test_shapes_and_initial_losses(simulator: Simulator, runs: RunSet) -> None:
    train, validation, test = runs.split(5, 1, 2)
    losses = simulator.fit(train, validation).simulate(test.curricula, test.initial_loss)
    assert losses.shape == test.loss.shape
    assert losses.dtype == np.float64
    np.testing.assert_array_equal(losses[:, 0], test.initial_loss)
    assert np.isfinite(losses).all()


def test_is_deterministic(simulator: Simulator, runs: RunSet) -> None:
    first = simulator.fit(runs[:6]).simulate(runs.curricula, runs.initial_loss)
    again = make_simulator(simulator.name).fit(runs[:6]).simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_array_equal(first, again)


def test_runs_are_simulated_independently(simulator: Simulator, runs: RunSet) -> None:
    """Also if they differ in length and learning rates."""
    logged = replaced(runs, learning_rate=np.linspace(2, 1, 30))
    curricula = [cut(run, 30 - 3 * number).curriculum for number, run in enumerate(runs)]
    rates = np.random.default_rng(0).uniform(1, 2, (8, 30))
    simulator.fit(logged[:6])
    together = simulator.simulate(curricula, runs.initial_loss, rates)
    for number, curriculum in enumerate(curricula):
        alone = simulator.simulate([curriculum], runs.initial_loss[number], rates[number])[0]
        np.testing.assert_allclose(alone, together[number, : len(alone)], rtol=1e-10)


def test_shorter_curricula_end_in_nan(simulator: Simulator, runs: RunSet) -> None:
    long, short = runs[0].curriculum, Curriculum.from_batches(list(runs[1].curriculum)[:7], 12)
    losses = simulator.fit(runs[:6]).simulate([long, short], runs.initial_loss[:2])
    assert np.isfinite(losses[0]).all()
    assert np.isfinite(losses[1, :8]).all()
    assert np.isnan(losses[1, 8:]).all()


def test_curricula_of_other_lengths_and_batch_sizes(simulator: Simulator, runs: RunSet) -> None:
    ragged = Curriculum.from_batches(
        [[0], [1, 2], [3, 4, 5, 6, 6], *runs[0].curriculum, *runs[1].curriculum], 12
    )
    losses = simulator.fit(runs[:6]).simulate([ragged], runs.initial_loss[:1])
    assert losses.shape == (1, 64, 4)
    assert np.isfinite(losses).all()


def test_renaming_examples_changes_nothing(simulator: Simulator, runs: RunSet) -> None:
    """Permuting example numbers in all curricula permutes coefficients, so predictions stay."""
    place = np.random.default_rng(0).permutation(12)

    def renamed(runs: RunSet) -> RunSet:
        batches = [[place[batch] for batch in curriculum] for curriculum in runs.curricula]
        return RunSet.from_arrays(batches, runs.loss, train=12)

    losses = simulator.fit(runs[:6]).simulate(runs[6:].curricula, runs[6:].initial_loss)
    other = renamed(runs)
    permuted = make_simulator(simulator.name).fit(other[:6])
    np.testing.assert_allclose(
        permuted.simulate(other[6:].curricula, other[6:].initial_loss), losses, rtol=1e-5, atol=1e-6
    )


def test_nothing_of_a_held_out_run_is_read_but_curriculum_and_initial_losses(
    simulator: Simulator, runs: RunSet
) -> None:
    train, validation, test = runs.split(5, 1, 2)
    honest = simulator.fit(train, validation).simulate(test.curricula, test.initial_loss)
    corrupted = RunSet([_corrupted(run) for run in test], test.train, test.test)
    blind = simulator.simulate(corrupted.curricula, corrupted.initial_loss)
    np.testing.assert_array_equal(honest, blind)


def _corrupted(run: Run) -> Run:
    losses = run.loss.copy()
    losses[1:] = np.nan
    return dataclasses.replace(
        run,
        metrics={"loss": losses},
        train_loss=np.full(len(run), np.inf),
        learning_rate=np.full(len(run), -1.0),
        config={"lr": "nonsense"},
        optimizer={"class": "Nonsense"},
        seed=-1,
    )


def test_losses_that_are_not_finite_are_left_out(simulator: Simulator, runs: RunSet) -> None:
    losses = runs.loss.copy()
    losses[0, 10:13, 1] = np.nan
    losses[2, -1, 0] = np.inf
    holed = RunSet.from_arrays([list(c) for c in runs.curricula], losses, train=12, allow_nonfinite=True)
    simulated = simulator.fit(holed).simulate(runs.curricula, runs.initial_loss)
    assert np.isfinite(simulated).all()


def test_a_learning_rate_as_recorded_changes_nothing(simulator: Simulator, runs: RunSet) -> None:
    """The rates that are the training runs' mean, or none given: the same predictions."""
    rates = 1e-3 * np.linspace(2, 0.2, 30)
    simulator.fit(replaced(runs, learning_rate=rates)[:6])
    by_default = simulator.simulate(runs.curricula, runs.initial_loss)
    for given in (rates, np.tile(rates, (8, 1)), np.append(rates, np.nan)):
        same = simulator.simulate(runs.curricula, runs.initial_loss, learning_rate=given)
        np.testing.assert_allclose(same, by_default, rtol=1e-9)


def test_a_refit_keeps_the_hyperparameters_that_were_chosen(simulator: Simulator, runs: RunSet) -> None:
    simulator.fit(runs[:6])
    other = simulator.refit(runs[:5])
    assert type(other) is type(simulator)
    assert repr(other) == repr(simulator)
    assert getattr(other, "penalty_", None) == getattr(simulator, "penalty_", None)
    own = simulator.simulate(runs.curricula, runs.initial_loss)
    again = simulator.refit(runs[:6]).simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_allclose(again, own, rtol=1e-9)
    if simulator.name not in LEARNT_NOTHING:
        assert not np.allclose(other.simulate(runs.curricula, runs.initial_loss), own, rtol=1e-9)


def test_predictions_out_of_fold(simulator: Simulator, runs: RunSet) -> None:
    """One for every step of every training run; asking for them changes nothing."""
    train = RunSet([*runs[:2], cut(runs[2], 20), *runs[3:6]], runs.train, runs.test)
    simulator.fit(train)
    before = simulator.simulate(runs.curricula, runs.initial_loss)
    losses = simulator.out_of_fold(train)
    assert losses.shape == train.loss.shape
    np.testing.assert_array_equal(np.isnan(losses), np.isnan(train.loss))
    np.testing.assert_allclose(losses[:, 0], train.initial_loss)
    np.testing.assert_array_equal(simulator.simulate(runs.curricula, runs.initial_loss), before)
    if simulator.name not in LEARNT_NOTHING:
        assert not np.allclose(losses[0], simulator.simulate(train.curricula, train.initial_loss)[0])


def test_a_single_run_has_no_predictions_out_of_fold(simulator: Simulator, runs: RunSet) -> None:
    if isinstance(simulator, MarkovSimulator):
        simulator = make_simulator(simulator.name, penalty=1.0)
    with pytest.raises(ValueError, match=r"at least two|two at least"):
        simulator.fit(runs[:1]).out_of_fold(runs[:1])


def test_bands_come_with_every_simulator(simulator: Simulator, runs: RunSet) -> None:
    """Around the prediction that there is without them."""
    bands = PredictiveBands(simulator).fit(runs[:6])
    low, high = bands.predict(runs.curricula, runs.initial_loss)
    assert low.shape == high.shape == runs.loss.shape
    assert np.isfinite(low).all()
    assert np.isfinite(high).all()
    assert (low[:, 1:] < high[:, 1:]).all()
    np.testing.assert_array_equal(low[:, 0], runs.initial_loss)
    alone = make_simulator(simulator.name).fit(runs[:6]).simulate(runs.curricula, runs.initial_loss)
    np.testing.assert_array_equal(bands.simulator_.simulate(runs.curricula, runs.initial_loss), alone)
    np.testing.assert_allclose((low + high) / 2, alone, rtol=1e-12)


def test_save_and_load(simulator: Simulator, runs: RunSet, tmp_path) -> None:
    file = tmp_path / "simulator.safetensors"
    simulator.fit(runs[:6]).save(file)
    loaded = load_simulator(file)
    assert type(loaded) is type(simulator)
    assert repr(loaded) == repr(simulator)
    asked = runs.curricula, runs.initial_loss
    expected = simulator.simulate(*asked)
    np.testing.assert_array_equal(loaded.simulate(*asked), expected)
    np.testing.assert_array_equal(loaded.out_of_fold(runs[:6]), simulator.out_of_fold(runs[:6]))
    np.testing.assert_array_equal(
        loaded.refit(runs[:5]).simulate(*asked), simulator.refit(runs[:5]).simulate(*asked)
    )
    np.testing.assert_array_equal(loaded.fit(runs[:6]).simulate(*asked), expected)


def test_a_torn_file_is_an_error(simulator: Simulator, runs: RunSet, tmp_path) -> None:
    file = tmp_path / "simulator.safetensors"
    simulator.fit(runs[:6]).save(file)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(RunDataError, match=r"simulator\.safetensors"):
        load_simulator(file)


def test_one_training_run_and_one_step(simulator: Simulator) -> None:
    """The smallest input either works or says what is missing."""
    tiny = RunSet.from_arrays([[[0, 1]]], [[[1.0, 2.0], [0.5, 1.5]]], train=3)
    if isinstance(simulator, MarkovSimulator) and simulator.penalty is None:
        with pytest.raises(ValueError, match="two training runs"):
            simulator.fit(tiny)
        simulator = make_simulator(simulator.name, penalty=1.0)
    losses = simulator.fit(tiny).simulate(tiny.curricula, tiny.initial_loss)
    assert np.isfinite(losses).all()


def test_misuse_is_named(simulator: Simulator, runs: RunSet) -> None:
    with pytest.raises(NotFittedError, match="fit"):
        simulator.simulate(runs.curricula, runs.initial_loss)
    with pytest.raises(ValueError, match="at least one training run"):
        simulator.fit(runs[:0])
    simulator.fit(runs[:6])
    with pytest.raises(ValueError, match="12 training examples"):
        simulator.simulate([Curriculum.from_batches([[0]], 13)], runs.initial_loss[0])
    with pytest.raises(ValueError, match="initial_loss must be"):
        simulator.simulate(runs.curricula, runs.initial_loss[:, :2])
    with pytest.raises(ValueError, match="at least one curriculum"):
        simulator.simulate([], runs.initial_loss)
    other = RunSet(runs[6:].runs, ExampleTable.numbered(12, "other-"), runs.test)
    with pytest.raises(ValueError, match="other examples"):
        simulator.fit(runs[:6], other)


@pytest.mark.parametrize("which", ["train", "test"])
def test_other_examples_of_the_same_number_are_refused(
    simulator: Simulator, runs: RunSet, which: str
) -> None:
    tables = {"train": runs.train, "test": runs.test}
    tables[which] = ExampleTable.numbered(len(tables[which]), "other-")
    others = RunSet(runs[:6].runs, **tables)
    simulator.fit(runs[:6]).check_examples(runs)
    for asked in (simulator.check_examples, simulator.refit, simulator.out_of_fold):
        with pytest.raises(RunDataError, match="ids, groups or contents differ"):
            asked(others)
    with pytest.raises(NotFittedError, match="fit"):
        make_simulator(simulator.name).check_examples(runs)


def test_an_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        make_simulator("linaer")


def test_an_unknown_hyperparameter_is_said(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match=f"{simulator.name!r} has no hyperparameter 'foo'"):
        make_simulator(simulator.name, foo=1)


def test_a_misspelt_hyperparameter_suggests_a_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'penalty'"):
        make_simulator("linear", penality=1.0)


def test_every_simulator_has_a_configuration() -> None:
    files = {file.stem: OmegaConf.load(file) for file in (conf_folder() / "simulator").glob("*.yaml")}
    assert set(files) == set(SIMULATORS)
    for name, config in files.items():
        assert config.pop("name") == name
        known = inspect.signature(SIMULATORS[name]).parameters
        assert set(config) <= set(known)
        assert make_simulator(name, **config).get_params() == make_simulator(name).get_params()


def test_unstable_rollouts_are_said() -> None:
    """A multiplicative model that grows without bound must warn, not only return large numbers."""
    batches = np.zeros((2, 40, 1), int)
    losses = np.stack([1.5 ** np.arange(41), 1.5 ** np.arange(41)])[..., None]
    runs = RunSet.from_arrays(batches, losses)
    simulator = make_simulator("multiplicative", penalty=0.0).fit(runs)
    longer = Curriculum.from_batches([[0]] * 80, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SimulationWarning, match="leave the range"):
            simulator.simulate([longer], [1.0])


def test_every_answer_says_that_runs_do_not_start_alike(simulator: Simulator, runs: RunSet, tmp_path) -> None:
    def says_so(one: Simulator) -> bool:
        return any("do not start alike" in note for note in one.notes)

    def starting_from(name: str) -> RunSet:
        weights = (name.format(number) for number in range(len(runs)))
        return RunSet(
            [dataclasses.replace(run, initial_weights=own) for run, own in zip(runs, weights, strict=True)],
            runs.train,
            runs.test,
        )

    alike, unlike = starting_from("same"), starting_from("own-{}")
    simulator.fit(unlike[:6]).save(tmp_path / "it")
    assert says_so(simulator)
    assert says_so(load_simulator(tmp_path / "it"))
    assert says_so(simulator.refit(unlike[:5]))
    assert not says_so(simulator.refit(alike[:5]))
    assert not says_so(simulator.fit(alike[:6]))
