"""Gradient scores against closed forms and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from simfluence.attribution import InfluenceScores, gradient_similarity
from simfluence.errors import RunDataError


def squared_errors(model: nn.Module):
    def losses(examples) -> torch.Tensor:
        x, y = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return (model(x)[:, 0] - y) ** 2

    return losses


@pytest.fixture
def data() -> tuple[list, list]:
    torch.manual_seed(0)
    examples = [(torch.randn(3, dtype=torch.float64), torch.randn((), dtype=torch.float64)) for _ in range(7)]
    return examples[:4], examples[4:]


def test_equal_to_the_closed_form_of_a_linear_model(data) -> None:
    """∇(w·x + b − y)² = 2 r (x, 1), so that the dot product is 4 r r' (x·x' + 1)."""
    train, test = data
    model = nn.Linear(3, 1).double()
    found = gradient_similarity(model, squared_errors(model), train, test).scores
    with torch.no_grad():
        for i, (x, y) in enumerate(train):
            for z, (u, v) in enumerate(test):
                expected = 4 * (model(x)[0] - y) * (model(u)[0] - v) * (x @ u + 1)
                assert found[i, z] == pytest.approx(expected.item(), rel=1e-10)


def test_positive_means_that_training_lowers_the_loss(data) -> None:
    train, test = data
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    losses = squared_errors(model)
    scores = gradient_similarity(model, losses, train, test).scores
    before = losses(test).detach()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rate = 1e-7
    for i, example in enumerate(train):
        model.load_state_dict(state)
        model.zero_grad()
        losses([example])[0].backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
        change = (losses(test).detach() - before).numpy() / rate
        np.testing.assert_allclose(scores[i], -change, rtol=1e-4, atol=1e-5)


def test_cosines_are_of_unit_gradients(data) -> None:
    _, test = data
    model = nn.Linear(3, 1).double()
    both = gradient_similarity(model, squared_errors(model), test, test, similarity="cosine").scores
    np.testing.assert_allclose(np.diag(both), 1, rtol=1e-10)
    assert (np.abs(both) <= 1 + 1e-10).all()


def test_model_in_model_out_untouched(data) -> None:
    train, test = data
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double().train()
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    scores = gradient_similarity(model, squared_errors(model), train, test)
    assert scores.covers == ("0.weight", "2.weight", "2.bias")
    assert model[1].training
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    again = gradient_similarity(model, squared_errors(model), train, test)
    np.testing.assert_array_equal(scores.scores, again.scores)


def test_zero_gradients_and_nothing_to_train(data) -> None:
    train, test = data
    model = nn.Linear(3, 1).double()

    def zero(examples) -> torch.Tensor:
        return torch.stack([model(x).sum() * 0 for x, _ in examples])

    assert (gradient_similarity(model, zero, train, test, similarity="cosine").scores == 0).all()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute"):
        gradient_similarity(model, squared_errors(model), train, test)


def test_scores_are_kept_with_what_is_known_of_them(tmp_path) -> None:
    scores = InfluenceScores(np.eye(3, 2), "mine", "none", ("head.weight",), {"seed": 3})
    scores.save(tmp_path / "scores.safetensors")
    loaded = InfluenceScores.load(tmp_path / "scores.safetensors")
    np.testing.assert_array_equal(loaded.scores, scores.scores)
    assert (loaded.method, loaded.covers, loaded.provenance) == ("mine", ("head.weight",), {"seed": 3})
    (tmp_path / "scores.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDataError, match="damaged"):
        InfluenceScores.load(tmp_path / "scores.safetensors")
    with pytest.raises(ValueError, match="training example 1 for test example 0 is nan"):
        InfluenceScores(np.array([[0.0], [np.nan]]), "bad")
