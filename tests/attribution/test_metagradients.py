"""Derivatives through training, against retraining by torch, closed forms and autograd of the whole loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attribution.small import flat, loss_at, network, pairs

from simfluence.attribution import AttributionContext, Checkpoint, metagradients, unrolled
from simfluence.attribution.metagradients import of_recorded_run
from simfluence.attribution.objective import Classification, LossesOnly, Regression
from simfluence.attribution.training import Training
from simfluence.attribution.update_rules import update_rule
from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import Run

BATCHES = [[0, 1], [2, 3], [1, 4, 4], [0, 2], [5, 1], [3, 0], [4]]
CURRICULUM = Curriculum.from_batches(BATCHES, 7)  # example 6 is never used
OPTIMIZERS: list[dict[str, Any]] = [
    {"class": "AdamW", "betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.1},
    {"class": "Adam", "betas": (0.9, 0.99), "eps": 1e-4, "weight_decay": 0.1},
    {"class": "SGD", "momentum": 0.9, "weight_decay": 0.1},
    {"class": "SGD", "momentum": 0.9, "nesterov": True},
    {"class": "SGD"},
]
RATES = np.linspace(0.1, 0.02, len(BATCHES))


def retrained(objective: Any, train: list, test: list, optimizer: dict, weights: np.ndarray) -> np.ndarray:
    """The losses after training with torch's own optimizer; the model is put back as it was."""
    start = flat(objective.module)
    options = {key: value for key, value in optimizer.items() if key != "class"}
    parameters = list(objective.module.parameters())
    stepper = getattr(torch.optim, optimizer["class"])(parameters, lr=1.0, **options)
    for batch, rate in zip(BATCHES, RATES, strict=True):
        stepper.param_groups[0]["lr"] = rate
        stepper.zero_grad()
        of_batch = torch.as_tensor(weights[batch]) * objective.losses([train[i] for i in batch])
        (of_batch.sum() / len(batch)).backward()
        stepper.step()
    with torch.no_grad():
        losses = objective.losses(test).numpy()
    torch.nn.utils.vector_to_parameters(start, objective.module.parameters())
    return losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_they_are_the_differences_that_retraining_gives(optimizer: dict) -> None:
    objective, train, test = network("classification"), pairs("classification", 7), pairs("classification", 3)
    weights = np.array([1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 1.0])
    found = metagradients(
        objective, train, test, CURRICULUM, optimizer=optimizer, rates=RATES, weights=weights
    )
    for i in range(7):
        one = 1e-5 * np.eye(7)[i]
        up, down = (retrained(objective, train, test, optimizer, weights + sign * one) for sign in (1, -1))
        np.testing.assert_allclose(found.scores[i], (down - up) / 2e-5, rtol=2e-5, atol=1e-8)
    assert not found.scores[6].any()
    np.testing.assert_allclose(
        found.provenance["final_losses"], retrained(objective, train, test, optimizer, weights), rtol=1e-10
    )


def test_linear_regression_has_a_closed_form() -> None:
    """Steps of plain descent on squared errors are linear, θ′ = (I − ηA_t)θ + ηb_t: dθ_T/dw_i is the sum over
    its uses of −η/|c_t| (I − ηA_{T−1}) ⋯ (I − ηA_{t+1}) ∇L(i; θ_t)."""
    module = torch.nn.Linear(3, 1, bias=False).double()
    objective = Regression(module)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(7, 1, generator=generator, dtype=torch.float64)
    train = list(zip(x, y, strict=True))
    expected = np.zeros((7, 7))
    weights, theta = [flat(module)], flat(module)
    for batch, rate in zip(BATCHES, RATES, strict=True):
        residual = x[batch] @ theta - y[batch, 0]
        theta = theta - rate * x[batch].T @ residual / len(batch)
        weights.append(theta)
    of_test = x * (x @ theta - y[:, 0])[:, None]
    after = torch.eye(3, dtype=torch.float64)
    for step in reversed(range(len(BATCHES))):
        batch, rate = BATCHES[step], RATES[step]
        for i in batch:
            own = x[i] * (x[i] @ weights[step] - y[i, 0])
            expected[i] += rate / len(batch) * (of_test @ after @ own).numpy()
        after = after @ (torch.eye(3, dtype=torch.float64) - rate * x[batch].T @ x[batch] / len(batch))
    found = metagradients(objective, train, train, CURRICULUM, optimizer={"class": "SGD"}, rates=RATES)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9, atol=1e-12)


