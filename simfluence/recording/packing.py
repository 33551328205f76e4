"""Which examples are in the packed rows of TRL's ``SFTTrainer``, to record it:

    trainer = SFTTrainer(model, args=SFTConfig(packing=True, …), train_dataset=dataset, …)
    record_trainer(trainer, recorder, "seed-0", example_ids=packed_ids(trainer, dataset))

The trainer keeps the tokens of its rows, not where they come from. The examples are tokenized once more, by
the trainer's own function, and found in the rows.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from simfluence.errors import RunDataError


def packed_ids(trainer: Any, dataset: Any, example_ids: str = "id") -> list[list[Any]]:
    """The ids of the examples in each row of the trainer's packed training set, in the order of their tokens.

    An example that is cut into several rows is in each of them, once. Of examples with the same tokens, the
    first in the data set are taken to be the first in the rows.

    Parameters
    ----------
    trainer : an ``SFTTrainer`` with ``packing=True``.
    dataset : the training set that it was given. example_ids : the column of the ids.

    Raises
    ------
    ValueError : the trainer does not pack, or its rows were cut out of a shuffled stream of tokens.
    RunDataError : there is no such column, or the rows are made of other examples.
    """
    args = trainer.args
    if not getattr(args, "packing", False):
        raise ValueError("this trainer does not pack its examples: each row is one, and has its own id")
    wrapped = args.packing_strategy == "wrapped"
    if wrapped and args.shuffle_dataset:
        raise ValueError(
            "packing_strategy='wrapped' with shuffle_dataset=True cuts rows out of a shuffled stream, where"
            " examples are not found: shuffle the data set before, or choose packing_strategy='bfd'"
        )
    if example_ids not in (dataset.column_names or ()):
        raise RunDataError(f"the data set has no column {example_ids!r}, but {dataset.column_names}")
    whole = copy.copy(args)
    whole.packing, whole.max_length, whole.shuffle_dataset = False, None, False
    prepared = trainer._prepare_dataset(
        dataset, trainer.processing_class, whole, False, trainer._formatting_func, "train"
    )
    ids, tokens = list(prepared[example_ids]), list(prepared["input_ids"])
    if wrapped:
        return _of_stream(list(trainer.train_dataset["input_ids"]), tokens, ids)
    return _of_spans(
        trainer.train_dataset, tokens, ids, args.max_length, args.packing_strategy == "bfd_split"
    )


def _of_spans(
    rows: Any, tokens: Sequence[Sequence[int]], ids: Sequence[Any], length: int, split: bool
) -> list[list[Any]]:
    """The ids of rows that say how long each span in them is. Longer examples than ``length`` are cut, or
    split into pieces of that length."""
    places: dict[tuple[int, ...], deque[Any]] = defaultdict(deque)  # tokens of a span → ids that have them
    for example_id, example in zip(ids, tokens, strict=True):
        pieces = range(0, len(example), length) if split else range(min(1, len(example)))
        for start in pieces:
            places[tuple(example[start : start + length])].append(example_id)
    found = []
    for row in rows:
        ends = np.cumsum(row["seq_lengths"]).tolist()
        spans = [tuple(row["input_ids"][start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        if not all(places[span] for span in spans):
            raise RunDataError(_OTHERS)
        found.append(list(dict.fromkeys(places[span].popleft() for span in spans)))
    return found


def _of_stream(
    rows: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], ids: Sequence[Any]
) -> list[list[Any]]:
    """The ids of rows that one after the other are the examples' tokens one after the other."""
    if [token for row in rows for token in row] != [token for example in tokens for token in example]:
        raise RunDataError(_OTHERS)
    ends = np.cumsum([len(example) for example in tokens])
    found, start = [], 0
    for row in rows:
        end = start + len(row)
        first, last = np.searchsorted(ends, [start, end - 1], side="right")
        held = range(int(first), int(last) + 1)
        found.append([ids[example] for example in held if len(tokens[example])])
        start = end
    return found


_OTHERS = (
    "the trainer's packed rows are not made of these examples: pass the data set that the trainer was given"
)
