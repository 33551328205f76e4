"""The batch size that fits into memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attribution_models import bert, texts
from torch import nn

from simfluence.attribution import Regression, batch_size
from simfluence.attribution.batch_size import available_memory, fitting_batch_size, longest, saved_bytes


def test_halved_while_it_is_out_of_memory() -> None:
    tried = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    assert batch_size._largest_that_fits(128, attempt) == 16
    assert tried == [128, 64, 32, 16]
    tried.clear()

    def never(size: int) -> None:
        raise torch.cuda.OutOfMemoryError

    assert batch_size._largest_that_fits(4, never) == 1

    def broken(size: int) -> None:
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another"):
        batch_size._largest_that_fits(4, broken)


def test_of_the_memory_that_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, examples = bert(), texts(20)
    each = 3 * saved_bytes(objective, examples[:1])
    for available, expected in ((1e12, 8), (17 * each, 8), (15 * each, 4), (5 * each, 2), (0, 1)):
        monkeypatch.setattr(batch_size, "available_memory", lambda available=available: available)
        assert fitting_batch_size(objective, examples, lambda batch: None) == expected
    monkeypatch.setattr(batch_size, "available_memory", lambda: 1e12)
    assert fitting_batch_size(objective, examples[:5], lambda batch: None) == 4


def test_what_a_forward_pass_saves() -> None:
    """Of two linear maps with a tanh between: the input, and what tanh returned."""
    module = nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 1)).double()
    x = [(torch.ones(100, dtype=torch.float64), torch.ones(1, dtype=torch.float64))]
    saved = saved_bytes(Regression(module), x)
    assert 8 * 150 <= saved <= 8 * 160
    assert saved_bytes(Regression(module), 4 * x) == pytest.approx(4 * saved, rel=0.1)


def test_the_longest_come_first() -> None:
    assert longest(["a", "b", "c"], ["xx", "x", "xxx"], 2) == ["c", "a"]


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the system does not say")
def test_available_memory() -> None:
    assert 1e6 < available_memory() < 1e15
