"""Every method by its name, on a small text model: what holds for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attribution_models import bert, texts

from simfluence.attribution import METHODS, AttributionContext, Checkpoint, attribute
from simfluence.curriculum import Curriculum
from simfluence.runs import Run, TableFingerprints

OPTIONS: dict[str, dict[str, Any]] = {"ekfac": {"fisher": "empirical"}, "influence": {"damping": 0.1}}


@pytest.fixture
def context() -> AttributionContext:
    model, train, test = bert(), texts(12), texts(3, seed=1)
    run = Run(
        "run-000",
        Curriculum.from_batches(np.arange(12).reshape(6, 2), 12),
        {"loss": np.zeros((1, 3))},
        np.array([0]),
        np.full(6, 0.01),
        np.full(6, np.nan),
        optimizer={"class": "AdamW"},
    )
    return AttributionContext(
        model,
        train,
        test,
        [example.text for example in train],
        [example.text for example in test],
        [Checkpoint(0, 0.1, lambda module: None)],
        model.token_strings,
        batch=2,
        optimizer=run.optimizer,
        run=run,
        tables=TableFingerprints("12ab", "34cd"),
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_filter_leaves_the_scores_of_its_candidates_as_they_are(
    name: str, context: AttributionContext
) -> None:
    """Statistics are of the whole training set, whatever is filtered."""
    options = OPTIONS.get(name, {})
    whole = attribute(context, name, **options)
    few = attribute(context, name, only=3, **options)
    kept = few.scores != 0
    assert (kept.sum(0) <= 3).all()
    assert kept.any()
    np.testing.assert_allclose(few.scores[kept], whole.scores[kept], rtol=1e-6)
    for z, chosen in enumerate(few.provenance["candidates"]):
        np.testing.assert_allclose(few.scores[chosen, z], whole.scores[chosen, z], rtol=1e-6)
    assert few.tables == whole.tables == context.tables


@pytest.mark.parametrize("name", METHODS)
def test_coverage_is_of_gradients(name: str, context: AttributionContext) -> None:
    found = attribute(context, name, **OPTIONS.get(name, {}))
    assert found.coverage == (1.0 if found.covers else None)
