"""The linear datamodelling score against dattri's."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from simfluence.evaluation.standards import auc, lds, random_subsets

with warnings.catch_warnings():  # torch's, of torch.jit in dattri
    warnings.simplefilter("ignore")
    pytest.importorskip("dattri", reason="needs dattri")
    from dattri.metric import lds as dattri_lds
    from dattri.metric import mislabel_detection_auc

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def test_lds_is_that_of_dattri() -> None:
    """dattri takes what is predicted to rise with the scores, so the negated loss."""
    rng = np.random.default_rng(0)
    kept = random_subsets(24, 0.5, 40)
    scores = rng.normal(size=(24, 5))
    losses = rng.normal(size=(40, 5)) - kept @ scores
    rows = torch.from_numpy(np.stack([np.flatnonzero(row) for row in kept]))
    theirs, _ = dattri_lds(torch.from_numpy(scores), (torch.from_numpy(-losses), rows))
    np.testing.assert_allclose(lds(scores, kept, losses), theirs.numpy(), rtol=1e-12)


def test_auc_is_that_of_dattri() -> None:
    """Without equal scores, whose order dattri leaves open."""
    rng = np.random.default_rng(0)
    planted = rng.random(60) < 0.2
    suspicion = rng.normal(size=60) + planted
    theirs, _ = mislabel_detection_auc(torch.from_numpy(suspicion), torch.from_numpy(planted))
    assert float(theirs) == pytest.approx(auc(suspicion, planted), rel=1e-6)
