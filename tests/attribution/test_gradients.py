"""Gradients against a naive loop of autograd; scores against closed forms and finite differences."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from attribution_models import CASES, bert, naive_gradients, network, points, texts
from safetensors.numpy import save_file
from torch import nn

from simfluence.attribution import (
    InfluenceScores,
    LossesOnly,
    Regression,
    ekfac_factors,
    example_gradients,
    gradient_similarity,
    selected_parameters,
)
from simfluence.attribution.tracing import tracer
from simfluence.errors import RunDataError
from simfluence.runs import TableFingerprints


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
    found = gradient_similarity(LossesOnly(model, squared_errors(model)), train, test).scores
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
    scores = gradient_similarity(LossesOnly(model, losses), train, test).scores
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
    both = gradient_similarity(
        LossesOnly(model, squared_errors(model)), test, test, similarity="cosine"
    ).scores
    np.testing.assert_allclose(np.diag(both), 1, rtol=1e-10)
    assert (np.abs(both) <= 1 + 1e-10).all()


def test_model_in_model_out_untouched(data) -> None:
    train, test = data
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 1)).double().train()
    model[0].bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    scores = gradient_similarity(LossesOnly(model, squared_errors(model)), train, test)
    assert scores.covers == ("0.weight", "2.weight", "2.bias")
    assert model[1].training
    assert torch.equal(random_state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    again = gradient_similarity(LossesOnly(model, squared_errors(model)), train, test)
    np.testing.assert_array_equal(scores.scores, again.scores)


def test_zero_gradients_and_nothing_to_train(data) -> None:
    train, test = data
    model = nn.Linear(3, 1).double()

    def zero(examples) -> torch.Tensor:
        return torch.stack([model(x).sum() * 0 for x, _ in examples])

    assert (gradient_similarity(LossesOnly(model, zero), train, test, similarity="cosine").scores == 0).all()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute"):
        gradient_similarity(LossesOnly(model, squared_errors(model)), train, test)


def test_scores_are_kept_with_what_is_known_of_them(tmp_path) -> None:
    known = {"coverage": 0.5, "tables": TableFingerprints("12ab", "34cd")}
    scores = InfluenceScores(np.eye(3, 2), "mine", "none", ("head.weight",), {"seed": 3}, **known)
    scores.save(tmp_path / "scores.safetensors")
    loaded = InfluenceScores.load(tmp_path / "scores.safetensors")
    np.testing.assert_array_equal(loaded.scores, scores.scores)
    assert (loaded.method, loaded.covers, loaded.provenance) == ("mine", ("head.weight",), {"seed": 3})
    assert (loaded.coverage, loaded.tables) == (0.5, known["tables"])
    about = {"method": "mine", "covers": []}
    earlier = {"format": "simfluence scores 1", "about": json.dumps(about)}
    save_file({"scores": np.eye(3, 2)}, tmp_path / "earlier.safetensors", earlier)
    assert InfluenceScores.load(tmp_path / "earlier.safetensors").tables == TableFingerprints("", "")
    (tmp_path / "scores.safetensors").write_bytes(b"torn")
    with pytest.raises(RunDataError, match="damaged"):
        InfluenceScores.load(tmp_path / "scores.safetensors")
    with pytest.raises(ValueError, match="training example 1 for test example 0 is nan"):
        InfluenceScores(np.array([[0.0], [np.nan]]), "bad")


# ------------------------------------------------------------------------- gradients of examples

LOOPED = {"t5"}  # its relative positions are shared by all examples


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equal_to_a_naive_loop(case: str, dtype: torch.dtype, error: float) -> None:
    """For every kind of model, whatever the batch size and so the padding."""
    objective, examples = CASES[case]()
    if case != "network":
        objective.module.to(dtype)
    expected = naive_gradients(objective, examples, selected_parameters(objective.module))
    for batch_size in (1, 2, 5):
        found = torch.cat(list(example_gradients(objective, examples, batch_size=batch_size)))
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= error * max(1, expected.abs().max())
    with tracer(objective, examples) as trace:
        assert trace.one_by_one == (case in LOOPED)
        assert not trace.direct


@pytest.mark.parametrize("case", CASES)
def test_leaves_no_trace_in_the_model(case: str) -> None:
    objective, examples = CASES[case]()
    module = objective.module.train()
    flags = [p.requires_grad for p in module.parameters()]
    modes = [m.training for m in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    some = [next(name for name, p in module.named_parameters())]  # maybe frozen
    for chosen in (None, some):
        list(example_gradients(objective, examples, parameters=chosen, batch_size=2))
    assert flags == [p.requires_grad for p in module.parameters()]
    assert modes == [m.training for m in module.modules()]
    assert all(p.grad is None for p in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(m._forward_hooks or m._backward_hooks for m in module.modules())


def test_only_of_the_parameters_that_were_chosen() -> None:
    model, examples = bert(tuning="lora"), texts(3)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        list(example_gradients(model, examples))
    for chosen in (["*lora_A*"], ["head"], ["encoder.embeddings.LayerNorm.bias", "head.weight"]):
        parameters = selected_parameters(model, chosen)
        found = torch.cat(list(example_gradients(model, examples, parameters=chosen)))
        for p in parameters.values():
            p.requires_grad_(True)
        assert torch.allclose(found, naive_gradients(model, examples, parameters), atol=1e-12)
        model.requires_grad_(False)
    assert set(selected_parameters(model, ["head"])) == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match=r"'heads'; there are .* in all"):
        selected_parameters(model, ["head", "heads"])
    with pytest.raises(ValueError, match=r"write \['head'\]"):
        selected_parameters(model, "head")


class Odd(nn.Module):
    """What no hook can see: a raw parameter, a weight used in two ways, an input changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.scale = nn.Linear(3, 3), nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.last = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.map(x).relu_()
        x = torch.nn.functional.linear(x, self.map.weight).mul_(self.scale)
        return self.last(self.map(x))


