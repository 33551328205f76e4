"""Which training examples an edit is about: by group, id, text or score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from simfluence.curriculum import IntArray
from simfluence.runs import ExampleTable
from simfluence.runs.tables import TableFingerprints


def by_name(train: ExampleTable, groups: Sequence[str], ids: Sequence[Any]) -> IntArray:
    """The rows of these groups and ids. Raises RunDataError for one that is not in the table."""
    return np.union1d(train.in_group(*groups) if groups else [], train.rows(ids)).astype(np.int64)


def by_text(train: ExampleTable, pattern: str) -> IntArray:
    """The rows whose text matches: words, or a regular expression, found anywhere in it, in small letters or
    capitals.

    Raises ValueError for a table without texts, a pattern that cannot be read, and if no text matches.
    """
    texts = train.frame["text"].tolist()
    if not any(texts):
        raise ValueError(
            f"the text {pattern!r} cannot be looked for: the run set does not keep the texts of its training"
            " examples; record it with run.text=true, or name the examples by groups or ids"
        )
    try:
        wanted = re.compile(pattern, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"text={pattern!r} is no regular expression: {error}") from None
    rows = np.array([row for row, text in enumerate(texts) if wanted.search(text)], np.int64)
    if not len(rows):
        raise ValueError(f"the text of no training example matches {pattern!r}")
    return rows


def by_score(
    file: str,
    train: ExampleTable,
    test: ExampleTable | None,
    of: str | None,
    above: float | None,
    below: float | None,
) -> IntArray:
    """The rows whose score lies above ``above`` and below ``below``, on average over test examples.

    file : scores that ``simfluence attribute`` wrote; positive ones lower the loss.
    of : a group or an id of test examples; None is all of them.

    Raises RunDataError for scores of other examples, and ValueError for an unknown ``of`` and if no score
    lies there.
    """
    from simfluence.attribution import InfluenceScores
    from simfluence.questions.many import chosen_tests

    found = InfluenceScores.load(file).mean()
    tables = found.tables if test is not None else TableFingerprints(found.tables.train)
    found_for = TableFingerprints.of(train, test if test is not None else train)
    tables.check(found_for, f"the scores in {file}")
    shape = (len(train), found.scores.shape[1] if test is None else len(test))
    if found.scores.shape != shape:
        raise ValueError(f"{file} holds scores of shape {found.scores.shape}, expected {shape}")
    columns = np.arange(shape[1])
    if of is not None:
        if test is None:
            raise ValueError(f"of={of!r} names test examples: give their table, test=runs.test")
        (columns,) = chosen_tests(test, of).values()
    mean = found.scores[:, columns].mean(1, dtype=np.float64)
    low, high = -np.inf if above is None else above, np.inf if below is None else below
    rows = np.flatnonzero((mean > low) & (mean < high))
    if not len(rows):
        raise ValueError(
            f"no training example has such a score in {file}: they are {mean.min():.4g} … {mean.max():.4g}"
        )
    return rows
