"""Fitted simulators as files: everything is kept, nothing is made up, and what is not whole is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from families import known_runs, replaced
from safetensors import safe_open
from safetensors.numpy import save_file

from simfluence import Curriculum, RunSet, load_simulator
from simfluence.attribution import InfluenceScores
from simfluence.errors import RunDataError
from simfluence.simulators import (
    AutoSimulator,
    DynamicsSimulator,
    EffectsSimulator,
    FeatureSimulator,
    LinearSimulator,
    ScoresSimulator,
    Simulator,
    state,
)
from simfluence.simulators.effects.momentum import Momentum

DATA = Path(__file__).parents[1] / "data"

RNG = np.random.default_rng(0)
RUNS, EFFECTS = known_runs(RNG, runs=8, steps=6, n=5, tests=2, noise=0.02, groups=list("aabbb"))
RUNS = replaced(RUNS, learning_rate=np.linspace(2e-3, 1e-3, 6))
OTHERS = RNG.normal(size=EFFECTS.shape)
H_TRAIN, H_TEST = RNG.normal(size=(5, 2)), RNG.normal(size=(2, 3))

WITH_OPTIONS: dict[str, Callable[[], Simulator]] = {
    "effects, dynamics of effects": lambda: EffectsSimulator([-EFFECTS, OTHERS], "effects"),
    "effects, dynamics of scores": lambda: EffectsSimulator(InfluenceScores(-EFFECTS, "made up"), "scores"),
    "effects, without": lambda: EffectsSimulator(penalty=np.inf, link="identity", momentum=0.5),
    "features": lambda: FeatureSimulator(H_TRAIN, H_TEST, scores=-EFFECTS, free=0.3),
    "features of training examples": lambda: FeatureSimulator(H_TRAIN),
    "scores by rate": lambda: ScoresSimulator(InfluenceScores(-EFFECTS, "made up", weighing="rate")),
    "scores as they are": lambda: ScoresSimulator(
        InfluenceScores(-EFFECTS, "made up", weighing="run", scale=3.0), calibrated=False
    ),
    "dynamics": lambda: DynamicsSimulator([-EFFECTS, OTHERS]),
    "linear, with penalties of its own": lambda: LinearSimulator(penalties=[0.1, 1, 10]),
    "linear, pooled": lambda: LinearSimulator(penalty=1.0, center="pooled"),
    "auto": lambda: AutoSimulator([-EFFECTS, OTHERS]),
}


@pytest.mark.parametrize("name", WITH_OPTIONS)
def test_a_loaded_simulator_is_the_saved_one(name: str, tmp_path: Path) -> None:
    """It predicts, is refitted and is fitted again as the saved one."""
    file, fitted = tmp_path / "it.safetensors", WITH_OPTIONS[name]().fit(RUNS[:6])
    fitted.save(file)
    loaded = load_simulator(file)
    rates = np.linspace(1e-3, 3e-3, 6)
    for own, again in (
        (fitted, loaded),
        (fitted.refit(RUNS[2:]), loaded.refit(RUNS[2:])),
        (fitted, loaded.fit(RUNS[:6])),
    ):
        for given in (None, rates):
            asked = RUNS.curricula, RUNS.initial_loss, given
            np.testing.assert_array_equal(again.simulate(*asked), own.simulate(*asked))
    np.testing.assert_array_equal(loaded.out_of_fold(RUNS[:6]), fitted.out_of_fold(RUNS[:6]))
    loaded.check_examples(RUNS)


@pytest.mark.parametrize("runs", [1, 2])
def test_the_members_of_few_runs_are_kept(runs: int, tmp_path: Path) -> None:
    auto = AutoSimulator(-EFFECTS).fit(RUNS[:runs])
    auto.save(tmp_path / "auto")
    loaded = load_simulator(tmp_path / "auto")
    assert [repr(one) for one in loaded.members_] == [repr(one) for one in auto.members_]
    asked = RUNS.curricula, RUNS.initial_loss
    np.testing.assert_array_equal(loaded.simulate(*asked), auto.simulate(*asked))
    np.testing.assert_array_equal(
        loaded.refit(RUNS[:runs]).simulate(*asked), auto.refit(RUNS[:runs]).simulate(*asked)
    )


def test_scores_keep_what_a_use_weighs_and_their_scale(tmp_path: Path) -> None:
    given = InfluenceScores(-EFFECTS, "made up", weighing="run", scale=3.0)
    ScoresSimulator(given, calibrated=False).fit(RUNS[:6]).save(tmp_path / "it")
    refitted = load_simulator(tmp_path / "it").refit(RUNS[2:])
    assert (refitted.weighing_, refitted.scale_) == ("run", 3.0)


def test_a_transferred_simulator_is_kept_too(tmp_path: Path) -> None:
    moved = FeatureSimulator(H_TRAIN, H_TEST).fit(RUNS[:6]).transfer(None, H_TEST[::-1], RUNS[0].initial_loss)
    moved.save(tmp_path / "it")
    asked = RUNS.curricula, RUNS.initial_loss
    np.testing.assert_array_equal(load_simulator(tmp_path / "it").simulate(*asked), moved.simulate(*asked))


# ------------------------------------------------------------------------------------ the format


def test_values_are_decoded_as_they_were() -> None:
    shared = np.arange(3.0)
    value = {
        "nested": {"array": shared, "mapping": {"dataclass": 1}},  # names that the format itself uses
        "list": [1, 2.5, "text", None, True, [shared]],
        "numbers": [np.float64(0.1), np.int64(3), np.inf, -np.inf],
        "dataclass": Momentum(0.9, True),
        "empty": np.empty((0, 4)),
        "integers": np.arange(4),
    }
    arrays = state.Arrays()
    text = json.dumps(state.encode(value, arrays))
    assert len(arrays.by_name) == 3  # the shared one once
    found = state.decode(json.loads(text), arrays.by_name)
    assert found["list"][:5] == value["list"][:5]
    assert found["numbers"] == [0.1, 3, np.inf, -np.inf]
    assert found["dataclass"] == Momentum(0.9, True)
    assert found["nested"]["mapping"] == {"dataclass": 1}
    np.testing.assert_array_equal(found["nested"]["array"], shared)
    np.testing.assert_array_equal(found["list"][5][0], shared)
    assert found["empty"].shape == (0, 4)
    assert found["integers"].dtype == np.int64


def test_what_is_no_data_cannot_be_saved() -> None:
    for value in (object(), {1, 2}, state.encode, RUNS):
        with pytest.raises(TypeError, match="cannot be saved"):
            state.encode(value, state.Arrays())


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_file_of_an_earlier_format_is_refused_in_a_sentence(number: int) -> None:
    """Written by the versions that had them."""
    with pytest.raises(RunDataError, match=r"earlier version of simfluence .*fit the simulator again"):
        load_simulator(DATA / f"simulator-format-{number}.safetensors")


def test_a_file_of_this_format_predicts_what_it_did() -> None:
    """Written by `write_file_of_this_format`, with the losses that were predicted then."""
    auto = load_simulator(DATA / "simulator-format-5.safetensors")
    assert isinstance(auto, AutoSimulator)
    assert [one.kernel for one in auto.members_] == [None, "scores"]
    expected = [[1.8991782, 1.57300891], [1.95880156, 1.50193195]]
    np.testing.assert_allclose(auto.simulate(*_asked())[:, -1], expected, atol=1e-7)


def _asked() -> tuple:
    batches = [[0, 1, 2], [3, 4, 0], [1, 1, 2], [4, 3], [0, 0, 1], [2, 3, 4]]
    curricula = [Curriculum.from_batches(some, 5) for some in (batches, batches[::-1])]
    return curricula, np.array([[2.0, 1.7], [2.1, 1.6]])


def write_file_of_this_format() -> None:
    """To be called again where the format gets a new number."""
    auto = AutoSimulator([-EFFECTS, OTHERS]).fit(RUNS[:7])
    auto.save(DATA / "simulator-format-5.safetensors")
    print(auto.simulate(*_asked())[:, -1].tolist())


# ---------------------------------------------------------------------------- files that are not whole


def rewritten(file: Path, change: Callable[[str], str]) -> Path:
    """The file with another state: ``change`` of its JSON."""
    with safe_open(file, framework="numpy") as opened:
        metadata, arrays = opened.metadata(), {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    other = file.with_name("other.safetensors")
    save_file(arrays, other, metadata | {"state": change(metadata["state"])})
    return other


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An auto simulator with two members, one of them with training dynamics."""
    path = tmp_path_factory.mktemp("states") / "auto.safetensors"
    auto = AutoSimulator([-EFFECTS, OTHERS]).fit(RUNS[:4])
    auto.members_[0] = EffectsSimulator([-EFFECTS, OTHERS], "scores").fit(RUNS[:6])
    auto.save(path)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"name": "auto"', '"name": "oracle"'),
        ('"name": "effects"', '"name": "oracle"'),
        ('"dataclass": "TrainingDynamics"', '"dataclass": "Popen"'),
        ('"array": "array-1"', '"array": "array-99"'),
        ('"beta": ', '"beta": 9'),
        ('"members": [', '"members": [3, '),
        ('{"mapping": {', '{"mapping": [], "other": {'),
        ('{"mapping": {', "{"),
        ('{"mapping"', '[{"mapping"'),
    ],
)
def test_unknown_names_and_impossible_values_are_refused(file: Path, old: str, new: str) -> None:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    with pytest.raises(RunDataError, match=r"other\.safetensors does not hold a whole simulator"):
        load_simulator(rewritten(file, change))