def test_what_hooks_cannot_see_is_differentiated_directly() -> None:
    torch.manual_seed(0)
    model = Odd().double()
    objective = LossesOnly(model, lambda examples: model(torch.stack([x for x, _ in examples]))[:, 0] ** 2)
    examples = points(4)
    expected = naive_gradients(objective, examples, dict(model.named_parameters()))
    found = torch.cat(list(example_gradients(objective, examples, batch_size=3)))
    assert torch.allclose(found, expected, atol=1e-12)
    with tracer(objective, examples) as trace:
        assert set(trace.direct) == {"scale", "map.weight"}


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.map(self.map(x).tanh())


def test_a_module_that_is_called_twice() -> None:
    torch.manual_seed(0)
    objective, examples = Regression(Twice().double()), [(x, x.flip(0)) for x, _ in points(5)]
    expected = naive_gradients(objective, examples, selected_parameters(objective.module))
    found = torch.cat(list(example_gradients(objective, examples, batch_size=3)))
    assert torch.allclose(found, expected, atol=1e-12)
    with tracer(objective, examples) as trace:
        assert not trace.direct
    factors = ekfac_factors(objective, examples, fisher="empirical")
    factor = factors.factors["map"]
    weights, biases = expected[:, :9].reshape(-1, 3, 3), expected[:, 9:, None]
    rotated = factor.out_basis.T @ torch.cat([weights, biases], 2) @ factor.in_basis
    assert torch.allclose(factor.eigenvalues, rotated.square().mean(0), atol=1e-12)
    assert factor.tokens == 2


def test_half_precision_is_summed_in_single() -> None:
    examples = points(4, dtype=torch.float16)
    half = network(dtype=torch.float16)
    found = torch.cat(list(example_gradients(half, examples)))
    same = network(dtype=torch.float32)
    same.module.load_state_dict(half.module.state_dict())
    expected = torch.cat(list(example_gradients(same, [(x.float(), y) for x, y in examples])))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=5e-3)