def test_they_are_autograd_through_the_whole_loop_and_add_up_over_steps() -> None:
    objective, train, test = network("regression"), pairs("regression", 7), pairs("regression", 2, seed=1)
    optimizer = OPTIMIZERS[0]
    rule = update_rule(optimizer)
    uses = torch.ones(len(BATCHES), 7, dtype=torch.float64, requires_grad=True)
    theta = flat(objective.module).requires_grad_()
    # √v at v = 0 has no derivative in autograd; the first step is written out
    state: Any = (theta, torch.zeros_like(theta), torch.full_like(theta, 1e-300))
    for step, batch in enumerate(BATCHES):
        loss = sum(uses[step, i] * loss_at(objective, state[0], train[i]) for i in batch) / len(batch)
        (gradient,) = torch.autograd.grad(loss, state[0], create_graph=True)
        state = rule.step(state, gradient, float(RATES[step]), step + 1)
    expected = [
        -torch.autograd.grad(loss_at(objective, state[0], z), uses, retain_graph=True)[0] for z in test
    ]
    about: dict[str, Any] = {"optimizer": optimizer, "rates": RATES}
    found = metagradients(objective, train, test, CURRICULUM, by_step=True, **about)
    np.testing.assert_allclose(found.scores, torch.stack(expected, -1), rtol=1e-8, atol=1e-12)
    assert found.steps == tuple(range(7))
    for every in (1, 2, 7, 100):
        whole = metagradients(objective, train, test, CURRICULUM, keep_every=every, **about)
        np.testing.assert_allclose(whole.scores, found.scores.sum(0), rtol=1e-9, atol=1e-14)


def test_costs_are_counted() -> None:
    """14 uses in the steps: their gradients once forward, once backward, where all states are kept."""
    objective, train, test = network("regression"), pairs("regression", 7), pairs("regression", 3)
    about: dict[str, Any] = {"optimizer": {"class": "SGD"}, "rates": RATES}
    found = metagradients(objective, train, test, CURRICULUM, keep_every=1, **about)
    assert found.provenance["gradients"] == 14 + 14 + 3
    assert found.provenance["hessian_products"] == 14 * 3
    assert unrolled(objective, train, test, CURRICULUM, keep_every=1, **about).provenance["gradients"] == 31


def test_the_model_is_left_as_it_was() -> None:
    objective, train = network("regression"), pairs("regression", 7)
    before = flat(objective.module)
    objective.module.train()
    metagradients(objective, train, train[:1], CURRICULUM, optimizer={"class": "SGD"}, rates=RATES)
    torch.testing.assert_close(flat(objective.module), before, rtol=0, atol=0)
    assert objective.module.training
    assert all(parameter.grad is None for parameter in objective.module.parameters())


def test_weights_leave_examples_out_of_batches_that_keep_their_size() -> None:
    objective, train, test = network("classification"), pairs("classification", 7), pairs("classification", 3)
    weights = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])  # the last batch is example 4 alone
    run = Training(objective, train, CURRICULUM, update_rule(OPTIMIZERS[0]), RATES, weights)
    expected = retrained(objective, train, test, OPTIMIZERS[0], weights)
    np.testing.assert_allclose(run.final_losses(test), expected, rtol=1e-10)


# ----------------------------------------------------------------------------- the Hessian neglected