def test_every_field_must_be_there(file: Path) -> None:
    """Fitted values, members, hyperparameters, and the fields of dataclasses, also those with defaults."""
    text = json.loads(safe_open(file, framework="numpy").metadata()["state"])
    places = list(_mappings(text))
    assert len(places) > 10
    for path, key in places:
        if re.search("penalty_errors_|candidates_", "".join(map(str, path))):
            continue  # dictionaries of numbers: any keys will do
        with pytest.raises(RunDataError, match="whole simulator"):
            load_simulator(rewritten(file, lambda state, at=(path, key): _without(state, *at)))


def _mappings(value, path=()):
    """(path, key) of every entry of every mapping in the state."""
    if isinstance(value, dict):
        if "mapping" in value:
            yield from (((*path, "mapping"), key) for key in value["mapping"])
        for key, inner in value.items():
            yield from _mappings(inner, (*path, key))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _mappings(inner, (*path, number))


def _without(text: str, path: tuple, key: str) -> str:
    whole = json.loads(text)
    at = whole
    for step in path:
        at = at[step]
    del at[key]
    return json.dumps(whole)


def test_other_files_are_no_simulators(tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    with pytest.raises(RunDataError, match="damaged or no safetensors"):
        load_simulator(file)
    file.write_bytes(b"{}")
    with pytest.raises(RunDataError, match="damaged or no safetensors"):
        load_simulator(file)
    save_file({"a": np.ones(3)}, file)
    with pytest.raises(RunDataError, match=r"does not hold a simulator \(expected format"):
        load_simulator(file)
    save_file({"a": np.ones(3)}, file, {"format": state.FORMAT})
    with pytest.raises(RunDataError, match="does not hold a whole simulator"):
        load_simulator(file)


def test_a_file_about_other_examples_is_noticed(file: Path) -> None:
    from simfluence.runs import ExampleTable

    others = RunSet(RUNS.runs, ExampleTable.numbered(5, "other-"), RUNS.test)
    with pytest.raises(RunDataError, match="not those of these runs"):
        load_simulator(file).refit(others)
