"""Sketches of gradients against gradients by autograd times the dense matrix, and in expectation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from attribution_models import CASES, naive_gradients, network, points
from torch import Tensor, nn

from simfluence.attribution import Classification, selected_parameters, sketch
from simfluence.attribution.gradient_parts import Summed
from simfluence.attribution.landmarks import Projection, basis_of, drawn
from simfluence.attribution.sketch import Sketch
from simfluence.attribution.tracing import Traced, tracer


def matrix_of(made: Sketch, parameters: dict[str, nn.Parameter]) -> Tensor:
    """The sketch as a matrix [number of all parameters, k], from gradients that have a single 1."""
    total = sum(p.numel() for p in parameters.values())
    ones, parts, start = torch.eye(total, dtype=torch.float64), {}, 0
    for name, p in parameters.items():
        parts[name] = [Summed(ones[:, None, start : start + p.numel()].reshape(total, 1, *p.shape))]
        start += p.numel()
    return made(Traced(torch.zeros(total, dtype=torch.float64), parts))


def random_scales(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: 0.5 + torch.rand_like(p) for name, p in parameters.items()}


@pytest.mark.parametrize("kind", ["one scale", "Fourier", "scales"])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_dense_gradients_times_the_dense_matrix(
    case: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sketch, "_ROWS", 3)
    monkeypatch.setattr(sketch, "_FOURIER", 0 if kind == "Fourier" else 10**9)
    objective, examples = CASES[case]()
    parameters = selected_parameters(objective.module)
    scales = random_scales(parameters) if kind == "scales" else dict.fromkeys(parameters, 0.7)
    made = Sketch(parameters, 50, seed=1, scales=scales)
    expected = naive_gradients(objective, examples, parameters) @ matrix_of(made, parameters)
    with tracer(objective, examples) as trace:
        found = torch.cat([made(trace(batch)) for batch in trace.batches(examples, 3)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("k", [7, 64, 1024])
def test_every_number_has_one_place_and_a_sign(k: int) -> None:
    parameters = selected_parameters(network().module)
    scales = random_scales(parameters)
    matrix = matrix_of(Sketch(parameters, k, 0, scales), parameters)
    assert ((matrix != 0).sum(1) == 1).all()
    torch.testing.assert_close(matrix.abs().sum(1), torch.cat([s.flatten() for s in scales.values()]))
    counts = (matrix != 0).sum(0)
    assert counts.max() <= 2 * -(-len(matrix) // k)  # places are filled evenly


def test_exact_if_k_is_the_number_of_parameters() -> None:
    objective, examples = CASES["bert lora"]()
    parameters = selected_parameters(objective.module)
    size = sum(p.numel() for p in parameters.values())
    made = Sketch(parameters, size, 0, dict.fromkeys(parameters, 1.0))
    gradients = naive_gradients(objective, examples, parameters)
    with tracer(objective, examples) as trace:
        found = made(trace(examples))
    torch.testing.assert_close(found @ found.T, gradients @ gradients.T, rtol=1e-6, atol=1e-9)


def test_unbiased_with_the_stated_error() -> None:
    """Of layers much larger than k, whose gradients are of low rank; over 400 seeds."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 4))
    objective, examples = Classification(layers.double()), points(3)
    parameters, k, seeds = selected_parameters(layers), 32, 400
    gradients = naive_gradients(objective, examples, parameters)
    with tracer(objective, examples) as trace:
        traced = trace(examples)
    each = [Sketch(parameters, k, seed, dict.fromkeys(parameters, 1.0))(traced) for seed in range(seeds)]
    products = torch.stack([found @ found.T for found in each])
    exact, lengths = gradients @ gradients.T, gradients.norm(dim=1)
    stated = torch.outer(lengths, lengths) / k**0.5
    assert ((products.mean(0) - exact).abs() < 4 * stated * 2**0.5 / seeds**0.5).all()
    off = ~torch.eye(3, dtype=torch.bool)
    assert (products.std(0)[off] < 1.6 * stated[off]).all()
    assert (products.std(0)[off] > 0.3 * stated[off]).all()


