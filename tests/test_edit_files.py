"""Edits after each other, in files, by text and by score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence import LinearSimulator, RunSet, what_if
from simfluence import curriculum as edits
from simfluence.attribution import InfluenceScores
from simfluence.curriculum import Curriculum
from simfluence.edit import Edit, Edits
from simfluence.edit_files import read_edits, write_edits
from simfluence.errors import RunDataError
from simfluence.questions.compare import check_edits, compare, compared
from simfluence.runs import ExampleTable

TRAIN = ExampleTable(
    ExampleTable.numbered(12).frame.assign(
        group=["a"] * 4 + ["b"] * 4 + ["c"] * 4, text=[f"The {kind} {i}" for i in range(4) for kind in "xyz"]
    )
)
BATCHES = st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), min_size=2, max_size=8)
EDITS = st.sampled_from(
    [
        Edit("remove", groups="a"),
        Edit("remove", ids=[3, 7]),
        Edit("repeat", groups="b", times=2, seed=3),
        Edit("order", groups=["c", "a", "b"]),
        Edit("put_before", groups="b", before_groups="a"),
        Edit("shuffle", seed=1),
        Edit("length", steps=3),
        Edit("sample", count=2),
    ]
)


def applied(edit: Edit | Edits, curriculum: Curriculum) -> Curriculum | None:
    try:
        return edit.apply(curriculum, TRAIN)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None)
@given(BATCHES, EDITS, EDITS, EDITS)
def test_edits_after_each_other_are_applied_in_turn_however_they_are_put_together(batches, a, b, c) -> None:
    curriculum = Curriculum.from_batches(batches, 12)
    assert (a + b) + c == a + (b + c)
    assert str((a + b) + c) == str(a + (b + c))
    found = applied(a + b + c, curriculum)
    if found is not None:
        step = c.apply(b.apply(a.apply(curriculum, TRAIN), TRAIN), TRAIN)
        assert found == step


@settings(max_examples=100, deadline=None)
@given(BATCHES, st.permutations(["a", "b", "c"]), st.integers(1, 30), st.integers(1, 11))
def test_orders_lengths_and_samples_are_what_they_say(batches, order, steps, count) -> None:
    curriculum = Curriculum.from_batches(batches, 12)
    ordered = edits.in_order(curriculum, [TRAIN.in_group(group) for group in order])
    places = np.array([order.index(TRAIN.groups[row]) for row in ordered.examples])
    assert (np.diff(places) >= 0).all()
    np.testing.assert_array_equal(np.sort(ordered.examples), np.sort(curriculum.examples))
    for group in order:  # each keeps its order
        rows = TRAIN.in_group(group)
        own = [stream[np.isin(stream, rows)] for stream in (ordered.examples, curriculum.examples)]
        np.testing.assert_array_equal(*own)
    longer = edits.with_length(curriculum, steps)
    assert len(longer) == steps
    for step in range(steps):
        np.testing.assert_array_equal(longer[step], curriculum[step % len(curriculum)])
    if count < len(curriculum.used):
        sample = edits.sample(curriculum, count, np.random.default_rng(0))
        assert len(sample.used) == count
        assert sample == edits.keep(curriculum, sample.used)


def test_an_order_of_two_is_put_before_and_bad_ones_are_refused(runs: RunSet) -> None:
    curriculum = runs[0].curriculum
    found = edits.in_order(curriculum, [[5, 6], [1, 2]])
    assert found == edits.put_before(curriculum, [5, 6], [1, 2])
    with pytest.raises(ValueError, match="cannot come before itself"):
        edits.in_order(curriculum, [[1], [2], [1]])
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps must be a whole number"):
            edits.with_length(curriculum, steps)
    for count in (0, 12, 13):
        with pytest.raises(ValueError, match="below the 12 to draw from"):
            edits.sample(curriculum, count, np.random.default_rng(0))


def test_shares_are_lengthened_too() -> None:
    curriculum = Curriculum.from_shares([[0.5, 0.5], [0.2, 0.8]], 10)
    longer = edits.with_length(curriculum, 3)
    np.testing.assert_allclose(longer.counts().toarray(), [[5, 5], [2, 8], [5, 5]])


def test_examples_are_named_by_text() -> None:
    curriculum = Curriculum.from_batches([range(12)], 12)
    assert Edit("keep", text="THE X").apply(curriculum, TRAIN) == edits.keep(curriculum, [0, 3, 6, 9])
    both = Edit("keep", text=r"[yz] 3$", ids=0)
    assert both.apply(curriculum, TRAIN) == edits.keep(curriculum, [0, 10, 11])
    for edit, table, message in (
        (Edit("keep", text="w"), TRAIN, "no training example matches 'w'"),
        (Edit("keep", text="("), TRAIN, "no regular expression"),
        (Edit("keep", text="x"), TRAIN.without_text(), "does not keep the texts.*run.text=true"),
    ):
        with pytest.raises(ValueError, match=message):
            edit.apply(curriculum, table)


def test_examples_are_named_by_score(tmp_path: Path) -> None:
    curriculum, file = Curriculum.from_batches([range(12)], 12), str(tmp_path / "s.safetensors")
    test = ExampleTable(ExampleTable.numbered(3).frame.assign(group=["u", "u", "v"]))
    scores = np.arange(36.0).reshape(12, 3)
    scores[:, 2] *= -1
    InfluenceScores(scores, "made up").save(file)
    for edit, rows in (
        (Edit("keep", scores=file, above=20.0, of="u"), scores[:, :2].mean(1) > 20),
        (Edit("keep", scores=file, below=-20, of="v"), scores[:, 2] < -20),
        (Edit("keep", scores=file, above=1, below=5), (scores.mean(1) > 1) & (scores.mean(1) < 5)),
        (Edit("keep", scores=file, above=1, of="2", ids=7), np.arange(12) == 7),
    ):
        if rows.sum() == 1:
            with pytest.raises(ValueError, match=r"has such a score .*: they are -35 … -2"):
                edit.apply(curriculum, TRAIN, test)
        else:
            expected = edits.keep(curriculum, np.flatnonzero(rows))
            assert edit.apply(curriculum, TRAIN, test) == expected
    with pytest.raises(ValueError, match="named 'w'"):
        Edit("keep", scores=file, above=0, of="w").apply(curriculum, TRAIN, test)
    with pytest.raises(ValueError, match="give their table"):
        Edit("keep", scores=file, above=0, of="u").apply(curriculum, TRAIN)
    with pytest.raises(ValueError, match="expected"):
        Edit("keep", scores=file, above=0).apply(curriculum, TRAIN, TRAIN)
    with pytest.raises(RunDataError, match="there is no file nowhere"):
        Edit("keep", scores="nowhere", above=0).apply(curriculum, TRAIN, test)


def test_edits_say_what_they_do() -> None:
    first = Edit("remove", groups=["what", "which"])
    second = Edit("order", groups=["easy", "hard"])
    assert (first + second).sentence == (
        "leave out all training examples of what and which; then let easy, then hard follow one after the"
        " other"
    )
    assert str(first + second) == "remove what which, then order easy hard"
    named = Edit("remove", ids=range(8), schedule="keep")
    assert named.sentence == (
        "leave out the training examples 0, 1, 2, 3, 4 and 3 others, at the original's learning rates step by"
        " step"
    )
    scored = Edit("sample", count=3, seed=2, scores="x/s.safetensors", of="u", below=0.5)
    assert scored.sentence == (
        "keep a random 3 of training examples whose score for u in s.safetensors is below 0.5 (seed 2)"
    )
    assert str(scored) == "sample scores x/s.safetensors of u below 0.5 count 3 seed 2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "keep", "above": 1}, "are about scores"),
        ({"name": "keep", "scores": "x"}, "above= or below="),
        ({"name": "keep", "scores": "x", "above": "1"}, "above must be a number"),
        ({"name": "order", "groups": ["a"]}, "two or more, each once"),
        ({"name": "order", "groups": ["a", "b", "a"]}, "two or more, each once"),
        ({"name": "order", "ids": [1, 2]}, "takes no ids"),
        ({"name": "length"}, "length takes steps="),
        ({"name": "length", "steps": 1.5}, "whole number"),
        ({"name": "sample"}, "sample takes count="),
    ],
)
def test_unclear_edits_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Edit(**options)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit("remove", groups="a") + Edit("order", groups=["a", "b"]), "'order a b' contradicts 'remove a'"),
        (Edit("keep", groups="a") + Edit("remove", groups="b"), "leaves nothing of 'b'"),
        (Edit("keep", groups="a") + Edit("remove", groups="a"), "after 'keep a': .*leave no example"),
        (Edit("remove", ids=3) + Edit("repeat", ids=[2, 3], times=2), "leaves nothing of '3'"),
        (Edit("order", groups=["c", "a"]) + Edit("order", groups=["a", "c"]), "the edits undo each other"),
        (Edit("remove", ids=3) + Edit("length", steps=11), "after 'remove 3': .*changes nothing"),
        (Edit("remove", ids=3) + Edit("remove", groups="nobody"), "no example is in group 'nobody'"),
    ],
)
def test_contradictions_are_said(edit, message) -> None:
    with pytest.raises(ValueError, match=message):
        edit.apply(Curriculum.from_batches([[row] for row in range(12)], 12), TRAIN)


def test_one_question_has_one_schedule() -> None:
    with pytest.raises(ValueError, match="one schedule"):
        Edit("remove", ids=3, schedule="keep") + Edit("length", steps=3)
    with pytest.raises(ValueError, match="at least one edit"):
        Edits([])
    assert Edits([Edit("length", steps=3, schedule="keep")]).schedule == "keep"


def test_what_if_takes_edits_after_each_other(runs: RunSet) -> None:
    simulator, edit = LinearSimulator(1.0).fit(runs[:6]), Edit("remove", ids=3) + Edit("length", steps=40)
    edited = edits.with_length(edits.remove(runs[7].curriculum, [3]), 40)
    answer = what_if(simulator, runs[7], edit, train=runs.train)
    assert answer.edited == edited
    plain = what_if(simulator, runs[7], edited)
    np.testing.assert_array_equal(answer.changes["change"], plain.changes["change"])


FILE = """
without 3: {name: remove, ids: [3, 007, no]}
longer: {name: length, steps: 40, schedule: keep}
both:
  - {name: remove, groups: 3}
  - {name: sample, scores: s.safetensors, above: -1e-3, count: 2, below: null}
