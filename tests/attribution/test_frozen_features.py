"""Features of examples against explicit projections, exact gradients and the encoder itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from simfluence.attribution import LossesOnly, gradient_similarity
from simfluence.attribution.frozen_features import adam_scale, gradient_features, text_features


def squared_errors(model: nn.Module):
    def losses(examples) -> torch.Tensor:
        x, y = (torch.stack(parts) for parts in zip(*examples, strict=True))
        return (model(x)[:, 0] - y) ** 2

    return losses


@pytest.fixture
def made() -> tuple[nn.Module, list]:
    torch.manual_seed(0)
    return nn.Linear(30, 1), [(torch.randn(30), torch.randn(())) for _ in range(8)]


def gradients(model, examples) -> np.ndarray:
    """∇(w·x + b − y)² = 2 r (x, 1)"""
    with torch.no_grad():
        return np.stack([2 * (model(x)[0] - y) * torch.cat([x, torch.ones(1)]) for x, y in examples])


def test_a_sketch_is_a_signed_sum_into_places(made) -> None:
    model, examples = made
    found = gradient_features(model, squared_errors(model), examples, size=5, seed=3)
    rng = torch.Generator().manual_seed(3)
    place = torch.randint(5, (31,), generator=rng).numpy()
    sign = torch.randint(2, (31,), generator=rng).numpy() * 2 - 1
    expected = np.zeros((8, 5))
    for row, gradient in zip(expected, gradients(model, examples), strict=True):
        for j in range(31):
            row[place[j]] += sign[j] * gradient[j]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    again = gradient_features(model, squared_errors(model), examples, size=5, seed=3)
    np.testing.assert_array_equal(found, again)


def test_inner_products_are_kept_on_average(made) -> None:
    """Mean over seeds within four standard errors, and their spread within the bound that is stated."""
    model, examples = made
    losses = squared_errors(model)
    exact = gradient_similarity(LossesOnly(model, losses), examples[:4], examples[4:]).scores
    norms = np.linalg.norm(gradients(model, examples), axis=1)
    sketched = []
    for seed in range(400):
        h = gradient_features(model, losses, examples, size=64, seed=seed)
        sketched.append(h[:4] @ h[4:].T)
    bound = np.sqrt(2 / 64) * np.outer(norms[:4], norms[4:])
    assert (np.std(sketched, axis=0) < 1.1 * bound).all()
    assert (np.abs(np.mean(sketched, axis=0) - exact) < 4 * bound / np.sqrt(400)).all()


def test_scaled_gradients_multiply_as_a_step_of_adam_does(made) -> None:
    model, examples = made
    losses = squared_errors(model)
    scale = adam_scale(model, losses, examples)
    g = gradients(model, examples)
    np.testing.assert_allclose(scale.numpy(), np.square(g).mean(0) ** -0.25, rtol=1e-5)
    h = gradient_features(model, losses, examples, size=2**16, scale=scale)  # hardly a collision
    expected = g @ np.diag(np.square(g).mean(0) ** -0.5) @ g.T
    np.testing.assert_allclose(h @ h.T, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_what_has_no_gradient_is_not_scaled_up(made) -> None:
    model, examples = made
    blind = [(torch.cat([torch.zeros(1), x[1:]]), y) for x, y in examples]
    assert adam_scale(model, squared_errors(model), blind)[0] == 0


class Encoder(nn.Module):
    """What text_features asks of a model."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs

    def pooled(self, examples) -> torch.Tensor:
        return examples[0].hidden


class Example:
    def __init__(self, hidden: torch.Tensor, label: int) -> None:
        self.hidden, self.label = hidden, label


def test_text_of_a_choice_is_the_right_option_and_what_sets_it_apart() -> None:
    examples = [Example(torch.randn(n, 3), n - 2) for n in (2, 3, 4)]
    found = text_features(Encoder(1), examples)
    right = np.stack([e.hidden[e.label] for e in examples])
    apart = np.stack([e.hidden[e.label] - e.hidden.mean(0) for e in examples])
    parts = [part / np.sqrt(np.square(part).sum(1).mean()) for part in (right, apart)]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), rtol=1e-5)


def test_text_of_a_class_goes_with_its_label() -> None:
    hidden = torch.randn(1, 3)
    found = text_features(Encoder(2), [Example(hidden, 0), Example(hidden, 1)])
    np.testing.assert_allclose(found[0, :3], found[1, :3])
    np.testing.assert_allclose(found[0, 3:], -found[1, 3:], rtol=1e-6)
    np.testing.assert_allclose(found[0, 3:6], -found[0, 6:], rtol=1e-6)
