"""Redundancy and synergy: of numbers, of simulators with known truth, and of a small network that is
retrained."""

import dataclasses

import dogs
import numpy as np
import pytest

from simfluence import AutoSimulator, Curriculum, RunSet, fit
from simfluence.curriculum import remove
from simfluence.errors import RunDataError
from simfluence.questions.interactions import interactions, kinds
from simfluence.questions.many import many_changes
from simfluence.questions.rank import rank
from simfluence.simulators import make_simulator


def test_kinds_by_the_change_of_both_together():
    first, second = [1.0, 1.0, 1.0, -1.0, -1.0, 1.0], [1.0, 1.0, 1.0, -1.0, -1.0, -0.5]
    both = [3.0, 1.0, 2.1, -3.0, -1.0, 0.5]
    expected = ["redundant", "synergetic", "independent", "redundant", "synergetic", "independent"]
    assert list(kinds(first, second, both)) == expected
    assert list(kinds([1.0], [1.0], [2.1], share=0.01)) == ["redundant"]


def test_effects_that_add_up_are_independent():
    runs = RunSet.load("runs/openbookqa-minilm")
    additive = make_simulator("additive").fit(runs[list(range(8))])
    some = [runs.train.ids[row] for row in runs[20].curriculum.used[:4]]
    asked = {"train": runs.train, "test": runs.test}
    frame = interactions(additive, runs[20], per="example", among=some, share=0.05, **asked)
    apart = frame[frame["kind"] != "independent"]  # two that meet in a batch are more of it
    assert len(apart) < len(frame) / 4
    pair = frame[frame["test"] == "all"].iloc[0]
    rows = runs.train.rows([pair["first"], pair["second"]])
    edited = [remove(runs[20].curriculum, of, refill=False) for of in (rows[:1], rows[1:], rows)]
    change = many_changes(additive, runs[20], edited, with_residual=False).change.mean(1)
    found = pair[["change_first", "change_second", "change_both"]].to_numpy(float)
    np.testing.assert_allclose(found, change, atol=1e-12)
    assert pair["interaction"] == pytest.approx(change[2] - change[:2].sum(), abs=1e-12)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Recorded runs, a simulator fitted to all but the one on everything, and this one."""
    batches = {f"run-{seed:02d}": dogs.drawn(seed) for seed in range(12)}
    runs = dogs.record(tmp_path_factory.mktemp("dogs"), {**batches, "whole": dogs.everything()})
    fitted = fit(runs, AutoSimulator(), train=12, validation=0, held_out="whole")
    return runs, fitted, runs[runs.position("whole")]


def test_one_of_a_hundred_dogs_hardly_matters_and_the_single_cat_does(pictures, tmp_path):
    runs, fitted, run = pictures
    frame = rank(fitted, run, train=runs.train, test=runs.test)
    cat = frame[(frame["test"] == "cat") & (frame["group"] == "cat")]["change"].item()
    single = frame[(frame["test"] == "dog") & frame["group"].str.startswith("dogs")]["change"]
    assert cat > 50 * single.abs().max()

    row = runs.train.ids.index("cat-100")
    removed = {"cat": remove(run.curriculum, [row]), "dog": remove(run.curriculum, [7])}
    retrained = dogs.record(tmp_path / "removed", {name: list(edited) for name, edited in removed.items()})
    group = np.array(runs.test.groups)
    true = {one.id: (one.loss[-1] - run.loss[-1])[group == one.id].mean() for one in retrained}
    assert cat == pytest.approx(true["cat"], rel=0.3)
    assert abs(true["dog"]) < true["cat"] / 50


def test_two_halves_of_the_dogs_are_redundant_and_dogs_and_cat_are_not(pictures, tmp_path):
    runs, fitted, run = pictures
    frame = interactions(fitted, run, train=runs.train, test=runs.test, of="dog")
    pairs = frame.set_index(["first", "second"])
    halves, with_cat = pairs.loc[("dogs, one half", "dogs, other half")], pairs.loc[("cat", "dogs, one half")]
    assert halves["kind"] == "redundant"
    assert with_cat["kind"] == "independent"
    assert halves["verdict"] == "sure"
    assert halves["low"] < halves["interaction"] < halves["high"]
    parts = frame["change_both"] - frame["change_first"] - frame["change_second"]
    np.testing.assert_allclose(frame["interaction"], parts, atol=1e-12)
    assert halves["change_both"] > 5 * max(halves["change_first"], halves["change_second"])

    groups = [runs.train.in_group(name) for name in dogs.KINDS[:2]]
    edited = [remove(run.curriculum, rows) for rows in (groups[0], groups[1], np.concatenate(groups))]
    names = ["no-half-1", "no-half-2", "no-half-at-all"]  # their alphabetical order is that of the set
    retrained = dogs.record(tmp_path / "halves", {n: list(e) for n, e in zip(names, edited, strict=True)})
    group = np.array(runs.test.groups)
    one, other, both = ((of.loss[-1] - run.loss[-1])[group == "dog"].mean() for of in retrained)
    assert kinds([one], [other], [both]) == ["redundant"]
    assert halves["interaction"] == pytest.approx(both - one - other, rel=0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"per": "word"}, ValueError, "per must be 'example' or 'group'"),
        ({"per": "example"}, ValueError, "name the examples"),
        ({"among": ["cats"]}, RunDataError, "no example is in group 'cats'"),
        ({"among": ["cat"]}, ValueError, "a pair takes two training groups, got 'cat'"),
        ({"per": "example", "among": ["cat-100", "cat-1"]}, RunDataError, "'cat-1' is not in the table"),
        ({"share": 1.0}, ValueError, "share must lie in"),
        ({"of": "cow"}, ValueError, "named 'cow'"),
    ],
)
def test_what_cannot_be_asked_is_said(pictures, options, error, message):
    runs, fitted, run = pictures
    with pytest.raises(error, match=message):
        interactions(fitted, run, train=runs.train, test=runs.test, **options)


def test_a_pair_that_is_everything_cannot_be_left_out(pictures):
    runs, fitted, run = pictures
    batches = np.arange(dogs.DOGS).reshape(-1, 4)
    steps = len(batches)
    of_dogs = dataclasses.replace(
        run,
        curriculum=Curriculum.from_batches(batches, len(runs.train)),
        metrics={"loss": run.loss[: steps + 1]},
        evaluated=run.evaluated[: steps + 1],
        learning_rate=run.learning_rate[:steps],
        train_loss=run.train_loss[:steps],
    )
    asked = {"train": runs.train, "test": runs.test}
    with pytest.raises(ValueError, match="never used 'cat'"):
        interactions(fitted, of_dogs, among=["cat", "birds"], **asked)
    with pytest.raises(ValueError, match="nothing would be left"):
        interactions(fitted, of_dogs, **asked)
