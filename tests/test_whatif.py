"""What-ifs against the model that made the runs: the truth under an edited curriculum is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from families import replaced, synthetic_runs

from simfluence import LinearSimulator, PredictiveBands, RunSet, evaluate, what_if
from simfluence import curriculum as edits
from simfluence.answer import agreement, by_group
from simfluence.attribution import InfluenceScores
from simfluence.edit import Edit
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted, fit
from simfluence.runs import ExampleTable
from simfluence.simulators import ScoresSimulator
from simfluence.whatif import ask, verified

UNLOGGED = "the learning rates are not known, so the simulation is the same for either schedule"


def truth(curriculum, slope, intercept, loss) -> np.ndarray:
    for batch in curriculum:
        loss = slope[batch].sum(0) * loss + intercept[batch].sum(0)
    return loss


def test_predicted_changes_are_the_true_ones() -> None:
    runs, slope, intercept = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs[:10])
    original, start = runs[11].curriculum, runs[11].initial_loss
    edited = edits.shuffle(edits.repeat(original, [3], 4), np.random.default_rng(0))
    edited = edits.Curriculum.from_batches([batch for batch in edited if len(batch) == 3], 12)
    answer = what_if(simulator, original, edited, start)
    expected = truth(edited, slope, intercept, start) - truth(original, slope, intercept, start)
    np.testing.assert_allclose(answer.changes["change"], expected, atol=1e-4)
    np.testing.assert_allclose(answer.changes["original"], runs[11].loss[-1], atol=1e-4)


def test_verification_compares_with_the_retrained_run() -> None:
    runs, *_ = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs[:10])
    original, other = runs[10], runs[11]
    answer = what_if(simulator, original.curriculum, other.curriculum, original.initial_loss)
    changes = verified(answer, original, other)
    np.testing.assert_allclose(changes["true_change"], other.loss[-1] - original.loss[-1])
    with pytest.raises(ValueError, match="not trained on"):
        verified(answer, other, original)
    found = agreement(changes.assign(change=changes["true_change"]))
    assert found["pearson"] == pytest.approx(1)
    assert found["same_sign"] == 1
    assert np.isnan(agreement(changes.assign(change=0.0))["pearson"])  # and no warning


def test_a_shorter_training_says_what_its_length_changes_by_itself() -> None:
    runs, slope, intercept = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs[:10])
    original, start = runs[11].curriculum, runs[11].initial_loss
    half = len(original) // 2
    later = edits.Curriculum.from_batches(list(original)[half:], original.n_examples)
    answer = what_if(simulator, original, later, start)
    ended = edits.Curriculum.from_batches(list(original)[: len(later)], original.n_examples)
    expected = truth(ended, slope, intercept, start) - truth(original, slope, intercept, start)
    np.testing.assert_allclose(answer.of_length, expected, atol=1e-4)
    assert f"of length alone: {expected.mean():+.4f} on average" in str(answer)
    assert answer.summary()["of_length"] == pytest.approx(expected.mean(), abs=1e-4)
    assert what_if(simulator, later, original, start).of_length is None  # longer


def test_the_band_is_around_the_change() -> None:
    runs, *_ = synthetic_runs(n_runs=14, noise=0.02)
    bands = PredictiveBands(LinearSimulator(penalty=1e-3), level=0.9).fit(runs[:12])
    original, other = runs[12], runs[13]
    plain = what_if(bands.simulator_, original, other.curriculum)
    answer = what_if(bands.simulator_, original, other.curriculum, bands=bands)
    assert answer.level == 0.9
    assert "low" not in plain.changes
    np.testing.assert_array_equal(answer.changes["edited"], plain.changes["edited"])
    assert (answer.changes["low"] < answer.changes["change"]).all()
    assert (answer.changes["high"] > answer.changes["change"]).all()
    assert (
        answer.groups.loc["all", "low"] < answer.changes["change"].mean() < answer.groups.loc["all", "high"]
    )
    assert plain.trust.verdict == "unknown"
    assert f"verdict: {answer.trust}" in str(answer)
    assert "on 12 recorded runs, each left out of a fit" in str(answer)
    assert answer.summary()["verdict"] == answer.trust.verdict
    wide = answer.changes.assign(low=-np.inf, high=np.inf)
    changes = verified(replace(answer, changes=wide), original, other)
    assert agreement(changes)["in_band"] == 1
    assert agreement(changes.assign(high=-np.inf))["in_band"] == 0


def test_retraining_answers_beside_the_prediction() -> None:
    """The retrained run stands beside the predicted change, and in the printed answer."""
    runs, slope, intercept = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs[:10])
    asked = []

    def retrain(run, curriculum, schedule):
        asked.append((run.id, curriculum))
        losses = [run.loss[0]]
        for batch in curriculum:
            losses.append(truth([batch], slope, intercept, losses[-1]))
        return replace(run, curriculum=curriculum, metrics={"loss": np.array(losses)})

    answer = what_if(simulator, runs[10], runs[11].curriculum, retrain=retrain)
    assert asked == [(runs[10].id, runs[11].curriculum)]
    expected = truth(runs[11].curriculum, slope, intercept, runs[10].loss[0])
    np.testing.assert_allclose(answer.changes["retrained"], expected)
    np.testing.assert_allclose(answer.changes["true_change"], answer.changes["change"], atol=1e-4)
    assert "against retraining, over 4 test examples: Pearson 1.00" in str(answer)
    with pytest.raises(ValueError, match="a recorded run as the original"):
        what_if(simulator, runs[10].curriculum, runs[11].curriculum, runs[10].initial_loss, retrain=retrain)


def test_a_curriculum_takes_its_initial_losses_and_is_simulated() -> None:
    runs, *_ = synthetic_runs()
    simulator = LinearSimulator(1e-10).fit(runs)
    original, edited = runs[0].curriculum, runs[1].curriculum
    with pytest.raises(ValueError, match=r"takes initial_loss="):
        what_if(simulator, original, edited)
    of_a_run, of_its_curriculum = (
        what_if(simulator, one, edited, start).changes
        for one, start in ((runs[0], None), (original, runs[0].initial_loss))
    )
    np.testing.assert_allclose(of_a_run["change"], of_its_curriculum["change"], atol=1e-3)
    expected = simulator.simulate([original], runs[0].initial_loss)[0, -1]
    np.testing.assert_array_equal(of_its_curriculum["original"], expected)


def test_both_curricula_are_asked_at_the_given_learning_rate() -> None:
    rates = np.linspace(2e-3, 1e-3, 30)
    runs, _, intercept = synthetic_runs()
    runs = replaced(runs, learning_rate=rates)
    simulator = ScoresSimulator(InfluenceScores(-intercept, "made up", weighing="rate")).fit(runs)
    answer = what_if(simulator, runs[0], runs[1].curriculum, learning_rate=0 * rates)
    np.testing.assert_allclose(answer.changes["original"], runs[0].initial_loss)
    np.testing.assert_allclose(answer.changes["change"], 0, atol=1e-12)


def test_a_run_set_is_asked_about_its_last_run() -> None:
    runs, *_ = synthetic_runs(n_runs=12, noise=0.01)
    edited = edits.remove(runs[11].curriculum, [3])
    answer = ask(runs, LinearSimulator(), lambda curriculum: edits.remove(curriculum, [3]), train=8)
    bands = PredictiveBands(LinearSimulator(), 0.9).fit(runs[:8], runs[8:10])
    expected = what_if(bands.simulator_, runs[11], edited, test=runs.test, bands=bands)
    assert answer.original == runs[11].curriculum
    assert answer.notes == [UNLOGGED]
    pd.testing.assert_frame_equal(answer.changes, expected.changes)


def test_the_edited_run_is_not_fitted_to() -> None:
    runs, *_ = synthetic_runs(n_runs=12, noise=0.01)
    options = {"train": 6, "validation": 0, "level": None}
    answer = ask(runs, LinearSimulator(1.0), Edit("remove", ids=3), run_id="run-002", **options)
    others = LinearSimulator(1.0).fit(runs[[0, 1, 3, 4, 5, 6]])
    expected = what_if(others, runs[2], edits.remove(runs[2].curriculum, [3]))
    assert answer.notes == [UNLOGGED]
    assert answer.level is None
    np.testing.assert_array_equal(answer.changes["edited"], expected.changes["edited"])
    with_it = ask(runs, fit(runs, LinearSimulator(1.0), **options), Edit("remove", ids=3), run_id="run-002")
    assert any("fitted to run-002 itself" in note for note in with_it.notes)
    assert not np.array_equal(answer.changes["edited"], with_it.changes["edited"])


def test_few_runs_are_answered_with_a_note() -> None:
    runs, *_ = synthetic_runs(n_runs=2, noise=0.01)
    edit = Edit("remove", ids=[3])
    answer = ask(runs, LinearSimulator(1.0), edit)
    assert answer.notes == [UNLOGGED, "fewer runs than train + validation = 22: fitted to all but run-001"]
    assert np.isfinite(answer.changes[["change", "low", "high"]]).all(axis=None)
    assert "too few recorded runs to leave one out" in str(answer.trust)
    alone = ask(runs[:1], LinearSimulator(1.0), edit)
    assert alone.notes == [UNLOGGED, "fitted to run-000 itself, since the set has no other run"]


def test_a_fitted_simulator_answers_as_one_that_is_fitted_anew(tmp_path) -> None:
    runs, *_ = synthetic_runs(n_runs=12, noise=0.01)
    edit, file = Edit("repeat", ids=3, times=3), tmp_path / "linear.safetensors"
    anew = ask(runs, LinearSimulator(), edit, train=8)
    fit(runs, LinearSimulator(), train=8).save(file)
    answer = ask(runs, file, edit)
    pd.testing.assert_frame_equal(answer.changes, anew.changes)
    assert {"low", "high"} <= set(answer.changes)
    assert answer.notes[-1] == "the simulator linear was fitted to run-000, run-001, …, run-009 (10 runs)"
    assert "low" not in ask(runs, file, edit, level=None).changes
    assert "its bands are of level 0.9, not 0.5" in ask(runs, file, edit, level=0.5).notes
    assert any("fitted to run-004 itself" in note for note in ask(runs, file, edit, run_id="run-004").notes)
    other, *_ = synthetic_runs(n_runs=3, n_test=5)
    with pytest.raises(RunDataError, match="not those of these runs"):
        ask(other, file, edit)


def test_a_run_of_the_same_name_is_not_taken_for_another() -> None:
    """Sets of one task at several rates have equal names and curricula; their losses tell them apart."""
    runs, *_ = synthetic_runs(n_runs=3)
    slower = RunSet([replace(run, metrics={"loss": run.loss / 2}) for run in runs], runs.train, runs.test)
    fitted = fit(runs, LinearSimulator(1.0))
    assert fitted.has_seen(runs[0])
    assert not fitted.has_seen(slower[0])


def test_a_simulator_saved_alone_does_not_know_its_runs(tmp_path) -> None:
    runs, *_ = synthetic_runs(n_runs=4)
    LinearSimulator(1.0).fit(runs[:3]).save(tmp_path / "s.safetensors")
    answer = ask(runs, tmp_path / "s.safetensors", Edit("remove", ids=3))
    assert answer.notes == [
        UNLOGGED,
        "the simulator linear was fitted to runs that its file does not name",
        "no bands, since it was fitted without",
    ]
    with pytest.raises(RunDataError, match="there is no file"):
        ask(runs, tmp_path / "t.safetensors", Edit("remove", ids=3))


def test_evaluate_takes_a_fitted_simulator_as_it_is() -> None:
    runs, *_ = synthetic_runs(n_runs=10, noise=0.01)
    fitted: Fitted = fit(runs, LinearSimulator(1.0), train=3, validation=0)
    evaluation = evaluate({"fitted": fitted.unchanged(runs[8:])}, runs[:8], runs[8:])
    expected = LinearSimulator(1.0).fit(runs[:3]).simulate(runs[8:].curricula, runs[8:].initial_loss)
    np.testing.assert_array_equal(evaluation.simulated["fitted"], expected)
    with pytest.raises(ValueError, match="run-002 is one that it is to be tested on"):
        fitted.unchanged(runs[2:])


def test_examples_are_named_by_group_or_id(runs: RunSet) -> None:
    frame = ExampleTable.numbered(12).frame.assign(group=["a"] * 4 + ["1"] * 8)
    table, curriculum = ExampleTable(frame), runs[0].curriculum
    for group in ("a", ["a"], ("a",)):
        assert Edit("remove", groups=group).apply(curriculum, table) == edits.remove(curriculum, range(4))
    for group in (1, "1", [1], np.array([1]), [1.0]):
        assert Edit("keep", groups=group).apply(curriculum, table) == edits.keep(curriculum, range(4, 12))
    both = Edit("keep", groups="a", ids="7")
    assert both.apply(runs[0], table) == edits.keep(curriculum, [0, 1, 2, 3, 7])
    before = Edit("put_before", groups=1, before_groups="a")
    assert before.apply(curriculum, table) == edits.put_before(curriculum, range(4, 12), range(4))
    repeated = Edit("repeat", ids=3, times=10.0).apply(curriculum, table)
    assert np.sum(repeated.examples == 3) == 10 * np.sum(curriculum.examples == 3)
    assert len(Edit("shuffle", window=2).apply(curriculum, table)) == len(curriculum)
    assert Edit("length", steps=7).apply(curriculum, table) == edits.with_length(curriculum, 7)


def test_an_edit_says_what_it_is() -> None:
    assert str(Edit("remove", groups=["which", "what"], ids=3)) == "remove which what 3"
    assert str(Edit("repeat", ids=3, times=2, seed=1)) == "repeat 3 times 2 seed 1"
    assert str(Edit("put_before", groups="a", before_ids=[1, 2])) == "put a before 1 2"
    assert str(Edit("shuffle", window=4)) == "shuffle window 4"
    assert str(Edit("length", steps=4, schedule="keep")) == "length steps 4 schedule keep"


def test_unclear_questions_are_answered_with_an_error(runs: RunSet) -> None:
    for options, message in (
        ({"name": "forget", "ids": 1}, "there are remove"),
        ({"name": "shuffel"}, "did you mean 'shuffle'"),
        ({"name": "remove"}, "name the training examples"),
        ({"name": "put_before", "ids": 1}, "by before_groups or before_ids"),
        ({"name": "repeat", "ids": 1}, "times="),
        ({"name": "repeat", "ids": 1, "times": 1.5}, "times must be a whole number, got 1.5"),
        ({"name": "length"}, "length takes steps="),
        ({"name": "length", "steps": 2, "ids": 1}, "'length' takes no ids"),
        ({"name": "shuffle", "window": "2"}, "window must be a whole number, got '2'"),
        ({"name": "remove", "ids": 1, "times": 10}, "'remove' takes no times"),
        ({"name": "shuffle", "groups": "a"}, "'shuffle' takes no groups"),
    ):
        with pytest.raises(ValueError, match=message):
            Edit(**options)
    with pytest.raises(RunDataError, match="'99' is not in the table"):
        Edit("remove", ids=[99]).apply(runs[0], runs.train)
    with pytest.raises(RunDataError, match="the groups are"):
        Edit("remove", groups=["nobody"]).apply(runs[0], runs.train)
    with pytest.raises(ValueError, match="no example"):
        Edit("remove", ids=range(12)).apply(runs[0], runs.train)


def test_an_edit_that_changes_nothing_says_so() -> None:
    runs, *_ = synthetic_runs(n_runs=4)
    without = edits.remove(runs[3].curriculum, [3, 5])
    last = replace(
        runs[3],
        curriculum=without,
        metrics={"loss": runs[3].loss[: len(without) + 1]},
        evaluated=runs[3].evaluated[: len(without) + 1],
        learning_rate=runs[3].learning_rate[: len(without)],
        train_loss=runs[3].train_loss[: len(without)],
    )
    runs = RunSet([*runs[:3], last], runs.train, runs.test)
    for edit, message in (
        (Edit("remove", ids=[3, 5]), "run-003 never used '3', '5': there is nothing to remove"),
        (Edit("keep", ids=3), "run-003 never used '3': there is nothing to keep"),
        (Edit("repeat", ids=3, times=9), "run-003 never used '3': there is nothing to repeat"),
        (Edit("put_before", ids=1, before_ids=3), "run-003 never used '3': there is nothing to put others"),
        (Edit("repeat", ids=1, times=1), "'repeat 1 times 1' changes nothing in run-003"),
        (Edit("keep", ids=range(12)), "'keep .*' changes nothing in run-003"),
        (lambda curriculum: curriculum, "an edit that changes nothing has no answer"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(runs, LinearSimulator(1.0), edit)
    part = ask(runs, LinearSimulator(1.0), Edit("remove", ids=[1, 3]))
    assert "run-003 never used 3" in part.notes
    with pytest.raises(ValueError, match="changes nothing has no answer"):
        what_if(LinearSimulator(1.0).fit(runs), last, without)


def test_changes_by_group() -> None:
    runs, *_ = synthetic_runs()
    frame = runs.test.frame.assign(group=["x", "x", "y", "y"])
    grouped = RunSet(runs.runs, runs.train, ExampleTable(frame))
    simulator = LinearSimulator(1.0).fit(grouped)
    answer = what_if(simulator, runs[0], runs[1].curriculum, test=grouped.test)
    groups = by_group(answer.changes)
    assert list(groups.index) == ["x", "y", "all"]
    assert groups.loc["x", "change"] == pytest.approx(answer.changes["change"][:2].mean())
    assert groups.loc["all", "examples"] == 4
    with pytest.raises(RunDataError, match="the test examples are not those"):
        what_if(simulator, runs[0], runs[1].curriculum, test=runs.test)
