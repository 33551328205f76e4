"""TRAK against its authors' library, without projection."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution.small import pairs
from torch import nn

from simfluence.attribution import Classification
from simfluence.attribution.trak import trak

pytest.importorskip("trak", reason="needs traker")


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_trakers_up_to_its_scale(seed: int, tmp_path) -> None:
    """traker divides gradients by √parameters and its inverse by the mean entry, in float32: a factor."""
    train, test = (
        [(x.float(), y) for x, y in pairs("classification", count, number)]
        for count, number in ((60, 0), (5, 1))
    )
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3))
    size = sum(parameter.numel() for parameter in module.parameters())
    theirs = scored_by_traker(module, train, test, 0.05, size, tmp_path)
    ours = trak(Classification(module), train, test, dimension=None, damping=0.05 * size).scores
    factor = (ours * theirs).sum() / (theirs * theirs).sum()
    assert factor > 0
    np.testing.assert_allclose(factor * theirs, ours, rtol=2e-3, atol=2e-3 * np.abs(ours).max())


def scored_by_traker(module, train, test, damping: float, size: int, folder) -> np.ndarray:
    """[train, test]"""
    from trak import TRAKer
    from trak.projectors import NoOpProjector

    module = module.eval()
    traker = TRAKer(
        module, "image_classification", len(train), save_dir=str(folder), device="cpu",
        projector=NoOpProjector(size, size, device="cpu"), proj_dim=size, use_half_precision=False,
        lambda_reg=damping, logging_level=50,
    )  # fmt: skip
    state = module.state_dict()
    traker.load_checkpoint(state, model_id=0)
    traker.featurize(batch=stacked(train), num_samples=len(train))
    traker.finalize_features()
    traker.start_scoring_checkpoint("test", state, model_id=0, num_targets=len(test))
    traker.score(batch=stacked(test), num_samples=len(test))
    return np.array(traker.finalize_scores("test"))


def stacked(examples) -> list[torch.Tensor]:
    return [torch.stack([x for x, _ in examples]), torch.stack([y for _, y in examples])]