def test_seeds_differ_and_repeat() -> None:
    parameters = selected_parameters(network().module)
    scales = dict.fromkeys(parameters, 1.0)
    prints = [Sketch(parameters, 16, seed, scales).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert Sketch(parameters, 17, 0, scales).fingerprint != prints[0]
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Sketch(parameters, 0, 0, scales)


def test_landmarks_leave_only_the_error_of_the_wide_sketch() -> None:
    objective, train, test = network(), points(12), points(4, seed=1)
    parameters = selected_parameters(objective.module)
    size = sum(p.numel() for p in parameters.values())
    gradients = naive_gradients(objective, [*train, *test], parameters)
    exact = gradients[:12] @ gradients[12:].T
    with tracer(objective, train) as trace:
        traced, of_test = trace(train), trace(test)
    wide = Sketch(parameters, size, 0, dict.fromkeys(parameters, 1.0))
    errors = []
    for count in (0, 4, 8, 12):
        basis = basis_of(wide(traced)[drawn(12, count, 0)])
        torch.testing.assert_close(basis.rows @ basis.rows.T, torch.eye(count, dtype=torch.float64))
        each = [Projection(wide, basis, count + 6, seed) for seed in range(200)]
        products = torch.stack([projected(traced) @ projected(of_test).T for projected in each])
        assert ((products.mean(0) - exact).abs() <= 5 * products.std(0) / 200**0.5 + 1e-9).all()
        errors.append(float((products - exact).square().mean().sqrt()))
    assert all(later < before for before, later in pairwise(errors))
    assert errors[-1] < 1e-9 * float(exact.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_basis_of_sketches_that_depend_on_each_other(dtype: torch.dtype) -> None:
    """Of very different sizes, one twice, and a zero."""
    generator = torch.Generator().manual_seed(0)
    sketches = torch.randn(8, 300, generator=generator, dtype=dtype) * torch.logspace(0, -3, 8)[:, None]
    sketches[5], sketches[6] = sketches[1], 0.0
    sketches = sketches.to(dtype)
    basis = basis_of(sketches.clone())
    digits = max(100 * torch.finfo(dtype).eps, 1e-9)
    torch.testing.assert_close(basis.own @ basis.rows, sketches, rtol=0, atol=digits)
    inner = basis.rows @ basis.rows.T
    there = inner.diagonal() > 0.5
    assert there.sum() >= 6
    torch.testing.assert_close(
        inner[there][:, there], torch.eye(int(there.sum()), dtype=dtype), rtol=0, atol=digits
    )
    torch.testing.assert_close(sketches @ basis.rows.T, basis.own, rtol=0, atol=2e-5)


def test_many_batches_and_landmarks_are_shortened_alike() -> None:
    objective, train = network(), points(12)
    parameters = selected_parameters(objective.module)
    wide = Sketch(parameters, 4096, 0, dict.fromkeys(parameters, 1.0))
    with tracer(objective, train) as trace:
        batches = [trace(train[start : start + 5]) for start in (0, 5, 10)]
    chosen = drawn(12, 6, 0)
    sketches = torch.cat([wide(batch) for batch in batches])
    project = Projection(wide, basis_of(sketches[chosen]), 20, 0)
    expected = torch.cat([project(batch) for batch in batches])
    torch.testing.assert_close(project.of(batches), expected)
    torch.testing.assert_close(project.of_landmarks(), expected[chosen])


def test_landmarks_are_drawn_once_each() -> None:
    assert drawn(5, 5, 0) == [0, 1, 2, 3, 4]
    assert drawn(100, 10, 0) == drawn(100, 10, 0) != drawn(100, 10, 1)
    assert len(np.unique(drawn(100, 10, 0))) == 10
