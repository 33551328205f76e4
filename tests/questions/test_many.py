import numpy as np
import pytest

from simfluence import RunSet, fit, what_if
from simfluence.curriculum import keep, remove
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.runs.schedule import edited_rates, recorded_rates
from simfluence.simulators import make_simulator


@pytest.fixture(scope="module", params=["auto", "additive"])
def asked(request):
    runs = RunSet.load("runs/openbookqa-minilm")
    fitted = fit(runs[list(range(10))], make_simulator(request.param), train=8)
    return runs, fitted, runs[20]


def edits(run):
    used = np.unique(run.curriculum.examples)
    return [
        remove(run.curriculum, used[:1]),
        remove(run.curriculum, used[::3]),
        keep(run.curriculum, used[:60]),
    ]


@pytest.mark.parametrize("schedule", ["stretch", "keep"])
def test_every_edit_is_answered_as_what_if_answers_it(asked, schedule):
    runs, fitted, run = asked
    found = many_changes(fitted, run, edits(run), schedule=schedule)
    table = with_bands(fitted, run, found, chosen_tests(runs.test), runs.train)
    for number, edited in enumerate(edits(run)):
        answer = what_if(fitted, run, edited, test=runs.test, train=runs.train, schedule=schedule)
        np.testing.assert_allclose(found.change[number], answer.changes["change"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.original, answer.changes["original"], rtol=1e-6)
        mine = table[table["edit"] == number].set_index("test")[["change", "low", "high"]]
        expected = answer.groups.loc[mine.index, ["change", "low", "high"]]
        np.testing.assert_allclose(mine, expected.astype(float), rtol=0, atol=1e-9)
        verdicts = table[table["edit"] == number].set_index("test")["verdict"]
        assert list(verdicts) == list(answer.groups.loc[verdicts.index, "verdict"])


def test_without_the_residual_simulated_losses_alone_are_compared(asked):
    _, fitted, run = asked
    found = many_changes(fitted, run, edits(run), with_residual=False)
    for change, edited in zip(found.change, edits(run), strict=True):
        rates = np.zeros((2, len(run)))
        rates[0], rates[1, : len(edited)] = recorded_rates(run), edited_rates(run, len(edited), "stretch")
        given = {"learning_rate": rates, "level": None}
        answer = what_if(fitted, run.curriculum, edited, run.initial_loss, **given)
        np.testing.assert_allclose(change, answer.changes["change"], rtol=0, atol=1e-9)


def test_sets_of_test_examples_are_named(asked):
    runs, _, _ = asked
    assert list(chosen_tests(runs.test))[-1] == "all"
    assert list(chosen_tests(runs.test, "which")) == ["which"]
    assert chosen_tests(runs.test, runs.test.ids[3]) == {runs.test.ids[3]: np.array([3])}
    with pytest.raises(ValueError, match="named 'nobody'"):
        chosen_tests(runs.test, "nobody")


def test_no_edit_is_no_question(asked):
    _, fitted, run = asked
    with pytest.raises(ValueError, match="no edit"):
        many_changes(fitted, run, [])
