"""Instruction data: rows of a JSONL, Parquet or CSV file, or of a hub data set, become completions.

The form of a row is known by its columns. If it has those of several forms, the first counts:

    messages                          a chat: a list of {"role": …, "content": …}. The turns of the role
                                      "assistant" are the targets.
    prompt, completion                two texts, which follow each other as they are; or two lists of
                                      messages (as TRL has them), where the assistant's turns in the
                                      completion are the targets.
    instruction, output [, input]     Alpaca; the prompt is made as in that paper's code.
    text                              plain text, all of it a target.

Any row may have an ``id`` (else its number is the id), and a group in a column of the user's choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from simfluence.errors import RunDataError
from simfluence.finetuning.tasks.base import Completion, Sourced, Turn
from simfluence.finetuning.tasks.fields import Row
from simfluence.jsonl import read_jsonl
from simfluence.runs.tables import as_text

ASSISTANT = "assistant"
"""The role of the turns that a chat model writes."""

_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately completes the"
    " request.\n\n### Instruction:\n{instruction}{given}\n\n### Response:"
)  # https://github.com/tatsu-lab/stanford_alpaca/blob/main/train.py
_PAIRED = ", paired with an input that provides further context"

Read = tuple[list[Turn], bool]
"""The turns in a row, and whether they are a chat."""


def from_instructions(
    path: str | Path,
    name: str | None = None,
    split: str | None = None,
    group: str = "group",
    needs_group: bool = True,
    **options: Any,
) -> list[Sourced]:
    """The completions in a file (.jsonl, .json, .parquet, .csv), or else in a hub data set.

    Parameters
    ----------
    path : the file; or the name of a data set that ``datasets.load_dataset`` opens.
    name, split, options : of a hub data set, for ``load_dataset``; the split is "train" by default.
    group : the column that says which group a row belongs to.
    needs_group : whether a group that is not called "group" must be a column.

    Raises
    ------
    RunDataError : the file or a package is missing, there are no rows or no such column, or a row is of no
        known form (the message names it).
    """
    rows = list(_rows(path, name, split, options))
    if not rows:
        raise RunDataError(f"{path} has no rows")
    if needs_group and group != "group" and not any(group in row for _, row in rows):
        raise RunDataError(
            f"{path} has no column {group!r} for groups; it has {', '.join(map(str, rows[0][1]))}"
        )
    return [completion_of(row, number, group, where) for number, (where, row) in enumerate(rows)]


def completion_of(row: Row, number: int, group: str = "group", where: str | None = None) -> Sourced:
    """The completion in a row.

    number : the row's number, which is the id if it has none. group : the column of its group. where : what
    error messages call the row.

    Raises RunDataError if the row has none of the forms above, something is not text, or there is nothing for
    the model to write.
    """
    where = where or f"row {number}"
    try:
        present = {column for column, value in row.items() if value is not None}
        read = next((read for needed, read in _FORMS if needed <= present), None)
        if read is None:
            raise ValueError(
                f"expected one of the forms {'; '.join(', '.join(sorted(form)) for form, _ in _FORMS)};"
                f" got the fields {', '.join(sorted(map(str, present))) or 'none'}"
            )
        turns, is_chat = read(row)
    except ValueError as error:
        raise RunDataError(f"{where}: {error}") from error
    if not any(turn.is_target and turn.text.strip() for turn in turns):
        raise RunDataError(
            f"{where}: the completion is empty, so there is nothing to learn from it;"
            " write one, or leave the row out"
            if any(turn.is_target for turn in turns)
            else f"{where}: the chat has no turn of the role {ASSISTANT!r}, so there is nothing to learn from"
        )
    example = Completion(
        as_text(row.get("id")) or str(number), as_text(row.get(group)), tuple(turns), is_chat
    )
    return Sourced("completion", example)


# ----------------------------------------------------------------------------------------- the forms


def _messages(row: Row) -> Read:
    return _chat(row["messages"], "messages", has_targets=True), True


def _prompt_completion(row: Row) -> Read:
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise ValueError("prompt and completion must both be text, or both be lists of messages")
    if isinstance(prompt, str):
        return [Turn("prompt", prompt, False), Turn("completion", completion, True)], False
    asked = _chat(prompt, "prompt", has_targets=False)
    return asked + _chat(completion, "completion", has_targets=True), True


def _alpaca(row: Row) -> Read:
    instruction, output = _text(row, "instruction"), _text(row, "output")
    given = _text(row, "input") if row.get("input") is not None else ""
    prompt = _ALPACA.format(
        paired=_PAIRED if given else "",
        instruction=instruction,
        given=f"\n\n### Input:\n{given}" if given else "",
    )
    return [Turn("prompt", prompt, False), Turn("completion", output, True)], False


def _plain(row: Row) -> Read:
    return [Turn("completion", _text(row, "text"), True)], False


_FORMS: list[tuple[set[str], Callable[[Row], Read]]] = [
    ({"messages"}, _messages),
    ({"prompt", "completion"}, _prompt_completion),
    ({"instruction", "output"}, _alpaca),
    ({"text"}, _plain),
]


def _chat(messages: Any, column: str, *, has_targets: bool) -> list[Turn]:
    """The turns of a list of messages. A CSV file has the list as JSON text."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            raise ValueError(f"{column} must be a list of messages, got the text {messages[:40]!r}") from None
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError(f"{column} must be a list of messages, got {messages!r}")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f'a message of {column} must be {{"role": …, "content": …}}, got {message!r}')
        role, text = _text(message, "role"), _text(message, "content")
        turns.append(Turn(role, text, has_targets and role == ASSISTANT))
    return turns


