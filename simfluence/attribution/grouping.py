"""Which rows of a layer's values belong to which example of a batch.

A layer's values have one leading row for each example; or one for each row of the model's inputs, of which
an example may have several (the options of a choice); or several for each of these rows, one after the other
(tokens that were flattened). The tracer checks on every batch that the rows really lie like that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class UnknownRows(Exception):
    """The number of a layer's rows does not say which of them belong to which example."""


class Grouping:
    """[row, …, feature] → [example, token, feature], the tokens of an example's rows in turn.

    rows : how many rows of the model's inputs each example takes. masks : see
    :meth:`.objective.Objective.masks`.
    """

    def __init__(self, rows: Sequence[int], masks: Sequence[Tensor]) -> None:
        self.masks = masks
        self.counts = list(rows)
        self.rows = sum(rows)
        self.offsets = [0]
        for count in rows:
            self.offsets.append(self.offsets[-1] + count)

    def __call__(self, values: Tensor) -> Tensor:
        """Raises UnknownRows."""
        examples, width = len(self.counts), values.shape[-1]
        if examples == 1:
            return values.reshape(1, -1, width)
        if self._is_by_example(values):
            return values.reshape(examples, -1, width)
        by_row = values.reshape(self.rows, -1, width)
        if len(set(self.counts)) == 1:
            return by_row.reshape(examples, -1, width)
        parts = [by_row[a:b].reshape(-1, width) for a, b in pairwise(self.offsets)]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def examples(self, values: Tensor) -> Tensor:
        """The number of the example that each leading row of ``values`` belongs to, int [row].

        Raises UnknownRows.
        """
        numbers = torch.arange(len(self.counts), device=values.device)
        if len(self.counts) == 1:
            return numbers.expand(len(values))
        if self._is_by_example(values):
            return numbers
        each = torch.tensor(self.counts, device=values.device) * (len(values) // self.rows)
        return numbers.repeat_interleave(each)

    def mask(self, seen: Tensor) -> Tensor:
        """Which tokens are no padding, [example, token]. seen : [row or example, …, feature] of a layer.

        Where the masks of encoder and decoder have the same shape, a token counts that is in either.
        """
        shape = seen.shape[:-1]
        fitting = [mask for mask in self.masks if mask.shape == shape or shape == (mask.numel(),)]
        there = torch.stack([mask.reshape(shape) for mask in fitting]).any(0) if fitting else None
        there = torch.ones(shape, dtype=torch.bool, device=seen.device) if there is None else there
        return self(there[..., None])[..., 0]

    def _is_by_example(self, values: Tensor) -> bool:
        """Whether there is one row an example; False: several, or one for each row of the inputs."""
        leading = len(values)
        if values.ndim < 2 or (leading % self.rows and leading != len(self.counts)):
            raise UnknownRows
        return leading != self.rows and leading == len(self.counts)
