"""The page's JavaScript gives Python's numbers, simulator by simulator and edit by edit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from explore_questions import ASK, TOLERANCE, asked, largest_difference

from simfluence import RunSet
from simfluence.edit import Edit
from simfluence.explore.page import as_json, page_data
from simfluence.fitted import Fitted, fit
from simfluence.simulators import make_simulator

EDITS = {
    "remove a group": [{"name": "remove", "groups": ["red"]}],
    "remove, then repeat": [
        {"name": "remove", "groups": ["green"], "ids": ["q-4"]},
        {"name": "repeat", "groups": ["blue & <b>"], "ids": ["q-0"], "times": 3},
    ],
    "order": [
        {"name": "put_before", "groups": ["green"], "before_groups": ["red", "blue & <b>"]},
        {"name": "put_before", "groups": ["red"], "before_groups": ["blue & <b>"]},
    ],
    "shorter": [{"name": "length", "steps": 11}],
    "longer": [{"name": "remove", "ids": ["q-3"]}, {"name": "length", "steps": 61}],
}


def scores_of(runs: RunSet) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(runs.train), len(runs.test)))


SIMULATORS = {
    "auto": lambda runs: make_simulator("auto"),
    "auto with scores": lambda runs: make_simulator("auto", scores=scores_of(runs)),
    "effects": lambda runs: make_simulator("effects", scores=scores_of(runs), penalty=3.0),
    "effects, identity": lambda runs: make_simulator("effects", link="identity", penalty=3.0, momentum=0.8),
    "effects with dynamics": lambda runs: make_simulator("effects", kernel="effects", penalty=3.0),
    "scores with dynamics, identity": lambda runs: make_simulator(
        "effects", kernel="scores", scores=[scores_of(runs)] * 2, link="identity", penalty=3.0
    ),
    "dynamics": lambda runs: make_simulator("dynamics", scores=scores_of(runs)),
    "mean trajectory": lambda runs: make_simulator("mean_trajectory"),
    "persistence": lambda runs: make_simulator("persistence"),
    "linear": lambda runs: make_simulator("linear", penalty=3.0),
    "additive": lambda runs: make_simulator("additive", penalty=3.0),
    "multiplicative": lambda runs: make_simulator("multiplicative", penalty=3.0),
}


def compare(fitted: Fitted, runs: RunSet, javascript, folder, widened: float = 1.0) -> None:
    data = as_json(page_data(fitted, runs, widened=widened))
    questions = [(edits, rule) for edits in EDITS.values() for rule in ("stretch", "keep")]
    body = f"""
    const page = prepare(parsed(data));
    return questions.map(([edits, schedule]) => {{ {ASK} }});
    """
    found = javascript(body, folder, data=data, questions=questions)
    for (edits, rule), numbers in zip(questions, found, strict=True):
        answer = asked(fitted, runs, edits, rule, widened)
        assert largest_difference(numbers, answer) < TOLERANCE, (edits, rule)


@pytest.mark.parametrize("name", SIMULATORS)
def test_the_page_gives_pythons_numbers(name, logistic, javascript, tmp_path) -> None:
    held_out = logistic[-1].id
    fitted = fit(logistic, SIMULATORS[name](logistic), train=8, validation=0, held_out=held_out)
    compare(fitted, logistic, javascript, tmp_path)


def test_widened_bands(logistic, javascript, tmp_path) -> None:
    fitted = fit(logistic, make_simulator("mean_trajectory"), train=8, validation=0)
    compare(fitted, logistic, javascript, tmp_path, widened=1.7)


def test_without_bands(logistic, javascript, tmp_path) -> None:
    fitted = fit(logistic, make_simulator("mean_trajectory"), train=8, validation=0, level=None)
    compare(fitted, logistic, javascript, tmp_path)


def test_losses_in_other_units(logistic, javascript, tmp_path) -> None:
    """Sums over many tokens are simulated as losses of the usual size."""
    runs = RunSet([scaled(run, 300.0) for run in logistic], logistic.train, logistic.test)
    fitted = fit(runs, make_simulator("auto"), train=8, validation=0)
    assert fitted.simulator.units_.scale != 1
    compare(fitted, runs, javascript, tmp_path)


def test_few_runs_with_scores(logistic, javascript, tmp_path) -> None:
    fitted = fit(logistic, make_simulator("dynamics", scores=scores_of(logistic)), train=2, validation=0)
    compare(fitted, logistic, javascript, tmp_path)


def test_runs_without_learning_rates(logistic, javascript, tmp_path) -> None:
    runs = RunSet([unlogged(run) for run in logistic], logistic.train, logistic.test)
    fitted = fit(runs, make_simulator("effects", penalty=3.0), train=8, validation=0)
    compare(fitted, runs, javascript, tmp_path)


def scaled(run, by):
    return dataclasses.replace(run, metrics={"loss": run.loss * by})


def unlogged(run):
    return dataclasses.replace(run, learning_rate=np.full(len(run), np.nan))


def test_the_page_draws_numpys_numbers(javascript, tmp_path) -> None:
    state = np.random.default_rng(0).bit_generator.state["state"]
    generator = {"state": str(state["state"]), "increment": str(state["inc"])}
    below = [2, 97, 385, 30_001, 2**31]
    body = "return below.map((bound) => [...integers(generator, bound, 200)]);"
    found = javascript(body, tmp_path, generator=generator, below=below)
    for bound, drawn in zip(below, found, strict=True):
        assert drawn == np.random.default_rng(0).integers(0, bound, size=200).tolist()


def test_edits_in_words_and_as_a_file(javascript, tmp_path) -> None:
    """The page names edits as Python does, and writes YAML that reads as they were."""
    edits = [edit for several in EDITS.values() for edit in several]
    edits.append({"name": "length", "steps": 5, "schedule": "keep"})
    found = javascript("return {words: edits.map(wordsOf), file: yamlOf(edits)};", tmp_path, edits=edits)
    assert found["words"] == [str(Edit(**edit)) for edit in edits]
    assert list(yaml.safe_load(found["file"]).values()) == [edits]
