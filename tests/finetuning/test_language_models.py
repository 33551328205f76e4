"""Language models: likelihoods against a naive loop, over tiny random GPT-2 and T5."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from simfluence import RunSet
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.language_models import LanguageModel
from simfluence.finetuning.models import load_model
from simfluence.finetuning.tasks import Task, TextExample, make_facts
from simfluence.finetuning.tunings import apply_tuning

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("peft") is None, reason="needs the extra 'text'"
)

KINDS = ("causal", "seq2seq")


@pytest.fixture(scope="module")
def task() -> Task:
    return Task("facts", "choice", *make_facts(6, paraphrases=3))


@pytest.fixture(scope="module")
def checkpoints(task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny random GPT-2 and T5 with a word tokenizer, as folders."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    texts = [text for e in (*task.train, *task.test) for pair in e.inputs for text in pair]
    words = sorted({word for text in texts for word in text.replace("?", " ?").split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    found = {}
    for kind in KINDS:
        torch.manual_seed(0)
        if kind == "causal":
            config = transformers.GPT2Config(
                vocab_size=len(vocabulary), n_positions=64, n_embd=16, n_layer=3, n_head=2,
                bos_token_id=1, eos_token_id=1,
            )  # fmt: skip
            model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.T5Config(
                vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                decoder_start_token_id=0,
            )  # fmt: skip
            model = transformers.T5ForConditionalGeneration(config)
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if kind == "seq2seq":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", 1)]
            )
        folder: Path = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ).save_pretrained(folder)
        found[kind] = str(folder)
    return found


def load(checkpoints: dict[str, str], kind: str, task: Task, **options) -> LanguageModel:
    model = load_model(checkpoints[kind], task, dropout=0.0, **options)
    assert isinstance(model, LanguageModel)
    assert model.seq2seq == (kind == "seq2seq")
    return model


def naive(model: LanguageModel, prompt: str, choice: str, per_token: bool) -> float:
    """The likelihood of a choice, a token and a forward pass at a time."""
    before, after = model._tokenizer(prompt)["input_ids"], model._tokenizer(choice)["input_ids"]
    total = 0.0
    for t, token in enumerate(after):
        if model.seq2seq:
            output = model.lm(
                input_ids=torch.tensor([before]), decoder_input_ids=torch.tensor([[0, *after[:t]]])
            )
        else:
            output = model.lm(input_ids=torch.tensor([[*before, *after[:t]]]))
        total += float(output.logits[0, -1].log_softmax(0)[token])
    return total / len(after) if per_token else total


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_likelihoods_of_choices(checkpoints, task, kind, per_token) -> None:
    model = load(checkpoints, kind, task, per_token=per_token).eval()
    uneven = TextExample(task.train[3].id, "", task.train[0].inputs[:3], 2)  # an id of both tables
    examples = [uneven, *task.train[3:6]]
    with torch.no_grad():
        scores = model(examples)
        losses = model.losses(examples)
        expected = torch.full((4, 4), -torch.inf)
        for row, example in enumerate(examples):
            for column, choice in enumerate(example.inputs):
                expected[row, column] = naive(model, *choice, per_token)
    torch.testing.assert_close(scores, expected)
    gold = torch.tensor([example.label for example in examples])
    torch.testing.assert_close(losses, -expected[torch.arange(4), gold])
    assert model.length(task.train[0]) >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("full", {}),
        ("last_layers", {"layers": 1}),
        ("lora", {"rank": 2, "alpha": 4}),
        ("lora", {"rank": 2, "alpha": 4, "layers": 1}),
        ("ia3", {}),
    ],
)
def test_tunings_learn_and_leave_the_rest(checkpoints, task, kind, name, options) -> None:
    model = load(checkpoints, kind, task)
    before = copy.deepcopy(model).eval()
    trained = apply_tuning(model, name, **options)
    examples = task.train[:4]
    with torch.no_grad():
        first = before.losses(examples).mean()
        torch.testing.assert_close(model.eval().losses(examples).mean(), first)
    state = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(trained, lr=0.01)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.losses(examples).mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < first.item()
    tuned = {key for key, value in model.named_parameters(remove_duplicate=False) if value.requires_grad}
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    assert moved <= tuned
    assert moved
    if options.get("layers"):
        stack = "decoder.block" if kind == "seq2seq" else "transformer.h"
        last = f"{stack}.{len(model.layers) - 1}."
        assert all(last in key for key in moved if stack in key)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_scored_as_words(checkpoints, task, kind) -> None:
    pair = TextExample("pair", "", (("the old mill", "the castle"),), 1)
    model = load(checkpoints, kind, task, class_words=["harbour", "painter"]).eval()
    choices = TextExample("choices", "", tuple(("the old mill the castle", w) for w in model.class_words), 1)
    torch.testing.assert_close(model([pair]), model([choices]))
    with pytest.raises(ValueError, match="class_words"):
        load(checkpoints, kind, task).losses([pair])
    with pytest.raises(ValueError, match="no head"):
        apply_tuning(model, "head_only")


def test_long_prompts_lose_their_beginning_and_empty_ones_start_somewhere(checkpoints, task) -> None:
    long = TextExample("long", "", (("the old mill " * 9, "a baker"), ("", "a sailor")), 0)
    model = load(checkpoints, "causal", task, max_length=6).eval()
    cut, started = model._token_ids(long)
    assert (len(cut[0]), len(started[0])) == (6, 3)
    assert torch.isfinite(model([long])).all()


@pytest.mark.parametrize(
    "tuning",
    [{"name": "full"}, {"name": "lora", "rank": 2, "alpha": 4, "dropout": 0.1}],
    ids=["full", "lora"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model_is_recorded(
    checkpoints: dict[str, str], kind: str, tuning: dict, tmp_path: Path
) -> None:
    """A whole run: losses before the first step and after each, with the accuracy beside them."""
    config = {
        "task": {"source": "facts", "n_train": 12, "n_test": 4, "seed": 0},
        "model": {"name": checkpoints[kind], "dropout": 0.0},
        "tuning": tuning,
        "run": {
            "seed": 0,
            "design": {"name": "random_subset", "size": 8, "epochs": 1, "batch_size": 4},
            "optimizer": {"name": "adamw", "lr": 1e-2},
            "metrics": ["accuracy"],
        },
    }
    record_runs(config, tmp_path, count=1, progress=False)
    run = RunSet.load(tmp_path)[0]
    assert run.loss.shape == (3, 4)
    assert (run.loss[0] != run.loss[-1]).all()
    assert set(np.unique(run.metrics["accuracy"])) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_representations_are_means_over_the_right_answers_tokens(checkpoints, task, kind) -> None:
    """The last hidden states, through the output map, are the logits."""
    model = load(checkpoints, kind, task).eval()
    examples = task.train[:4]
    with torch.no_grad():
        found = model.representations(examples)
        for example, row in zip(examples, found, strict=True):
            torch.testing.assert_close(model.representations([example])[0], row)
            ids = model._right_answers([example])[0][kind == "seq2seq"]
            kwargs = {}
            if kind == "seq2seq":
                ids = torch.cat([torch.zeros(1, dtype=ids.dtype), ids[:-1]])
                kwargs["input_ids"] = model._right_answers([example])[0][0][None]
                output = model.lm(decoder_input_ids=ids[None], output_hidden_states=True, **kwargs)
                expected = output.decoder_hidden_states[-1][0].mean(0)
            else:
                expected = model.lm(ids[None], output_hidden_states=True).hidden_states[-1][0].mean(0)
            torch.testing.assert_close(row, expected)