"""


def test_a_file_of_edits_is_read_and_written(tmp_path: Path) -> None:
    expected = {
        "without 3": Edit("remove", ids=["3", "007", "no"]),
        "longer": Edit("length", steps=40, schedule="keep"),
        "both": Edit("remove", groups="3") + Edit("sample", scores="s.safetensors", above=-1e-3, count=2),
    }
    (tmp_path / "edits.yaml").write_text(FILE)
    assert read_edits(tmp_path / "edits.yaml") == expected
    write_edits(tmp_path / "again.yaml", expected)
    assert read_edits(tmp_path / "again.yaml") == expected


NAMES = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]) | st.just("\n"), min_size=1)


@settings(max_examples=50, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4), NAMES)
def test_every_name_survives_a_file(tmp_path_factory, ids, name) -> None:
    file = tmp_path_factory.mktemp("edits") / "edits.yaml"
    edits = {name: Edit("remove", ids=ids), f"{name}+": Edit("remove", groups=ids) + Edit("shuffle")}
    write_edits(file, edits)
    assert read_edits(file) == edits


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map names to edits"),
        ("- {name: shuffle}", "must map names to edits"),
        ("a: {name: shuffle", "is no YAML"),
        ("a: shuffle", "a must be an edit"),
        ("a: []", "a must be an edit"),
        ("a: {groups: [x]}", "a: the edit has no name"),
        ("a: {name: forget}", "a: no edit is named 'forget'"),
        ("a: [{name: shuffle}, {name: remove}]", "a, edit 2: remove: name the training examples"),
        ("a: {name: remove, id: [3]}", "a: an edit has no field 'id'; did you mean 'ids'"),
        ("a: {name: repeat, ids: [3], times: two}", "times must be a whole number, got 'two'"),
        ("a: {name: shuffle}\na: {name: shuffle}", "line 2: 'a' must be a name, once"),
        ("a: &x {name: shuffle}\nb: *x", "aliases"),
        ("a: {name: remove, ids: [[3]]}", "ids must be a list of texts"),
        ("a: {name: length, steps: [3]}", "steps must be one value"),
        ("a: [{name: shuffle, schedule: keep}, {name: length, steps: 3}]", "a: the edits .* one schedule"),
        ("a: !!python/object/apply:os.system [ls]", "must be an edit|no YAML|must map"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "edits.yaml").write_text(text)
    with pytest.raises(RunDataError, match=message):
        read_edits(tmp_path / "edits.yaml")
    with pytest.raises(RunDataError, match="cannot be read"):
        read_edits(tmp_path / "none.yaml")


def test_edits_are_compared_as_each_is_answered(runs: RunSet) -> None:
    from simfluence.fitted import fit

    fitted = fit(runs, LinearSimulator(1.0), train=6, validation=0, held_out="run-007")
    asked = {"one": Edit("remove", ids=3), "two": Edit("remove", ids=3) + Edit("length", steps=40)}
    table = compared(compare(runs, fitted, runs[7], asked), asked)
    assert list(table["edit"]) == ["one", "two"]
    assert table["steps"].tolist()[1] == 40
    for name, edit in asked.items():
        answer = what_if(fitted, runs[7], edit, train=runs.train, test=runs.test)
        row = table[table["edit"] == name].iloc[0]
        for column in ("change", "low", "high", "verdict"):
            assert row[column] == answer.groups.loc["all", column]
    with pytest.raises(RunDataError, match=r"my\.yaml: one: example id '99'"):
        check_edits(runs, runs[7], {"one": Edit("remove", ids=99)}, "my.yaml")


RECORDED = Path("runs/openbookqa-minilm").resolve()
LINEAR = (f"path={RECORDED}", "simulator=linear", "simulator.penalty=0.01", "train=8", "validation=0")


def test_whatif_asks_a_file(simfluence, tmp_path: Path) -> None:
    (tmp_path / "edits.yaml").write_text(
        "no which: {name: remove, groups: [which]}\n"
        "short: [{name: remove, groups: [which]}, {name: length, steps: 40}]\n"
    )
    found = simfluence("whatif", *LINEAR, "file=edits.yaml", "output=out", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "- no which: leave out all training examples of which (87 steps)" in found.stdout
    assert "then train for 40 steps (40 steps)" in found.stdout
    table = pd.read_csv(tmp_path / "out" / "edits.csv")
    one = simfluence("whatif", *LINEAR, "file=edits.yaml", "only=[short]", "output=one", cwd=tmp_path)
    assert "remove which, then length steps 40 (96 steps → 40)" in one.stdout
    same = simfluence("whatif", *LINEAR, "edit.groups=which", "output=same", cwd=tmp_path)
    assert "remove which (96 steps → 87)" in same.stdout
    for name, folder in (("short", "one"), ("no which", "same")):
        changes = pd.read_csv(tmp_path / folder / "what_if.csv")["change"]
        row = table[(table["edit"] == name) & (table["test"] == "all")]
        np.testing.assert_allclose(row["change"], changes.mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["file=none.yaml"], "the file of edits none.yaml cannot be read"),
        (["file=edits.yaml", "only=[y]"], "has no edit 'y'; it has x, z"),
        (["only=[y]"], "give file="),
        (["file=edits.yaml", "edit.groups=which"], "not both"),
        (["file=edits.yaml"], "edits.yaml: z: no example is in group 'nobody'"),
        (["edit.text=which of these"], "does not keep the texts"),
        (["edit.scores=none.safetensors", "edit.above=0"], "there is no file none.safetensors"),
        (["edit.name=length", "edit.steps=ten"], "a whole number"),
        (["edit.scores=s", "edit.above=much"], "edit.above must be a number"),
    ],
)
def test_whatif_refuses_bad_files(simfluence, tmp_path: Path, options, message) -> None:
    (tmp_path / "edits.yaml").write_text("x: {name: shuffle}\nz: {name: remove, groups: nobody}\n")
    found = simfluence("whatif", *LINEAR, *options, cwd=tmp_path)
    assert found.returncode == 2
    assert message in found.stderr
