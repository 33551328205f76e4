"""What every method that differentiates must bear: one list, so that a new one inherits all cases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import network, points

from simfluence.attribution import (
    Checkpoint,
    Exact,
    InfluenceScores,
    Lissa,
    adam_similarity,
    ekfac,
    gradient_similarity,
    influence,
    selected_parameters,
    tracin,
    trak,
)


def over_one_checkpoint(objective: Any, train: Any, test: Any, **options: Any) -> InfluenceScores:
    return tracin(objective, train, test, [Checkpoint(0, 0.1, lambda module: None)], **options)


METHODS: dict[str, Callable[..., InfluenceScores]] = {
    "dot": gradient_similarity,
    "cosine": partial(gradient_similarity, similarity="cosine"),
    "adam": partial(adam_similarity, batch=4),
    "tracin": over_one_checkpoint,
    "ekfac": partial(ekfac, fisher="empirical"),
    "ekfac, drawn labels": ekfac,
    "kfac": partial(ekfac, preconditioner="kfac", fisher="empirical"),
    "ekfac of rank 1": partial(ekfac, fisher="empirical", rank=1),
    "influence": partial(influence, damping=0.1),
    "influence, exact": partial(influence, solver=Exact(), damping=0.1),
    "influence, cg": partial(influence, solver="cg", damping=0.1),
    "influence, lissa": partial(influence, solver=Lissa(tolerance=0.5), damping=0.1),
    "trak": partial(trak, dimension=None),
    "trak, projected": partial(trak, dimension=16),
}

OF_A_MEAN = ("adam", "ekfac", "kfac", "ekfac of rank 1", "influence", "influence, exact", "influence, cg")
"""Curvature, or the size of gradients, is a mean over examples: all of them twice changes nothing."""


def without_gradients_below() -> Any:
    """The last map is zero, so that no gradient reaches what is below it."""
    objective = network()
    with torch.no_grad():
        objective.module[3].weight.zero_()
    return objective


@pytest.mark.parametrize("name", METHODS)
def test_a_layer_of_zero_gradients_adds_nothing(name: str) -> None:
    objective, train, test = without_gradients_below(), points(6), points(3, seed=1)
    found = METHODS[name](objective, train, test).scores
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0
    if "trak" not in name and "lissa" not in name:  # whose random numbers are of all parameters
        alone = METHODS[name](objective, train, test, parameters=["3"]).scores
        np.testing.assert_allclose(found, alone, rtol=1e-3 if "cg" in name else 1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_single_examples(name: str) -> None:
    objective, (one, other) = network(), points(2)
    assert METHODS[name](objective, [one], [other]).scores.shape == (1, 1)
    (own,) = METHODS[name](objective, [one], [one]).scores.ravel()
    assert np.isfinite(own)
    assert own > 0  # training on an example lowers its own loss


@pytest.mark.parametrize("name", METHODS)
def test_repeated_examples_have_the_same_scores(name: str) -> None:
    objective, train, test = network(), points(4), points(2, seed=1)
    found = METHODS[name](objective, [*train, *train], [*test, test[0]], batch_size=3).scores
    if "drawn" not in name:
        np.testing.assert_allclose(found[:4], found[4:], rtol=1e-7)
    np.testing.assert_allclose(found[:, 0], found[:, 2], rtol=1e-6)
    if name in OF_A_MEAN:
        once = METHODS[name](objective, train, test).scores
        np.testing.assert_allclose(found[:4, :2], once, rtol=1e-3 if "cg" in name else 1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_is_near_or_refused(name: str) -> None:
    half, single = network(dtype=torch.float16), network(dtype=torch.float32)
    single.module.load_state_dict(half.module.state_dict())
    train, test = points(8, dtype=torch.float16), points(3, seed=1, dtype=torch.float16)
    if "influence" in name:
        with pytest.raises(ValueError, match=r"torch.float16: .* convert the model first, e.g. model.float"):
            METHODS[name](half, train, test)
        return
    found = METHODS[name](half, train, test).scores
    wide = [[(x.float(), y) for x, y in part] for part in (train, test)]
    expected = METHODS[name](single, *wide).scores
    assert found.dtype.itemsize >= 4
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_models(name: str) -> None:
    """Parameters that are named count though they are frozen, and stay frozen; nothing else is trained."""
    objective, train, test = network(), points(5), points(2, seed=1)
    expected = METHODS[name](objective, train, test, parameters=["3", "0.bias"])
    assert expected.coverage == 30 / 60
    assert METHODS[name](objective, train, test).coverage == 1
    objective.module.requires_grad_(False)
    found = METHODS[name](objective, train, test, parameters=["3", "0.bias"])
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)
    assert set(found.covers) == {"3.weight", "0.bias"}
    assert found.coverage is None  # of nothing
    assert not any(parameter.requires_grad for parameter in objective.module.parameters())
    with pytest.raises(ValueError, match="no parameter that requires gradients: nothing to attribute to"):
        METHODS[name](objective, train, test)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_without_parameters(name: str) -> None:
    objective = network()
    objective.module = torch.nn.Sequential(torch.nn.Tanh())
    with pytest.raises(ValueError, match="nothing to attribute to"):
        METHODS[name](objective, points(3), points(2))
    with pytest.raises(ValueError, match="nothing to attribute to"):
        selected_parameters(objective.module)


@pytest.mark.parametrize("name", METHODS)
def test_no_examples(name: str) -> None:
    for train, test in (([], points(2)), (points(2), [])):
        with pytest.raises(ValueError, match="examples"):
            METHODS[name](network(), train, test)
