"""EK-FAC against naive loops and its own parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from attribution.ekfac_blocks import flat_blocks, recomposed
from attribution_models import CASES, bert, gpt2, naive_gradients, network, points, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from simfluence.attribution import (
    LossesOnly,
    ekfac,
    ekfac_by_layer_and_token,
    ekfac_factors,
    gradient_similarity,
    selected_parameters,
)
from simfluence.attribution.ekfac.queries import low_rank


def naive_moments(objective: Any, examples: Any, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Σ a aᵀ and Σ g gᵀ of one module over all tokens, example by example."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, inputs, output: seen.extend([inputs[0], output]))
    total_a = total_s = torch.zeros((), dtype=torch.float64)
    objective.module.eval()
    for example in examples:
        seen.clear()
        loss = objective.losses([example])[0]
        (gradient,) = torch.autograd.grad(loss, [seen[1]], allow_unused=True)
        if gradient is None:
            continue
        inputs, gradient = seen[0].detach().flatten(0, -2), gradient.flatten(0, -2)
        if (masks := objective.masks([example])) and len(inputs) == masks[0].numel():
            inputs, gradient = inputs[masks[0].flatten()], gradient[masks[0].flatten()]
        total_a, total_s = total_a + inputs.T @ inputs, total_s + gradient.T @ gradient
    handle.remove()
    return total_a, total_s


@pytest.mark.parametrize("case", CASES)
def test_equal_to_naive_loops(case: str) -> None:
    """Factors, eigenvalues and scores, whatever the batch size and so the padding."""
    objective, examples = CASES[case]()
    parameters = selected_parameters(objective.module)
    modules = dict(objective.module.named_modules())
    gradients = naive_gradients(objective, examples, parameters)
    expected = 0
    for batch_size in (2, 5):
        factors = ekfac_factors(objective, examples, fisher="empirical", batch_size=batch_size)
        by_block = flat_blocks(factors, gradients, parameters)
        assert set(factors.parameters) == set(parameters)
        for block in factors.blocks:
            factor, flat = factors.factors[block.name], by_block[block.name]
            if block.treatment == "kronecker":
                basis = torch.kron(factor.out_basis, factor.in_basis)
                module = modules[block.parameters[0].removesuffix(".weight")]
                a, s = naive_moments(objective, examples, module)
                tokens = factor.tokens * len(examples)
                for values, vectors, ones, naive in (
                    (factor.out_values, factor.out_basis, "left", s if module_is_linear(module) else a),
                    (factor.in_values, factor.in_basis, "right", a if module_is_linear(module) else s),
                ):
                    found = tokens * (vectors * values) @ vectors.T
                    found = found[:-1, :-1] if block.ones == ones else found
                    assert torch.allclose(found, naive, atol=1e-9 * max(1, naive.abs().max()))
            else:
                basis = factor.out_basis
            rotated = flat if block.treatment == "diagonal" else flat @ basis
            if block.treatment == "dense":
                assert torch.allclose(recomposed(factors, block), flat.T @ flat / len(flat), atol=1e-10)
            else:
                eigenvalues = rotated.square().mean(0).reshape(block.shape)
                assert torch.allclose(factor.eigenvalues, eigenvalues, atol=1e-10)
            if batch_size == 2:
                damping = factor.damping()
                inverse = 1 / (factor.eigenvalues.flatten() + damping) if damping else 0 * rotated[0]
                expected = expected + (rotated * inverse) @ rotated.T
        found = ekfac(objective, examples, examples, factors=factors, batch_size=batch_size).scores
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8 * np.abs(found).max())


def module_is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


@pytest.mark.parametrize("case", ["network", "bert choices", "gpt2", "gpt2 lora", "bert ia3", "t5"])
def test_scores_by_layer_and_token_add_up(case: str) -> None:
    objective, examples = CASES[case]()
    train, test = examples[:3], examples[3:]
    factors = ekfac_factors(objective, examples, batch_size=2)
    apart = ekfac_by_layer_and_token(objective, train, test, factors=factors, batch_size=2)
    whole = ekfac(objective, train, test, factors=factors, batch_size=3).scores
    np.testing.assert_allclose(apart.total, whole, rtol=1e-8, atol=1e-10 * np.abs(whole).max())
    assert apart.tokens.shape == (len(apart.blocks), 3, 2, max(apart.lengths))
    assert all((apart.tokens[:, i, :, n:] == 0).all() for i, n in enumerate(apart.lengths))
    assert (apart.tokens != 0).any()
    alone = ekfac_by_layer_and_token(objective, train[1:2], test, factors=factors)
    width = min(apart.tokens.shape[3], alone.tokens.shape[3])
    np.testing.assert_allclose(
        alone.tokens[:, 0, :, :width], apart.tokens[:, 1, :, :width], atol=1e-8 * np.abs(whole).max()
    )


def test_identity_is_the_dot_product_of_gradients() -> None:
    model, examples = bert(), texts(6)
    found = ekfac(model, examples[:4], examples[4:], preconditioner="identity")
    expected = gradient_similarity(model, examples[:4], examples[4:])
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_large_damping_is_the_dot_product_divided_by_it() -> None:
    for make in (bert, gpt2):
        model, examples = make(), texts(6)
        found = ekfac(model, examples[:4], examples[4:], damping=1e9).scores * 1e9
        expected = gradient_similarity(model, examples[:4], examples[4:]).scores
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_rank() -> None:
    """Full rank is exact; a low one near; low_rank nearly as good as a singular value decomposition."""
    model, examples = bert(tuning="last_layers", layers=1), texts(12)
    factors = ekfac_factors(model, examples, fisher="empirical")
    exact, full, close, low = (
        ekfac(model, examples[:8], examples[8:], factors=factors, rank=r).scores for r in (None, 8, 4, 1)
    )
    np.testing.assert_allclose(full, exact, rtol=1e-8)
    errors = [np.linalg.norm(found - exact) / np.linalg.norm(exact) for found in (close, low)]
    assert 0 < errors[0] < 0.25
    assert errors[0] < errors[1]
    torch.manual_seed(0)
    matrices = torch.randn(2, 40, 30, dtype=torch.float64) @ torch.diag(0.7 ** torch.arange(30.0).double())
    left, right = low_rank(matrices, 5)
    assert left.shape == (2, 40, 5)
    best = torch.linalg.svdvals(matrices)[:, 5:].norm(dim=1)
    assert ((matrices - left @ right).norm(dim=(1, 2)) < 1.01 * best).all()
    with pytest.raises(ValueError, match="rank must be at least 1"):
        ekfac(model, examples, examples, rank=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from(["ekfac", "kfac"]))
def test_permuting_examples_permutes_scores(seed: int, batch_size: int, preconditioner: Any) -> None:
    objective, train, test = network(), points(6, seed=seed), points(3, seed=seed + 1)
    order = np.random.default_rng(seed).permutation(6)
    options = {"fisher": "empirical", "batch_size": batch_size, "preconditioner": preconditioner}
    found = ekfac(objective, train, test, **options).scores
    permuted = ekfac(objective, [train[i] for i in order], test[::-1], **options).scores
    np.testing.assert_allclose(permuted, found[order][:, ::-1], rtol=1e-6, atol=1e-8 * np.abs(found).max())


def test_rotating_training_gradients_or_queries_is_the_same() -> None:
    """With many queries the training gradients are rotated, with few the queries are."""
    objective = network()
    few, many = points(3), points(40, seed=1)
    factors = ekfac_factors(objective, few)
    there = ekfac(objective, few, many, factors=factors).scores
    back = ekfac(objective, many, few, factors=factors).scores
    np.testing.assert_allclose(there, back.T, rtol=1e-8, atol=1e-12)


def test_repeated_examples_and_a_single_one() -> None:
    objective, train, test = network(), points(3), points(2, seed=1)
    once = ekfac(objective, train, test, fisher="empirical").scores
    twice = ekfac(objective, [*train, *train], test, fisher="empirical", batch_size=4).scores
    np.testing.assert_allclose(twice, np.concatenate([once, once]), rtol=1e-8)
    assert np.isfinite(ekfac(objective, train[:1], test[:1]).scores).all()


def test_a_layer_without_gradients_adds_nothing() -> None:
    """LoRA's first matrix has none while the second is zero."""
    model, examples = bert(tuning="lora"), texts(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    factors = ekfac_factors(model, examples)
    coverage = factors.coverage.set_index("block")
    without = coverage.index.str.contains("lora_A")
    assert (coverage.damping[without] == 0).all()
    assert (coverage.damping[~without] > 0).all()
    found = ekfac(model, examples[:3], examples[3:], factors=factors).scores
    some = [name for name in factors.parameters if "lora_A" not in name]
    expected = ekfac(
        model, examples[:3], examples[3:], factors=ekfac_factors(model, examples, parameters=some)
    )
    np.testing.assert_allclose(found, expected.scores, rtol=1e-10)


def test_a_loss_of_zero_gradient_scores_zero() -> None:
    model = nn.Linear(3, 1).double()
    objective = LossesOnly(model, lambda examples: torch.stack([model(x).sum() * 0 for x, _ in examples]))
    found = ekfac(objective, points(3), points(2), fisher="empirical").scores
    assert (found == 0).all()


def test_half_precision_weights() -> None:
    half, single = network(dtype=torch.float16), network(dtype=torch.float32)
    single.module.load_state_dict(half.module.state_dict())
    train, test = points(8, dtype=torch.float16), points(3, seed=1, dtype=torch.float16)
    found = ekfac(half, train, test, fisher="empirical")
    wide = [[(x.float(), y) for x, y in part] for part in (train, test)]
    expected = ekfac(single, *wide, fisher="empirical").scores
    assert found.scores.dtype == np.float32
    assert np.linalg.norm(found.scores - expected) < 0.02 * np.linalg.norm(expected)


def test_frozen_models_and_misuse() -> None:
    model, examples = bert(), texts(4)
    expected = ekfac(model, examples[:3], examples[3:], parameters=["head"])
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        ekfac(model, examples, examples)
    found = ekfac(model, examples[:3], examples[3:], parameters=["head"])
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert not any(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="preconditioner must be"):
        ekfac(model, examples, examples, preconditioner="none")
    with pytest.raises(ValueError, match="fisher must be"):
        ekfac_factors(model, examples, fisher="exact")
    with pytest.raises(ValueError, match="no training examples"):
        ekfac_factors(model, [])
    with pytest.raises(ValueError, match="must not be negative"):
        ekfac(model, examples, examples, damping=-1, parameters=["head"])
    only = LossesOnly(model, model.losses)
    with pytest.raises(ValueError, match="needs the model's outputs"):
        ekfac_factors(only, examples, parameters=["head"])
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="are not finite"):
        ekfac_factors(model, examples, parameters=["encoder.encoder.layer.1.output"], fisher="empirical")


def test_coverage_says_what_became_of_everything() -> None:
    model = gpt2()
    factors = ekfac_factors(model, texts(3))
    coverage = factors.coverage.set_index("block")
    assert coverage["size"].sum() == sum(p.numel() for p in model.parameters())
    treated = coverage.treatment
    assert treated["lm.transformer.h.0.attn.c_attn"] == "kronecker"
    assert treated["lm.transformer.wte.weight"] == "dense"  # small, and tied to the output map
    assert treated["lm.transformer.ln_f.weight"] == "dense"
    assert list(coverage) == ["parameters", "treatment", "shape", "size", "mean_eigenvalue", "damping"]


def test_leaves_no_trace_in_the_model() -> None:
    model, examples = bert(tuning="ia3"), texts(4)
    model.train()
    flags = [p.requires_grad for p in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    ekfac(model, examples[:3], examples[3:], rank=1)
    assert model.training
    assert flags == [p.requires_grad for p in model.parameters()]
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
