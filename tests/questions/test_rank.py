"""Rankings against edits asked one by one, and first-order changes against finite differences."""

import numpy as np
import pytest
from families import replaced

from simfluence import Curriculum, RunSet, fit, what_if
from simfluence.attribution import InfluenceScores
from simfluence.curriculum import remove
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.questions.rank import rank, used_once_more
from simfluence.runs.schedule import edited_rates, recorded_rates
from simfluence.simulators import make_simulator


@pytest.fixture(scope="module")
def asked():
    runs = RunSet.load("runs/openbookqa-minilm")
    return runs, fit(runs[list(range(10))], make_simulator("auto"), train=8), runs[20]


def ranked(asked, **options):
    runs, fitted, run = asked
    return rank(fitted, run, train=runs.train, test=runs.test, **options)


def test_leaving_out_is_ranked_as_edits_asked_one_by_one(asked):
    runs, fitted, run = asked
    frame = ranked(asked)
    assert set(frame["id"]) == {runs.train.ids[row] for row in run.curriculum.used}
    assert f"{run.id} never used" in frame.attrs["notes"][0]
    assert set(frame["method"]) == {"simulated"}
    for _, rows in frame.groupby("test"):
        assert (np.diff(rows["change"]) <= 0).all()  # the most helpful first
    for example in (frame["id"].iloc[0], frame["id"].iloc[-1]):
        row = runs.train.ids.index(example)
        edited = remove(run.curriculum, [row])
        rates = np.zeros((2, len(run)))
        rates[0], rates[1, : len(edited)] = recorded_rates(run), edited_rates(run, len(edited), "stretch")
        one = what_if(
            fitted,
            run.curriculum,
            edited,
            run.initial_loss,
            runs.test,
            train=runs.train,
            learning_rate=rates,
        )
        mine = frame[frame["id"] == example].set_index("test").loc[one.groups.index]
        np.testing.assert_allclose(
            mine[["change", "low", "high"]], one.groups[["change", "low", "high"]], atol=1e-9
        )
        assert list(mine["verdict"]) == list(one.groups["verdict"])
        assert (mine["group"] == runs.train.groups[row]).all()
        assert (mine["uses"] == (run.curriculum.examples == row).sum()).all()


