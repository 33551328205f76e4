"""Two processes train together: one curriculum, one writer, the test examples shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from data_parallel import SHARE, STEPS, batch_of
from tiny import TEST, TRAIN, new_model, per_example

from simfluence.recording import load_weights
from simfluence.runs import ExampleTable, RunSet, storage


def in_two_processes(script: str, path: Path) -> str:
    """What the script, started by torchrun, says on stderr."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [*command, str(Path(__file__).with_name(script)), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]
    return ran.stderr


def test_two_gloo_processes(tmp_path):
    said = in_two_processes("data_parallel.py", tmp_path)
    run = RunSet.load(tmp_path / "set", incomplete=True)[0]
    expected = [[e["id"] for rank in range(2) for e in batch_of(step, rank, 2)] for step in range(STEPS)]
    assert [[f"train-{i}" for i in batch] for batch in run.curriculum] == expected
    assert (run.curriculum.batch_sizes == 2 * SHARE).all()
    assert run.loss.shape == (STEPS + 1, len(TEST))
    assert np.isfinite(run.loss).all()
    assert np.isfinite(run.train_loss).all()
    shares = [(tmp_path / f"evaluated-{rank}").read_text().split() for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(e["id"] for e in TEST)
    assert min(map(len, shares)) == 2  # three batches of two, in turn
    whole, resumed = (tmp_path / name / "seed-0" for name in ("set", "resumed"))
    assert (resumed / "steps.parquet").read_bytes() == (whole / "steps.parquet").read_bytes()
    assert storage.read_manifest(resumed)["resumed_at"] == [3]
    assert storage.status(tmp_path / "set" / "wrong-ids") == "failed"
    assert said.count("training goes on without recording") == 1
    caught = RunSet.load(tmp_path / "caught")[0]
    assert (len(caught), caught.evaluated.tolist()) == (3, [0, 1, 3])
    skipped = RunSet.load(tmp_path / "skipped")[0]
    assert skipped.learning_rate.tolist() == [0.1, 0.1]
    assert [batch.tolist() for batch in skipped.curriculum] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert said.count("no optimizer changed a weight in step 2") == 1
    within = RunSet.load(tmp_path / "within")[0].evaluated.tolist()
    assert within[0] == 0
    assert within[-1] == 40
    assert 3 < len(within) < 40
    streamed = RunSet.load(tmp_path / "stream")
    known = ExampleTable.of(TRAIN).frame
    hashes = [known["hash"][[int(name.removeprefix("train-")) for name in batch]] for batch in expected[:3]]
    rows = streamed.train.frame["hash"].to_numpy()
    assert [rows[batch].tolist() for batch in streamed[0].curriculum] == [of.tolist() for of in hashes]
    assert np.isfinite(streamed[0].loss).sum(1).tolist() == [6, 2, 2, 6]
    plain = new_model(seed=3)
    plain[1] = torch.nn.Identity()
    load_weights(tmp_path / "skipped" / "run", 2, plain)
    with torch.no_grad():
        np.testing.assert_allclose(per_example(plain.eval(), TEST), skipped.loss[2], rtol=1e-5)


def test_what_is_evaluated_by_turns_is_what_one_process_evaluates(tmp_path):
    """Sharing changes no bit: the batches are the same ones."""
    from simfluence.recording import Evaluator
    from simfluence.recording.processes import Processes

    evaluator = Evaluator(TEST, per_example, batch_size=2)
    alone = evaluator(new_model())["loss"]

    class InTurn(Processes):
        shares: list = []  # noqa: RUF012

        def gather(self, value):
            self.shares.append(value)
            return self.shares

    turns = [InTurn(rank, 2) for rank in range(2)]
    try:
        evaluator(new_model(), turns[0])
        together = evaluator(new_model(), turns[1])["loss"]
    finally:
        InTurn.shares.clear()
    assert torch.equal(torch.from_numpy(together), torch.from_numpy(alone))
