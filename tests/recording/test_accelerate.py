"""Loops of accelerate and Trainers with sharded, dispatched and split batches: ids right to the example."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from test_data_parallel import in_two_processes

from simfluence.runs import RunSet

pytest.importorskip("transformers")
pytest.importorskip("datasets")
accelerated = pytest.importorskip("accelerated", reason="accelerate is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def trained_on(path: Path, name: str, processes: int, accumulated: int = 1) -> list[list[int]]:
    """What the models of all processes were given in each step."""
    shares = [json.loads((path / f"{name}-{rank}.json").read_text()) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    starts = range(0, len(shares[0]), accumulated)
    return [list(chain(*(chain(*share[i : i + accumulated]) for share in shares))) for i in starts]


def check(path: Path, processes: int) -> None:
    loops, trainers = RunSet.load(path / "set"), RunSet.load(path / "trainer")
    assert len(loops) == 4
    assert len(trainers) == 3
    for run, name in [(run, run.id) for run in loops] + [(run, f"trainer-{run.id}") for run in trainers]:
        batches = [batch.tolist() for batch in run.curriculum]
        assert batches == trained_on(path, name, processes, 2 if name == "dispatched-2" else 1), name
        # an epoch: each example once, but for those that complete the last batch
        before = list(chain(*batches[:-1]))
        assert len(before) == len(set(before)), name
        assert set(chain(*batches)) == set(range(accelerated.N)), name
        assert np.isfinite(run.loss).all()


def test_one_process(tmp_path):
    accelerated.main(tmp_path)
    check(tmp_path, 1)


def test_two_processes(tmp_path):
    in_two_processes("accelerated.py", tmp_path)
    check(tmp_path, 2)
