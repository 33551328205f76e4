"""Scores of any attribution method by its name: what ``simfluence attribute method=…`` calls.

To add a method: write a file that computes :class:`InfluenceScores` and registers itself (see
:mod:`.registry`), import it in ``simfluence/attribution/__init__.py``, and give it a configuration of its
name in conf/method/.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simfluence.attribution.registry import METHODS, OF_ALL_EXAMPLES, AttributionContext
from simfluence.attribution.text_similarity import bm25, candidates, filtered
from simfluence.scores import InfluenceScores


def attribute(
    context: AttributionContext, name: str, *, only: int | None = None, progress: bool = False, **options: Any
) -> InfluenceScores:
    """The scores of a method by its name, with the fingerprints of the context's tables.

    Parameters
    ----------
    only : compute the method for this number of training examples, those that BM25 finds most similar to
        each test example; all other scores are 0 (Grosse et al. 2023). The scores of those are the same as
        without ``only``: statistics are of all training examples.
    options : the method's own.

    Raises
    ------
    ValueError : no method has this name, or the method does not have one of the options.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no attribution method is named {name!r}; there are {', '.join(METHODS)}{hint}")

    def scores(train: Sequence[int], test: Sequence[Any]) -> InfluenceScores:
        some = replace(
            context,
            train=[context.train[i] for i in train],
            train_texts=[context.train_texts[i] for i in train],
            curvature=context.train,
        )
        try:
            return METHODS[name](some, progress=progress, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(f"method {name}: {str(error).split('() ')[-1]}") from None

    everything = range(len(context.train))
    whole = scores(everything, context.test) if only is None or name in OF_ALL_EXAMPLES else None

    def of_some(train: Sequence[int], test: Sequence[Any]) -> InfluenceScores:
        return scores(train, test) if whole is None else replace(whole, scores=whole.scores[list(train)])

    found = (
        of_some(everything, context.test)
        if only is None
        else filtered(
            of_some, everything, context.test, candidates(bm25(context.train_texts, context.test_texts), only)
        )
    )
    return replace(found, tables=context.tables)
