"""Tokens are computed once an example. Ids are unique within a table: a test example may have a training
example's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from attribution_models import bert, gpt2, t5, texts


@pytest.mark.parametrize("make", [bert, partial(bert, tuning="last_layers", layers=1), gpt2, t5])
def test_examples_of_one_id_are_told_apart(make: Callable[..., Any]) -> None:
    model = make().eval()
    train, test = texts(3), [replace(example, id=f"0-{i}") for i, example in enumerate(texts(3, seed=1))]
    assert [example.id for example in train] == [example.id for example in test]
    with torch.no_grad():
        model.losses(train)
        found = model.losses(test)
        torch.testing.assert_close(found, make().eval().losses(test))
