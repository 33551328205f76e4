"""EK-FAC against the dense Fisher matrix."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from attribution.ekfac_blocks import damped, flat_blocks, recomposed
from attribution_models import bert, gpt2, naive_gradients, points, texts
from torch import Tensor, nn

from simfluence.attribution import Classification, Regression, ekfac, ekfac_factors, selected_parameters


def test_is_the_fisher_matrix_of_a_linear_layer_with_one_input() -> None:
    """Where all examples have the same input, F = S ⊗ A: nothing is approximated."""
    torch.manual_seed(0)
    x = torch.randn(3, dtype=torch.float64)
    objective = Classification(nn.Linear(3, 4).double())
    train, test = [(x, i % 4) for i in range(7)], points(3, seed=1)
    parameters = selected_parameters(objective.module)
    factors = ekfac_factors(objective, train, fisher="empirical", batch_size=3)
    (block,) = factors.blocks
    assert (block.treatment, block.shape) == ("kronecker", (4, 4))
    of_train = flat_blocks(factors, naive_gradients(objective, train, parameters), parameters)[block.name]
    of_test = flat_blocks(factors, naive_gradients(objective, test, parameters), parameters)[block.name]
    fisher = of_train.T @ of_train / len(train)
    assert torch.allclose(recomposed(factors, block), fisher, atol=1e-12)
    damping = 0.1 * fisher.trace() / len(fisher)
    expected = of_train @ torch.linalg.solve(damped(fisher, damping), of_test.T)
    found = ekfac(objective, train, test, factors=factors)
    np.testing.assert_allclose(found.scores, expected.numpy(), rtol=1e-8)
    assert found.covers == ("weight", "bias")
    kfac = ekfac(objective, train, test, factors=factors, preconditioner="kfac")
    np.testing.assert_allclose(kfac.scores, expected.numpy(), rtol=1e-8)
    exact = torch.linalg.pinv(fisher, hermitian=True)
    pseudo = ekfac(objective, train, train, factors=factors, damping=0)
    np.testing.assert_allclose(pseudo.scores, (of_train @ exact @ of_train.T).numpy(), rtol=1e-6, atol=1e-9)


class Parts(nn.Module):
    """Outputs made of three parts with constant inputs: a map, a scale, and a map without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 3), nn.Linear(3, 3, bias=False)
        self.norm = nn.LayerNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x[:, :2]) + self.two(x) + self.norm(x)


def test_blocks_are_those_of_the_dense_fisher_matrix() -> None:
    torch.manual_seed(0)
    objective = Regression(Parts().double())
    x = torch.randn(3, dtype=torch.float64)
    train = [(x, torch.randn(3, dtype=torch.float64)) for _ in range(9)]
    factors = ekfac_factors(objective, train, fisher="empirical", batch_size=4)
    parameters = selected_parameters(objective.module)
    by_block = flat_blocks(factors, naive_gradients(objective, train, parameters), parameters)
    assert {b.name: b.treatment for b in factors.blocks} == {
        "one": "kronecker", "two.weight": "kronecker", "norm.weight": "dense", "norm.bias": "dense"
    }  # fmt: skip
    expected = torch.zeros(9, 9, dtype=torch.float64)
    for block in factors.blocks:
        gradients = by_block[block.name]
        fisher = gradients.T @ gradients / len(train)
        assert torch.allclose(recomposed(factors, block), fisher, atol=1e-12)
        damping = 0.1 * fisher.trace() / len(fisher)
        expected += gradients @ torch.linalg.solve(damped(fisher, damping), gradients.T)
    np.testing.assert_allclose(ekfac(objective, train, train, factors=factors).scores, expected, rtol=1e-8)


def test_true_fisher_is_reproducible_and_tends_to_the_gauss_newton_matrix() -> None:
    """Of a Gaussian, E over drawn labels is JᵀJ; 2 000 copies of one example come near."""
    torch.manual_seed(0)
    objective = Regression(nn.Linear(3, 2).double())
    x = torch.randn(3, dtype=torch.float64)
    train = [(x, torch.zeros(2, dtype=torch.float64))] * 2000
    one, same, other = (ekfac_factors(objective, train, seed=s, batch_size=500) for s in (0, 0, 1))
    a = torch.cat([x, torch.ones(1, dtype=torch.float64)])
    expected = torch.kron(torch.eye(2, dtype=torch.float64), torch.outer(a, a))
    found, again, different = (recomposed(f, f.blocks[0]) for f in (one, same, other))
    assert torch.equal(found, again)
    assert not torch.equal(found, different)
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_large_embeddings_are_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("simfluence.attribution.ekfac.blocks"), "DENSE_LIMIT", 20)
    for make in (bert, gpt2):
        model, examples = make(), texts(5)
        parameters = selected_parameters(model)
        factors = ekfac_factors(model, examples, fisher="empirical", batch_size=2)
        by_block = flat_blocks(factors, naive_gradients(model, examples, parameters), parameters)
        expected, exact = 0, None
        for block in factors.blocks:
            factor, flat = factors.factors[block.name], by_block[block.name]
            if block.treatment == "diagonal":
                squares = flat.square().mean(0).reshape(block.shape)
                assert torch.allclose(factor.eigenvalues, squares, atol=1e-12)
            if factor.damping():  # not zero but for rounding, or not used at all
                fisher = damped(recomposed(factors, block), factor.damping())
                expected = expected + flat @ torch.linalg.solve(fisher, flat.T)
        for rank in (None, 3):
            found = ekfac(model, examples, examples, factors=factors, rank=rank).scores
            exact = found if exact is None else exact
        np.testing.assert_allclose(exact, expected, rtol=1e-7, atol=1e-8 * np.abs(exact).max())
        assert (factors.coverage.treatment == "diagonal").any()
