"""Evaluating test examples: in batches of like lengths, in any precision, in the table's order."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import TEST, new_model, per_example
from torch import nn

from simfluence.recording import Evaluator
from simfluence.recording.evaluator import amount


def test_batches_are_of_like_lengths_and_losses_in_the_tables_order():
    examples = [{"id": str(i), "text": "x" * length} for i, length in enumerate([9, 1, 8, 2, 7, 3])]
    seen = []

    def loss(model, batch):
        seen.append([len(example["text"]) for example in batch])
        return torch.tensor([float(len(example["text"])) for example in batch])

    assert Evaluator(examples, loss, batch_size=2)(None)["loss"].tolist() == [9, 1, 8, 2, 7, 3]
    assert seen == [[1, 2], [3, 7], [8, 9]]
    seen.clear()
    Evaluator(examples, loss, batch_size=4, length=lambda example: -len(example["text"]))(None)
    assert seen == [[9, 8, 7, 3], [2, 1]]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Evaluator(examples, loss, batch_size=0)


def test_lower_precision_is_an_option_and_rounds():
    model = new_model()
    exact = Evaluator(TEST, per_example)(model)["loss"]
    rounded = Evaluator(TEST, per_example, autocast=torch.bfloat16)(model)["loss"]
    assert exact.dtype == rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05
    half = Evaluator(TEST, lambda m, batch: per_example(m, batch).bfloat16())(model)["loss"]
    assert half.dtype == np.float32
    double = Evaluator(TEST, lambda m, batch: per_example(m, batch).double())(model)["loss"]
    assert double.dtype == np.float64


def test_each_module_gets_its_own_mode_back_even_after_an_error():
    model = new_model().train()
    model[3].eval()

    def failing(model, batch):
        assert not any(module.training for module in model.modules())
        torch.rand(1)
        raise RuntimeError("in the user's loss")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="the user's loss"):
        Evaluator(TEST, failing)(model)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"margin": torch.zeros(2)}, r"no 'loss', only \['margin'\]"),
        (torch.zeros(3), r"shape \(2,\), got \(3,\)"),
        ({"loss": torch.zeros(2), "hit": [1, 0]}, "one hit per example, .* got list"),
    ],
)
def test_what_a_loss_function_must_return(returned, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(TEST[:2], lambda model, batch: returned)(nn.Identity())


def test_how_much_there_is_in_an_example():
    @dataclasses.dataclass
    class Example:
        id: str
        tokens: list[int]

    assert amount("four") == 4
    assert amount({"a": [1, 2, 3], "b": torch.zeros(2, 2)}) == 7
    assert amount(Example("ab", [1, 2, 3])) == 5
    assert amount(3.5) == 1