def _text(row: Mapping[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} must be text, got {row[name]!r}")
    return row[name]


# ------------------------------------------------------------------------------------------ the rows


def _rows(
    path: str | Path, name: str | None, split: str | None, options: Mapping[str, Any]
) -> Iterable[tuple[str, Row]]:
    """The rows, each with where it stands."""
    read = _FILES.get(Path(path).suffix.lower())
    if read is None and not Path(path).is_file():
        return _from_hub(str(path), name, split or "train", options)
    if read is None:
        raise RunDataError(f"{path} must be a file that ends in {', '.join(_FILES)}")
    if not Path(path).is_file():
        raise RunDataError(f"there is no file {path}")
    if given := [option for option in ("config", "split") if {"config": name, "split": split}[option]]:
        raise RunDataError(f"{given[0]} is an option of hub data sets, and {path} is a file; leave it out")
    return read(Path(path))


def _from_hub(
    path: str, name: str | None, split: str, options: Mapping[str, Any]
) -> Iterable[tuple[str, Row]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise RunDataError(
            f"there is no file {path}, and reading a data set of that name from the hub takes"
            " `pip install 'simfluence[hub]'`"
        ) from None
    rows = load_dataset(path, name, split=split, **options)
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows))


def _from_json(file: Path) -> Iterable[tuple[str, Row]]:
    """One list of objects, or an object a line."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return read_jsonl(file)
    rows = rows if isinstance(rows, list) else [rows]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise RunDataError(f"{file}: expected a list of JSON objects, one of them is {str(wrong[0])[:40]!r}")
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows))


def _from_parquet(file: Path) -> Iterable[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise RunDataError(f"{file} cannot be read: {error}") from error
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows))


def _from_csv(file: Path) -> Iterable[tuple[str, Row]]:
    import pandas as pd

    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise RunDataError(f"{file} cannot be read: {error}") from error
    rows = [dict(zip(frame.columns, values, strict=True)) for values in frame.to_numpy()]
    return ((f"{file}, row {number}", row) for number, row in enumerate(rows))


_FILES: dict[str, Callable[[Path], Iterable[tuple[str, Row]]]] = {
    ".jsonl": read_jsonl,
    ".json": _from_json,
    ".parquet": _from_parquet,
    ".csv": _from_csv,
}
"""How a file is read, by the end of its name."""
