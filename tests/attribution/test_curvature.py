"""Gauss-Newton products and solvers against dense matrices, float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attribution.small import dense_gauss_newton, dense_hessian, network, pairs
from torch import nn

from simfluence.attribution.curvature import GaussNewton
from simfluence.attribution.inverse import ConjugateGradient, ConvergenceWarning, Exact, Lissa
from simfluence.attribution.objective import LossesOnly, Regression

KINDS = ("regression", "classification")


def matrix_of(kind: str, count: int = 11, **options) -> GaussNewton:
    return GaussNewton(network(kind), pairs(kind, count), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_matrix_is_the_mean_of_jhj(kind: str, batch_size: int) -> None:
    objective, examples = network(kind), pairs(kind, 11)
    found = GaussNewton(objective, examples, batch_size=batch_size)
    expected = dense_gauss_newton(objective, examples)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-10, atol=1e-12)
    v = torch.randn(2, found.size, dtype=torch.float64)
    torch.testing.assert_close(found.product(v), v @ expected, rtol=1e-10, atol=1e-12)
    some = dense_gauss_newton(objective, [examples[3], examples[7]])
    torch.testing.assert_close(found.product(v, [3, 7]), v @ some, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_hessian_of_a_linear_model(kind: str) -> None:
    objective, examples = network(kind, linear=True), pairs(kind, 9)
    expected = dense_hessian(objective, examples)
    torch.testing.assert_close(GaussNewton(objective, examples).dense(), expected, rtol=1e-10, atol=1e-12)


def test_chosen_parameters_are_a_block_of_it() -> None:
    matrix = matrix_of("classification")
    names, ends = list(matrix.parameters), np.cumsum([p.numel() for p in matrix.parameters.values()])
    block = matrix_of("classification", parameters=["2"])
    assert list(block.parameters) == names[2:] == ["2.weight", "2.bias"]
    start = int(ends[1])
    torch.testing.assert_close(block.dense(), matrix.dense()[start:, start:], rtol=1e-10, atol=1e-12)


def test_what_the_outputs_do_not_depend_on_has_no_curvature() -> None:
    matrix, objective = matrix_of("regression"), network("regression")
    objective.module.unused = nn.ParameterDict({"b": torch.ones(2), "w": torch.ones(2, 3)}).double()
    objective.module.forward = lambda x: nn.Sequential(*list(objective.module)[:3])(x)
    with_unused = GaussNewton(objective, matrix.examples).dense()
    torch.testing.assert_close(with_unused[:-8, :-8], matrix.dense(), rtol=1e-10, atol=1e-12)
    assert with_unused[-8:].abs().max() == 0


def test_layers_that_cannot_be_vectorised_go_one_by_one() -> None:
    """A custom function without a vmap rule gives the same products."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, slope):
            return 2 * ctx.saved_tensors[0] * slope * float(slope.detach().isfinite().all())

    class Squared(nn.Module):
        def __init__(self, plain: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers, self.plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(), plain

        def forward(self, x):
            hidden = self.layers[0](x)
            return self.layers[1](hidden * hidden if self.plain else Square.apply(hidden))

    examples = pairs("regression", 5)
    plain, custom = (GaussNewton(Regression(Squared(plain)), examples) for plain in (True, False))
    torch.testing.assert_close(custom.dense(), plain.dense(), rtol=1e-10, atol=1e-12)


def test_eigenvalues() -> None:
    matrix = matrix_of("classification")
    eigenvalues = torch.linalg.eigvalsh(matrix.dense())
    assert eigenvalues.min() > -1e-12
    assert matrix.largest_eigenvalue(iterations=100) == pytest.approx(eigenvalues.max().item(), rel=1e-3)
    assert matrix.largest_eigenvalue(iterations=5) <= eigenvalues.max().item() * (1 + 1e-9)
    assert matrix.mean_eigenvalue(probes=4000) == pytest.approx(eigenvalues.mean().item(), rel=0.05)
    assert matrix.mean_eigenvalue(seed=1) == matrix.mean_eigenvalue(seed=1) != matrix.mean_eigenvalue(seed=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("solver", "rtol"),
    [
        (Exact(), 1e-9),
        (ConjugateGradient(1e-10), 1e-7),
        (Lissa(batch_size=11, averaged=False, tolerance=1e-4), 1e-3),
    ],
    ids=["exact", "cg", "full-batch lissa"],
)
def test_solvers_against_the_dense_inverse(kind: str, solver, rtol: float) -> None:
    matrix, damping = matrix_of(kind), 0.4
    q = torch.randn(3, matrix.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q[1] = 0
    system = dense_gauss_newton(matrix.objective, matrix.examples) + damping * torch.eye(
        matrix.size, dtype=q.dtype
    )
    found = solver.solve(matrix, q, damping)
    torch.testing.assert_close(found.vectors, torch.linalg.solve(system, q.T).T, rtol=rtol, atol=rtol)
    assert found.report["solver"] == solver.name
    assert found.report["residual"] < max(1e-9, getattr(solver, "tolerance", 0))


def test_lissa_with_batches_comes_close_and_repeats() -> None:
    matrix = matrix_of("classification", 40)
    q = torch.randn(2, matrix.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = Exact().solve(matrix, q, 0.3).vectors
    solver = Lissa(batch_size=10, depth=60, repeats=2, seed=1, tolerance=1.0)
    found = solver.solve(matrix, q, 0.3)
    assert ((found.vectors - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.15
    last = replace(solver, averaged=False).solve(matrix, q, 0.3)
    assert last.report["residual"] > found.report["residual"]
    torch.testing.assert_close(solver.solve(matrix, q, 0.3).vectors, found.vectors, rtol=0, atol=0)
    assert found.report["depth"] == 60
    assert found.report["scale"] > matrix.largest_eigenvalue(iterations=50)


def test_what_does_not_converge_says_so() -> None:
    matrix = matrix_of("regression")
    q = torch.ones(2, matrix.size, dtype=torch.float64)
    with pytest.warns(ConvergenceWarning, match="cg: 2 of 2 systems are not solved"):
        report = ConjugateGradient(max_iterations=1).solve(matrix, q, 1e-6).report
    assert report["residual"] > 0.01
    assert report["iterations"] == 1
    with pytest.warns(ConvergenceWarning, match="lissa"):
        Lissa(depth=2).solve(matrix, q, 1e-3)
    with pytest.raises(ArithmeticError, match="LiSSA diverges with scale"):
        Lissa(depth=500, scale=0.01).solve(matrix, q, 1e-3)
    with pytest.raises(ValueError, match="an exact inverse of 26 parameters"):
        Exact(largest=10).solve(matrix, q, 1e-3)


def test_what_cannot_be_done_is_said() -> None:
    objective, examples = network("regression"), pairs("regression", 3)
    with pytest.raises(ValueError, match="expected some, got none"):
        GaussNewton(objective, [])
    with pytest.raises(ValueError, match=r"expected vectors \[vector, 26\], got shape \[26\]"):
        GaussNewton(objective, examples).product(torch.zeros(26))
    with pytest.raises(ValueError, match=r"needs the model's outputs"):
        GaussNewton(LossesOnly(objective.module, objective.losses), examples).dense()
    with pytest.raises(ValueError, match=r"0.weight is torch.float16: systems of equations need float32"):
        GaussNewton(Regression(nn.Sequential(nn.Linear(3, 2)).half()), examples)
    objective.module.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        GaussNewton(objective, examples)


def test_a_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double().train()
    module[0].bias.requires_grad_(False)
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    matrix = GaussNewton(Regression(module), pairs("regression", 4), parameters=["0"])
    v = torch.ones(1, matrix.size, dtype=torch.float64)
    first = matrix.product(v)
    assert torch.equal(first, matrix.product(v))
    assert module[1].training
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