def test_one_more_use_helps_where_it_lowers_the_loss(asked):
    runs, fitted, run = asked
    frame = ranked(asked, what="add_one", of="all")
    assert len(frame) == len(runs.train)
    assert (np.diff(frame["change"]) >= 0).all()
    row = runs.train.ids.index(frame["id"].iloc[3])
    edited, step = used_once_more(run.curriculum, [row])
    changes = many_changes(fitted, run, [edited], with_residual=False)
    assert frame["change"].iloc[3] == pytest.approx(changes.change.mean(), abs=1e-12)
    table = with_bands(fitted, run, changes, chosen_tests(runs.test, "all"), runs.train)
    assert frame["high"].iloc[3] == pytest.approx(table["high"].iloc[0], abs=1e-12)
    assert list(step) == [len(run) // 2]
    assert list(edited[step[0]]) == [*run.curriculum[step[0]], row]


def test_additional_uses_are_spread_over_the_training():
    curriculum = Curriculum.from_batches([[0], [1, 2], [0, 1], [2]], 4)
    edited, steps = used_once_more(curriculum, [3, 3])
    assert [list(batch) for batch in edited] == [[0], [1, 2, 3], [0, 1], [2, 3]]
    assert list(steps) == [1, 3]


def test_groups_are_ranked_whole(asked):
    runs, fitted, run = asked
    frame = ranked(asked, per="group", of="which").set_index("group")
    group = frame.index[0]
    edited = remove(run.curriculum, runs.train.in_group(group))
    changes = many_changes(fitted, run, [edited], with_residual=False).change[0]
    assert frame.loc[group, "change"] == pytest.approx(
        changes[chosen_tests(runs.test)["which"]].mean(), abs=1e-9
    )
    assert "id" not in frame
    assert frame["uses"].sum() == len(run.curriculum.examples)


@pytest.mark.parametrize("what", ["leave_out", "add_one"])
def test_to_first_order_the_ranking_is_nearly_the_same(asked, what):
    exact = ranked(asked, what=what).set_index(["id", "test"])
    first = ranked(asked, what=what, first_order=True).set_index(["id", "test"]).loc[exact.index]
    assert set(first["method"]) == {"first order"}
    assert np.corrcoef(exact["change"], first["change"])[0, 1] > 0.95
    np.testing.assert_allclose(first["change"], exact["change"], atol=0.5 * exact["change"].std())
    np.testing.assert_allclose(
        first["high"] - first["low"], exact["high"] - exact["low"], rtol=0.2, atol=0.1 * exact["high"].mean()
    )


SIMULATORS = {
    "linear": {"penalty": 100.0, "center": "pooled"},
    "additive": {},
    "multiplicative": {"penalty": 1.0},
    "scores": {"scores": True},
    "dynamics": {"scores": True},
    "effects": {},
    "effects, dynamics": {"kernel": "effects"},
    "effects, scores": {"kernel": "scores", "scores": True},
    "effects, identity": {"link": "identity"},
    "effects, identity, dynamics": {"link": "identity", "kernel": "effects"},
    "auto": {},
}


@pytest.mark.parametrize("name", SIMULATORS)
def test_first_order_changes_are_the_limit_of_small_ones(name, asked):
    """A batch that holds every example a thousand times, and one example once more, counts it by a thousandth
    of a use more; and all others, of the same sum, by as much less.
    """
    runs, _, run = asked
    copies, step, options = 1000, 40, dict(SIMULATORS[name])
    if options.get("scores"):
        options["scores"] = InfluenceScores.load("runs/openbookqa-minilm/scores.safetensors")
    simulator = make_simulator(name.split(",")[0], **options).fit(runs[list(range(8))])
    batches = [np.asarray(batch) for batch in run.curriculum]
    examples = np.array([*batches[step], 0, 5])
    rates = recorded_rates(run)
    found = simulator.first_order(
        run.curriculum, run.initial_loss, np.full(len(examples), step), examples, rates
    )
    found -= found[: len(batches[step])].mean(0)

    def larger(*more):
        batch = np.concatenate([np.repeat(batches[step], copies), np.array(more, np.int64)])
        return Curriculum.from_batches(
            [*batches[:step], batch, *batches[step + 1 :]], run.curriculum.n_examples
        )

    curricula = [larger(), *(larger(row) for row in examples)]
    final = simulator.simulate(curricula, run.initial_loss, rates)[:, -1]
    small = (final[1:] - final[0]) * copies
    np.testing.assert_allclose(found, small, rtol=2e-3, atol=2e-3 * np.abs(small).max())


def test_simulators_without_first_order_are_simulated(asked):
    runs, _, run = asked
    mean = make_simulator("mean_trajectory").fit(runs[list(range(5))])
    frame = rank(mean, run, train=runs.train, test=runs.test, of="all")
    assert "verdict" not in frame
    assert set(frame["method"]) == {"simulated"}
    with pytest.raises(ValueError, match="'mean_trajectory' has no first-order changes"):
        rank(mean, run, train=runs.train, test=runs.test, first_order=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "word"}, "per must be 'example' or 'group', got 'word'"),
        ({"what": "drop"}, "what must be 'leave_out' or 'add_one'"),
        ({"of": "nobody"}, "nor a test example, named 'nobody'"),
    ],
)
def test_what_cannot_be_ranked_is_said(asked, options, message):
    with pytest.raises(ValueError, match=message):
        ranked(asked, **options)


def test_a_run_of_one_example_has_nothing_to_leave_out(asked):
    runs, fitted, run = asked
    same = Curriculum(np.zeros(len(run.curriculum.examples), int), run.curriculum.offsets, len(runs.train))
    alone = replaced(runs[[20]], curriculum=same)[0]
    with pytest.raises(ValueError, match="used one training example"):
        rank(fitted, alone, train=runs.train, test=runs.test)
