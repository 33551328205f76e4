"""A search finds what trying everything finds; it can be stopped, and says what it cannot do."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from families import synthetic_runs

from simfluence import Curriculum, LinearSimulator, RunSet, ShareSimulator, fit, what_if
from simfluence import curriculum as edits
from simfluence.edit import Edit, Edits
from simfluence.edit_files import read_edits
from simfluence.errors import RunDataError
from simfluence.fitted import Fitted
from simfluence.questions import search as searching
from simfluence.questions.goals import LeaveOut, Order, Repeats, Shares
from simfluence.questions.many import chosen_tests, many_changes, with_bands
from simfluence.questions.search import search
from simfluence.runs import ExampleTable, Run


@pytest.fixture(scope="module")
def asked() -> tuple[RunSet, Fitted, Run]:
    """Twelve runs of 12 training examples in four groups and 4 test examples in two."""
    runs = synthetic_runs(n_runs=12, noise=0.01)[0]
    train = ExampleTable(runs.train.frame.assign(group=list("aaabbbcccddd")))
    test = ExampleTable(runs.test.frame.assign(group=list("uuvv")))
    runs = RunSet(runs.runs, train, test)
    return runs, fit(runs, LinearSimulator(0.1), train=9, validation=1, held_out="run-011"), runs[11]


def losses(asked, edited) -> np.ndarray:
    """Predicted losses [edit, test], as a search compares them."""
    _, fitted, run = asked
    change = many_changes(fitted, run, edited, with_residual=False).change
    return run.loss[-1] + change


def found(asked, **options):
    runs, fitted, run = asked
    return search(fitted, run, train=runs.train, test=runs.test, **options)


@pytest.mark.parametrize("of", [None, "u", "2"])
@pytest.mark.parametrize("objective", ["mean", "worst"])
def test_leaving_one_out_is_the_best_of_all(asked, of, objective) -> None:
    runs, _, run = asked
    (rows,) = chosen_tests(runs.test, of or "all").values()
    predicted = losses(asked, [edits.remove(run.curriculum, [row]) for row in run.curriculum.used])[:, rows]
    values = predicted.mean(1) if objective == "mean" else predicted.max(1)
    result = found(asked, k=1, of=of, objective=objective)
    assert result.edit == Edit("remove", ids=[runs.train.ids[run.curriculum.used[values.argmin()]]])
    assert result.path["objective"].iloc[-1] == pytest.approx(values.min())


def test_leaving_three_out_is_the_best_of_all_threes(asked) -> None:
    runs, _, run = asked
    threes = list(itertools.combinations(run.curriculum.used.tolist(), 3))
    values = losses(asked, [edits.remove(run.curriculum, three) for three in threes]).mean(1)
    result = found(asked, k=3)
    assert result.edit.rows(runs.train).tolist() == list(threes[values.argmin()])
    objective = result.path["objective"].to_numpy()
    assert (np.diff(objective[result.path["what"] == "near"]) <= 0).all()
    assert result.path["tried"].is_monotonic_increasing


def test_the_order_is_the_best_of_all_orders(asked) -> None:
    runs, _, run = asked
    orders = list(itertools.permutations("abcd"))
    edited = [edits.in_order(run.curriculum, [runs.train.in_group(name) for name in one]) for one in orders]
    values = losses(asked, edited).max(1)
    result = found(asked, goal="order", objective="worst")
    assert result.edit == Edit("order", groups=orders[values.argmin()])


def test_repeats_are_the_best_of_all_that_fit_into_the_budget(asked) -> None:
    runs, _, run = asked
    values = {}
    for counts in itertools.product(range(3), repeat=4):
        steps = [Edit("remove", groups=[g]) for g, n in zip("abcd", counts, strict=True) if n == 0]
        steps += [Edit("repeat", groups=[g], times=2) for g, n in zip("abcd", counts, strict=True) if n == 2]
        if steps and any(counts):
            edited = Edits(steps).apply(run, runs.train)
            if len(edited) <= 35:
                values[counts] = losses(asked, [edited]).mean()
    result = found(asked, goal="repeats", most=2, budget=35)
    assert len(result.edit.apply(run, runs.train)) <= 35
    assert result.path["objective"].iloc[-1] == pytest.approx(min(values.values()))


def test_risk_counts_the_upper_edge_of_the_band(asked) -> None:
    runs, fitted, run = asked
    ones = [edits.remove(run.curriculum, [row]) for row in run.curriculum.used]
    changes = many_changes(fitted, run, ones, with_residual=False)
    table = with_bands(fitted, run, changes, {"all": np.arange(4)}, runs.train)
    values = table["change"] + 2 * (table["high"] - table["change"])
    result = found(asked, k=1, risk=2)
    assert result.edit == Edit("remove", ids=[runs.train.ids[run.curriculum.used[values.argmin()]]])


def test_the_prediction_is_the_answer_of_what_if(asked) -> None:
    runs, fitted, run = asked
    result = found(asked, k=2, of="v")
    answer = what_if(fitted, run, result.edit, train=runs.train, test=runs.test)
    assert result.predicted["test"].tolist() == ["v", "u", "all"]
    for row in result.predicted.itertuples():
        expected = answer.groups.loc[row.test, ["change", "low", "high"]].astype(float)
        np.testing.assert_allclose([row.change, row.low, row.high], expected, rtol=1e-9)
    assert f"the best of {result.path['tried'].iloc[-1]} predictions" in str(result)


def test_a_search_that_was_stopped_goes_on(asked, tmp_path: Path, monkeypatch) -> None:
    whole = found(asked, k=4, seed=1, candidates=9)
    file, keep = tmp_path / "state.json", searching._Search._keep

    def stops(self, *arguments) -> None:
        keep(self, *arguments)
        if len(self.path) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(searching._Search, "_keep", stops)
    with pytest.raises(KeyboardInterrupt):
        found(asked, k=4, seed=1, candidates=9, state=file)
    assert len(json.loads(file.read_text())["path"]) == 3
    monkeypatch.setattr(searching._Search, "_keep", keep)
    resumed = found(asked, k=4, seed=1, candidates=9, state=file)
    pd.testing.assert_frame_equal(resumed.path, whole.path)
    assert resumed.edit == whole.edit
    with pytest.raises(RunDataError, match="a search for something else"):
        found(asked, k=3, state=file)
    file.write_text("{}")
    with pytest.raises(RunDataError, match="does not hold a search"):
        found(asked, k=4, state=file)


def test_many_are_left_out_several_a_round(asked, monkeypatch) -> None:
    monkeypatch.setattr("simfluence.questions.goals.GREEDY_ROUNDS", 2)
    result = found(asked, k=5)
    assert len(result.edit.ids) == 5
    assert (result.path["what"] == "first").sum() == 2


def test_choices_near_others() -> None:
    assert Order(list("abc"), 0).all_near((0, 1, 2)) == [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1)]
    assert sorted(Repeats(["a", "b"], 2).all_near((2, 0))) == [(1, 0), (1, 1), (2, 1)]
    shares = Shares(["a", "b"], (97, 3))
    assert shares.all_near((97, 3)) == [(77, 23), (87, 13), (92, 8), (95, 5), (96, 4), (98, 2), (99, 1)]
    assert shares.edit((97, 3)) is None
    assert shares.edit((100, 0)) == Edit("shares", shares="100% a")
    rng = np.random.default_rng(0)
    two, swaps = LeaveOut(list("abcde"), 2, "example"), {(0, 1), (0, 2), (0, 4), (1, 3), (2, 3), (3, 4)}
    assert set(two.near((0, 3), 99, rng)) == swaps
    some = two.near((0, 3), 4, rng)
    assert len(set(some)) == 4
    assert set(some) <= swaps
    seven = Order(list("abcdefg"), 0)
    assert len(seven.first(())) == 200
    assert seven.first(()) == seven.first(())


def test_shares_are_searched() -> None:
    runs = shares_runs()
    fitted = fit(runs, ShareSimulator(), train=18, validation=2, held_out=runs.ids[-1])
    result = search(fitted, runs[-1], train=runs.train, test=runs.test, goal="shares")
    every = [
        Edit("shares", shares=", ".join(f"{n}% {g}" for n, g in zip(part, runs.train.ids, strict=True)))
        for part in itertools.product(range(0, 101, 10), repeat=3)
        if sum(part) == 100
    ]
    curricula = [edit.apply(runs[-1], runs.train) for edit in every]
    values = many_changes(fitted, runs[-1], curricula, with_residual=False).change.mean(1)
    best = result.path["objective"].iloc[-1] - runs[-1].loss[-1].mean()
    assert best <= values.min() + 1e-3
    assert result.edit.name == "shares"


def shares_runs() -> RunSet:
    """Runs on constant shares of three groups, whose losses fall fastest where the first two are alike."""
    rng = np.random.default_rng(0)
    mixtures = rng.dirichlet(np.ones(3), 24)
    speeds = 0.02 + 0.1 * mixtures[:, [0]] * mixtures[:, [1]] + 0.002 * np.arange(4)
    losses = 2 * np.exp(-speeds[:, None, :] * np.arange(21)[:, None])
    curricula = [Curriculum.from_shares(np.tile(mixture, (20, 1)), 10) for mixture in mixtures]
    table = ExampleTable.of([{"id": name, "group": name} for name in ("web", "code", "books")])
    unknown, steps = np.full(20, np.nan), np.arange(21)
    found = [
        Run(f"run-{number:03}", curriculum, {"loss": loss}, steps, unknown, unknown)
        for number, (curriculum, loss) in enumerate(zip(curricula, losses, strict=True))
    ]
    return RunSet(found, table, ExampleTable.numbered(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "everything"}, "chooses leave_out, order, repeats, shares"),
        ({"goal": "leave_out"}, r"k, how many to leave out, must be 1 … 11"),
        ({"goal": "leave_out", "k": 12}, "uses 12 examples; got 12"),
        ({"goal": "leave_out", "k": 1.5}, "got 1.5"),
        ({"goal": "leave_out", "k": 2, "per": "word"}, "per must be"),
        ({"goal": "repeats", "most": 1}, "most, how often"),
        ({"goal": "shares"}, "consumes counted examples"),
        ({"k": 2, "of": "w"}, "named 'w'"),
        ({"k": 2, "objective": "best"}, "objective must be mean or worst"),
        ({"k": 2, "risk": -1}, "risk must be 0 or more"),
        ({"k": 2, "budget": 0}, "budget must be a whole number"),
        ({"k": 2, "rounds": 0}, "rounds must be a whole number"),
        ({"k": 2, "budget": 3}, "none of 12 edits can be made within 3 steps"),
    ],
)
def test_what_cannot_be_searched_is_said(asked, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        found(asked, **options)


def test_risk_takes_bands_and_orders_take_groups(asked) -> None:
    runs, fitted, run = asked
    with pytest.raises(ValueError, match="takes a simulator with bands"):
        search(fitted.simulator, run, train=runs.train, test=runs.test, k=1, risk=1)
    plain = ExampleTable.numbered(12)
    with pytest.raises(ValueError, match="uses 0 groups"):
        search(fitted.simulator, run, train=plain, test=runs.test, goal="order")


RECORDED = Path("runs/openbookqa-minilm").resolve()


def test_the_command_writes_an_edit_that_whatif_asks(simfluence, tmp_path: Path) -> None:
    options = (f"path={RECORDED}", "simulator=linear", "simulator.penalty=0.01", "train=8", "validation=0")
    done = simfluence("search", *options, "goal=leave_out", "per=group", "k=1", "output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a round of the local search at most" in done.stdout
    (edit,) = read_edits(tmp_path / "out" / "edits.yaml").values()
    assert f"best found: {edit.sentence}" in done.stdout
    answer = simfluence("whatif", *options, "file=out/edits.yaml", "output=answer", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    change = pd.read_csv(tmp_path / "answer" / "what_if.csv")["change"].mean()
    predicted = pd.read_csv(tmp_path / "out" / "predicted.csv").set_index("test")["change"]
    assert predicted["all"] == pytest.approx(change)
    for option, message in (
        ("k=999", "k, how many to leave out"),
        ("of=nobody", "named 'nobody'"),
        ("goal=best", "a search chooses"),
        ("k=many", "a whole number"),
        ("goal=order", "a search for something else"),
    ):
        refused = simfluence("search", *options, option, "output=out", cwd=tmp_path)
        assert refused.returncode == 2
        assert message in refused.stderr
