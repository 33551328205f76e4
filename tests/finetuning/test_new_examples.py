"""Examples that are scored after a run was recorded: of a file, or typed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import CHATML, save_model

from simfluence.cli import main
from simfluence.errors import RunDataError
from simfluence.finetuning.completions import TruncatedWarning
from simfluence.finetuning.new_examples import read_examples, typed_example
from simfluence.options import as_typed, compose
from simfluence.scores import InfluenceScores


def written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def classes(tmp_path: Path) -> dict[str, Any]:
    """The options of a task of three classes with names."""
    rows = [{"text": f"t{i}", "label": ("bad", "good", "so-so")[i % 3]} for i in range(9)]
    path = written(tmp_path / "rows.jsonl", rows)
    return {"source": "jsonl", "path": path, "n_train": 6, "n_test": 3, "labels": ["so-so", "bad", "good"]}


def test_labels_are_those_of_the_runs_task(classes: dict[str, Any], tmp_path: Path) -> None:
    """Not those of the names that occur in the new file."""
    file = written(tmp_path / "new.jsonl", [{"text": "a", "label": "good"}, {"text": "b", "label": "bad"}])
    assert [example.label for example in read_examples(file, classes)] == [2, 1]
    (typed,) = typed_example({"text": "x", "label": "good"}, classes)
    assert (typed.id, typed.inputs, typed.label) == ("typed", (("x", ""),), 2)
    for row, message in (
        ({"text": "x", "label": "great"}, "the example that was typed in: a label must be"),
        ({"text": "x"}, "the example that was typed in: expected one of the forms"),
        ({"question": "Where?", "choices": ["a", "b"], "label": 0}, "kind classification.* is a choice"),
    ):
        with pytest.raises(RunDataError, match=message):
            typed_example(row, classes)
    numbers = classes | {"labels": None}
    numbers["path"] = written(tmp_path / "n.jsonl", [{"text": f"t{i}", "label": i % 3} for i in range(9)])
    with pytest.raises(RunDataError, match="the label 3 of example 'typed' is none of the 3 classes"):
        typed_example({"text": "x", "label": "3"}, numbers)


ODD = [
    "What is <b>2+2</b>, [really]: it's {x} = 'y'?",
    "😀 naïve \\ back\\'slash\\",
    "${path} $5 % #",
    "two\nlines\tand a tab",
    "-1e3",
    "ha " * 33_000,
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_a_text_reaches_the_command_as_it_was_typed(text: str) -> None:
    config = compose("attribute", as_typed("attribute", [f"example.prompt={text}"]))
    assert str(config.example.prompt) == text


def test_completions_are_scored_from_a_store(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Of a file of chats, and of a prompt and its completion."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    rows = [{"id": f"c{i}", "prompt": f"{i} + 1 = ", "completion": str(i + 1)} for i in range(8)]
    written(Path("rows.jsonl"), rows)
    model = save_model(tmp_path / "model", template=CHATML, tokens=32)
    task = ["task=instructions", "task.path=rows.jsonl", "task.n_test=2", "model=pretrained"]
    task += [f"model.name={model}", "model.max_length=32", "tuning=full", "run=everything", "run.text=true"]
    main(["record", "path=set", "count=1", "processes=1", "scores=false", *task])
    main(["gradients", "path=set", "k=512", "output=store"])
    ask = ["attribute", "path=set", "store=store", "output=out"]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    written(Path("new.jsonl"), [rows[0], {"id": "chat", "messages": turns}])
    main([*ask, "new=new.jsonl"])
    of_file = InfluenceScores.load("out/scores.safetensors").scores
    assert of_file.shape == (6, 2)
    assert "## chat: user: ?" in capsys.readouterr().out
    main([*ask, "example.prompt=0 + 1 = ", "example.completion=1"])
    typed = InfluenceScores.load("out/scores.safetensors").scores
    np.testing.assert_allclose(typed[:, 0], of_file[:, 0], rtol=1e-4)
    assert "note" not in capsys.readouterr().out
    with pytest.warns(TruncatedWarning, match="has 100005 tokens, more than max_length=32"):
        main([*ask, f"example.prompt=<p>{100_000 * 'x'}", "example.completion=1"])
    assert "of typed the model sees 32 tokens, as many as it takes: any others" in capsys.readouterr().out
    for options, message in (
        (["example.prompt=Why?", "example.completion="], "example.completion must be one text, got nothing"),
        (["example.prompt=Why?", "example.completion= "], "the completion is empty"),
        (["example.prompt=Why?"], "the example that was typed in: expected one of the forms"),
        (["example.text=Why?", "new=new.jsonl"], "give one of them"),
    ):
        with pytest.raises(SystemExit):
            main([*ask, *options])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["attribute", "path=set", "example.text=Why?"])
    assert "example.text= scores examples that were not there" in capsys.readouterr().err
