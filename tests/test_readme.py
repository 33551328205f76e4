"""What the README shows, runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_ten_lines_of_python(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    exec(BLOCKS[0], {})
    assert "openbookqa-" in capsys.readouterr().out


def test_recording_your_own_fine_tuning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from simfluence import RunSet

    monkeypatch.chdir(tmp_path)
    examples = [{"id": i, "x": torch.full((2,), float(i)), "y": float(i)} for i in range(8)]
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def per_example_loss(model, examples):
        x = torch.stack([example["x"] for example in examples])
        return (model(x)[:, 0] - torch.tensor([example["y"] for example in examples])) ** 2

    def training_step(batch):
        loss = per_example_loss(model, batch["examples"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    loader = [{"id": [0, 1], "examples": examples[:2]}, {"id": [3, 5], "examples": examples[3:6:2]}]
    code = BLOCKS[1].replace("...  ", "loss = training_step(batch)  ")
    assert code != BLOCKS[1]
    names = {
        "train_examples": examples[:6],
        "test_examples": examples[6:],
        "model": model,
        "per_example_loss": per_example_loss,
        "optimizer": optimizer,
        "loader": loader,
        "training_step": training_step,
    }
    exec(code, names)
    run = RunSet.load("runs/mine")[0]
    assert [batch.tolist() for batch in run.curriculum] == [[0, 1], [3, 5]]
    assert run.loss.shape == (3, 2)