class _Linear:
    """Losses ⟨x, θ⟩ of training examples: no curvature."""

    def __init__(self) -> None:
        self.theta = torch.nn.Linear(3, 1, bias=False).double()

    def losses(self, examples: list) -> torch.Tensor:
        return self.theta(torch.stack(examples))[:, 0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_curvature_unrolled_is_exact(optimizer: dict) -> None:
    model = _Linear()
    objective: Any = LossesOnly(model.theta, model.losses)
    train = list(torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    if optimizer["class"] != "AdamW":
        optimizer = {**optimizer, "weight_decay": 0.0}  # else the decay is curvature
    about: dict[str, Any] = {"optimizer": optimizer, "rates": RATES}
    exact = metagradients(objective, train, train, CURRICULUM, **about)
    found = unrolled(objective, train, train, CURRICULUM, **about)
    assert np.abs(found.scores).max() > 1e-3
    np.testing.assert_allclose(found.scores, exact.scores, rtol=1e-9, atol=1e-12)
    held = unrolled(objective, train, train, CURRICULUM, hold_sizes=True, **about)
    same = np.allclose(held.scores, exact.scores, rtol=1e-6)
    assert same == (optimizer["class"] == "SGD")  # only Adam has sizes to hold


def test_unrolled_is_metagradients_without_hessians() -> None:
    """Autograd through the loop, where gradients are taken at weights cut off from the graph."""
    objective, train, test = network("regression"), pairs("regression", 7), pairs("regression", 2, seed=1)
    rule = update_rule(OPTIMIZERS[0])
    uses = torch.ones(7, dtype=torch.float64, requires_grad=True)
    theta = flat(objective.module)
    state: Any = (theta, torch.zeros_like(theta), torch.full_like(theta, 1e-300))
    for step, batch in enumerate(BATCHES):
        here = state[0].detach().requires_grad_()
        loss = sum(uses[i] * loss_at(objective, here, train[i]) for i in batch) / len(batch)
        (gradient,) = torch.autograd.grad(loss, here, create_graph=True)
        state = rule.step(state, gradient, float(RATES[step]), step + 1)
    expected = [
        -torch.autograd.grad(loss_at(objective, state[0], z), uses, retain_graph=True)[0] for z in test
    ]
    found = unrolled(objective, train, test, CURRICULUM, optimizer=OPTIMIZERS[0], rates=RATES)
    np.testing.assert_allclose(found.scores, torch.stack(expected, -1), rtol=1e-8, atol=1e-12)


# ------------------------------------------------------------------------------- in a recorded run


def recorded(final: np.ndarray, **changed: Any) -> AttributionContext:
    objective, train, test = network("classification"), pairs("classification", 7), pairs("classification", 3)
    with torch.no_grad():
        first = objective.losses(test).numpy()
    run = Run(
        "run-000", CURRICULUM, {"loss": np.stack([first, final])}, np.array([0, len(BATCHES)]), RATES,
        np.full(len(BATCHES), np.nan), optimizer=OPTIMIZERS[2],
    )  # fmt: skip
    begin = Checkpoint(0, 0.1, lambda module: None)
    context = AttributionContext(objective, train, test, [""] * 7, [""] * 3, [begin], list, run=run)
    return replace(context, **changed)


def test_a_recorded_run_is_trained_again_and_compared() -> None:
    objective, train, test = network("classification"), pairs("classification", 7), pairs("classification", 3)
    final = retrained(objective, train, test, OPTIMIZERS[2], np.ones(7))
    found = of_recorded_run(metagradients, recorded(final))
    expected = metagradients(objective, train, test, CURRICULUM, optimizer=OPTIMIZERS[2], rates=RATES)
    np.testing.assert_allclose(found.scores, expected.scores)
    with pytest.raises(
        RunDataError, match=r"run-000, trained again, ends with losses that differ .* dropout"
    ):
        of_recorded_run(metagradients, recorded(final + 1))
    fewer = of_recorded_run(metagradients, recorded(final, test=test[:2]))
    np.testing.assert_allclose(fewer.scores, expected.scores[:, :2])
    with pytest.raises(ValueError, match="steps=initial"):
        of_recorded_run(metagradients, recorded(final, checkpoints=[Checkpoint(2, 0.1, lambda module: None)]))
    with pytest.raises(ValueError, match="needs the run"):
        of_recorded_run(metagradients, recorded(final, run=None))


def test_what_does_not_fit_is_said() -> None:
    objective: Classification | Regression = network("regression")
    train = pairs("regression", 7)
    about: dict[str, Any] = {"optimizer": {"class": "SGD"}, "rates": RATES}
    with pytest.raises(ValueError, match="over 7 training examples, got 6"):
        metagradients(objective, train[:6], train, CURRICULUM, **about)
    with pytest.raises(ValueError, match="expected test examples, got none"):
        metagradients(objective, train, [], CURRICULUM, **about)
    with pytest.raises(ValueError, match=r"each of 7 steps, finite; got shape \(3,\)"):
        metagradients(objective, train, train, CURRICULUM, optimizer={"class": "SGD"}, rates=RATES[:3])
    with pytest.raises(ValueError, match="some that are not finite"):
        metagradients(objective, train, train, CURRICULUM, optimizer={"class": "SGD"}, rates=RATES * np.nan)
    with pytest.raises(ValueError, match=r"weights must be \[train\] = \(7,\)"):
        metagradients(objective, train, train, CURRICULUM, weights=np.ones(3), **about)
