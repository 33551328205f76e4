"""What-ifs against the model that made the runs: the truth under an edited curriculum is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from families import replaced, synthetic_runs

from simfluence import LinearSimulator, PredictiveBands, RunSet, what_if
from simfluence import curriculum as edits
from simfluence.attribution import InfluenceScores
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable
from simfluence.simulators import ScoresSimulator
from simfluence.whatif import agreement, ask, by_group, edit, verified


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


def test_the_band_holds_most_retrained_losses() -> None:
    runs, *_ = synthetic_runs(n_runs=14, noise=0.02)
    bands = PredictiveBands(LinearSimulator(penalty=1e-3), level=0.9).fit(runs[:12])
    original, other = runs[12], runs[13]
    plain = what_if(bands.simulator_, original, other.curriculum)
    answer = what_if(bands.simulator_, original, other.curriculum, bands=bands)
    assert answer.level == 0.9
    assert "low" not in plain.changes
    np.testing.assert_array_equal(answer.changes["edited"], plain.changes["edited"])
    assert (answer.changes["low"] < answer.changes["edited"]).all()
    assert (answer.changes["high"] > answer.changes["edited"]).all()
    wide = answer.changes.assign(low=-np.inf, high=np.inf)
    changes = verified(replace(answer, changes=wide), original, other)
    assert agreement(changes)["in_band"] == 1
    assert agreement(changes.assign(high=-np.inf))["in_band"] == 0


def test_retraining_answers_beside_the_prediction() -> None:
    """The retrained run stands beside the predicted change, and in the printed answer."""
    runs, slope, intercept = synthetic_runs(n_runs=12)
    simulator = LinearSimulator(penalty=1e-10).fit(runs[:10])
    asked = []

    def retrain(run, curriculum):
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


def test_a_curriculum_takes_its_initial_losses() -> None:
    runs, *_ = synthetic_runs()
    simulator = LinearSimulator(1.0).fit(runs)
    original, edited = runs[0].curriculum, runs[1].curriculum
    with pytest.raises(ValueError, match=r"takes initial_loss="):
        what_if(simulator, original, edited)
    of_a_run, of_its_curriculum = (
        what_if(simulator, one, edited, start).changes
        for one, start in ((runs[0], None), (original, runs[0].initial_loss))
    )
    np.testing.assert_array_equal(of_a_run["change"], of_its_curriculum["change"])


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
    assert answer.notes == []
    pd.testing.assert_frame_equal(answer.changes, expected.changes)
    without = ask(
        runs, LinearSimulator(), lambda _: edited, run_id="run-005", train=8, validation=0, level=None
    )
    assert without.original == runs[5].curriculum
    assert without.notes == ["the simulator is fitted to run-005 itself; choose a run that it has not seen"]
    assert without.level is None
    assert "low" not in without.changes


def test_few_runs_are_answered_with_a_note() -> None:
    runs, *_ = synthetic_runs(n_runs=2, noise=0.01)
    answer = ask(runs, LinearSimulator(1.0), lambda curriculum: edits.remove(curriculum, [3]))
    assert answer.notes == [
        "2 runs, fewer than train + validation = 22: fitted to all",
        "no bands, which take three runs to learn errors from",
    ]
    assert np.isfinite(answer.changes["change"]).all()


def test_examples_are_named_by_group_or_id(runs: RunSet) -> None:
    frame = ExampleTable.numbered(12).frame.assign(group=["a"] * 4 + ["b"] * 8)
    table = ExampleTable(frame)
    curriculum = runs[0].curriculum
    assert edit(curriculum, "remove", table, groups=["a"]) == edits.remove(curriculum, range(4))
    assert edit(curriculum, "keep", table, groups=["a"], ids=["7"]) == edits.keep(curriculum, [0, 1, 2, 3, 7])
    before = edit(curriculum, "put_before", table, groups=["b"], before_groups=["a"])
    assert before == edits.put_before(curriculum, range(4, 12), range(4))
    repeated = edit(curriculum, "repeat", table, ids=[3], times=10)
    assert np.sum(repeated.examples == 3) == 10 * np.sum(curriculum.examples == 3)
    assert len(edit(curriculum, "shuffle", table, window=2)) == len(curriculum)


def test_unclear_questions_are_answered_with_an_error(runs: RunSet) -> None:
    curriculum, table = runs[0].curriculum, runs.train
    with pytest.raises(ValueError, match="there are remove"):
        edit(curriculum, "forget", table, ids=[1])
    with pytest.raises(ValueError, match="name the training examples"):
        edit(curriculum, "remove", table)
    with pytest.raises(ValueError, match="times="):
        edit(curriculum, "repeat", table, ids=[1])
    with pytest.raises(RunDataError, match="'99' is not in the table"):
        edit(curriculum, "remove", table, ids=[99])
    with pytest.raises(RunDataError, match="the groups are"):
        edit(curriculum, "remove", table, groups=["nobody"])
    with pytest.raises(ValueError, match="no example"):
        edit(curriculum, "remove", table, ids=range(12))


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
