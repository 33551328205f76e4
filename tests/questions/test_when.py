"""Groups moved within a training."""

import numpy as np
import pytest

from simfluence import Curriculum, ExampleTable, RunSet, fit, what_if
from simfluence.errors import RunDataError
from simfluence.questions.when import PLACES, moved, when
from simfluence.simulators import make_simulator


@pytest.fixture(scope="module")
def asked():
    runs = RunSet.load("runs/openbookqa-minilm")
    return runs, fit(runs[list(range(10))], make_simulator("auto"), train=8), runs[31]


def test_uses_are_spread_over_a_third_and_all_keep_their_order():
    curriculum = Curriculum(np.array([0, 1, 2, 3, 4, 5, 6, 7, 0]), np.array([0, 3, 6, 9]), 8)
    streams = {place: list(moved(curriculum, [4, 0], place).examples) for place in PLACES}
    assert streams == {
        "early": [0, 4, 0, 1, 2, 3, 5, 6, 7],
        "middle": [1, 2, 3, 0, 4, 0, 5, 6, 7],
        "late": [1, 2, 3, 5, 6, 7, 0, 4, 0],
    }
    assert list(moved(curriculum, [5], "middle").examples) == [0, 1, 2, 3, 5, 4, 6, 7, 0]
    many = moved(curriculum, [0, 1, 2, 3, 4], "late")  # more than a third: up to the end
    assert list(many.examples) == [5, 6, 7, 0, 1, 2, 3, 4, 0]
    assert many.offsets.tolist() == curriculum.offsets.tolist()


def test_every_place_is_a_what_if(asked):
    runs, fitted, run = asked
    frame = when(fitted, run, train=runs.train, test=runs.test, groups=["which"])
    assert list(dict.fromkeys(frame["place"])) == list(PLACES)
    edited = moved(run.curriculum, runs.train.in_group("which"), "late")
    answer = what_if(fitted, run, edited, train=runs.train, test=runs.test)
    of = frame[frame["place"] == "late"].set_index("test").loc[answer.groups.index]
    columns = ["change", "low", "high"]
    np.testing.assert_allclose(of[columns], answer.groups[columns].astype(float), atol=1e-9)
    one = frame[frame["test"] == "all"].set_index("place")
    others = one.loc[["early", "middle"], "change"].mean()
    assert one.loc["late", "against_others"] == pytest.approx(one.loc["late", "change"] - others)


def test_what_comes_last_is_remembered_where_training_forgets():
    """Losses of a group fall while it is used and rise while it is not: the linear family's slope."""
    n, steps = 8, 60
    rng = np.random.default_rng(0)
    slope, level = np.full((n, 2), 0.03), np.full((n, 2), 2.0)
    level[:4, 0] = level[4:, 1] = 0.5  # each half teaches one test example, and the other forgets
    batches = np.stack([rng.permuted(np.tile(np.arange(n), 15)).reshape(steps, 2) for _ in range(8)])
    losses = np.full((8, steps + 1, 2), 2.0)
    for step in range(steps):
        pull = (slope * level)[batches[:, step]].sum(1) - slope[batches[:, step]].sum(1) * losses[:, step]
        losses[:, step + 1] = losses[:, step] + pull
    table = ExampleTable.of([{"id": row, "group": "first" if row < 4 else "second"} for row in range(n)])
    runs = RunSet.from_arrays(batches, losses, train=table)
    linear = make_simulator("linear", penalty=1e-6).fit(runs[list(range(6))])
    frame = when(linear, runs[7], train=runs.train, test=runs.test, of="0").set_index(["group", "place"])
    assert frame.loc[("first", "late"), "change"] < -0.2 < 0.2 < frame.loc[("first", "early"), "change"]
    assert frame.loc[("second", "late"), "change"] > 0.2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": ["nobody"]}, RunDataError, "no example is in group 'nobody'"),
        ({"groups": ["why"]}, ValueError, "never used the group 'why'"),
        ({"of": "nobody"}, ValueError, "named 'nobody'"),
    ],
)
def test_what_cannot_be_asked_is_said(asked, options, error, message):
    runs, fitted, run = asked
    with pytest.raises(error, match=message):
        when(fitted, run, train=runs.train, test=runs.test, **options)


def test_shares_have_no_uses_to_move():
    shares = Curriculum.from_shares(np.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="counted examples"):
        moved(shares, [0], "early")
    with pytest.raises(ValueError, match="place must be one of early, middle, late"):
        moved(Curriculum.from_batches([[0], [1]], 2), [0], "soon")
