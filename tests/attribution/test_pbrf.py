"""The proximal Bregman response against closed forms and its own derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribution.small import dense_gauss_newton, dense_gradients, flat, network, pairs

from simfluence.attribution.inverse import ConvergenceWarning
from simfluence.attribution.pbrf import proximal_bregman_response


@pytest.mark.parametrize("epsilon", [0.3, -0.05])
def test_linear_regression_has_a_closed_form(epsilon: float) -> None:
    """With h linear and a squared error, the objective is quadratic: ½ δᵀ(G + λI)δ + ε L(m; θ_s + δ), so that
    δ = −ε (G + λI + ε JᵀJ)⁻¹ ∇L(m), whatever θ_s is."""
    objective = network("regression", linear=True)
    train, test = pairs("regression", 8), pairs("regression", 4, seed=1)
    found = proximal_bregman_response(
        objective, train, test, damping=0.1, epsilon=epsilon, sources=[5, 0], tolerance=1e-7
    )
    start = flat(objective.module)
    system = dense_gauss_newton(objective, train) + 0.1 * torch.eye(len(start), dtype=torch.float64)
    with torch.no_grad():
        before = objective.losses(test)
        for row, m in enumerate([5, 0]):
            own = dense_gauss_newton(objective, [train[m]])
            gradient = dense_gradients(objective, [train[m]])[0]
            shift = -epsilon * torch.linalg.solve(system + epsilon * own, gradient)
            torch.nn.utils.vector_to_parameters(start + shift, objective.module.parameters())
            expected = (before - objective.losses(test)) / epsilon
            torch.nn.utils.vector_to_parameters(start, objective.module.parameters())
            np.testing.assert_allclose(found.scores[row], expected.numpy(), rtol=1e-5, atol=1e-7)
    assert found.provenance["sources"] == [5, 0]
    assert found.units == "loss per weight of an example in the training mean"


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_its_derivative_is_the_influence(kind: str) -> None:
    objective = network(kind)
    train, test = pairs(kind, 7), pairs(kind, 3, seed=1)
    both = [
        proximal_bregman_response(
            objective, train, test, damping=0.05, epsilon=epsilon, tolerance=3e-5, batch_size=3
        ).scores
        for epsilon in (1e-3, -1e-3)
    ]
    found = (both[0] + both[1]) / 2  # without the second derivative by epsilon
    system = dense_gauss_newton(objective, train) + 0.05 * torch.eye(
        len(flat(objective.module)), dtype=torch.float64
    )
    of_train, of_test = dense_gradients(objective, train), dense_gradients(objective, test)
    expected = (of_train @ torch.linalg.solve(system, of_test.T)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_default_adds_one_copy_and_what_is_not_reached_is_said() -> None:
    objective, train = network("classification"), pairs("classification", 5)
    found = proximal_bregman_response(objective, train, train, damping=0.1, sources=[1])
    assert found.provenance["epsilon"] == pytest.approx(1 / 5)
    assert found.scores[0, 1] > 0  # a copy of an example lowers its own loss
    with pytest.warns(ConvergenceWarning, match=r"1 of 1 optima are not reached \(training examples \[1\]\)"):
        proximal_bregman_response(objective, train, train, damping=0.1, sources=[1], max_iterations=2)


def test_a_model_is_left_as_it_was_and_only_chosen_parameters_move() -> None:
    objective, train = network("classification"), pairs("classification", 5)
    module = objective.module.train()
    module[0].requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = proximal_bregman_response(objective, train, train[:2], damping=0.1, sources=[0])
    assert found.covers == ("2.weight", "2.bias")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]
    assert all(p.grad is None for p in module.parameters())
    assert module.training


def test_bad_input_is_named() -> None:
    objective, train = network("classification"), pairs("classification", 3)
    for wrong in ({"damping": 0.0}, {"damping": 0.1, "epsilon": 0.0}):
        with pytest.raises(ValueError, match="damping must be positive and epsilon not 0"):
            proximal_bregman_response(objective, train, train, **wrong)
    with pytest.raises(ValueError, match="expected examples"):
        proximal_bregman_response(objective, [], train, damping=0.1)
    objective.module.float()
    with pytest.raises(ValueError, match=r"0.weight is torch.float32: .* model.double\(\)"):
        proximal_bregman_response(objective, train, train, damping=0.1)
