"""The loss of each example is the model's own, whatever its head: against calls for single examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simfluence.recording.losses import model_loss

tf = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 32,
}  # fmt: skip
BART = {
    "vocab_size": 30, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32,
}  # fmt: skip


def sentence(length: int, draw: torch.Generator) -> list[int]:
    return torch.randint(4, 30, (length,), generator=draw).tolist()


def examples(labels: Any, *, lengths: tuple[int, ...] = (4, 4, 4, 4, 4)) -> list[dict[str, Any]]:
    """labels : (input ids, generator) → labels."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for length in lengths:
        ids = sentence(length, draw)
        found.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels(ids, draw)})
    return found


def padded(features: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A collator that pads labels with -100."""
    width = max(len(f["input_ids"]) for f in features)
    ends = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: torch.tensor([list(f[key]) + [end] * (width - len(f[key])) for f in features])
        for key, end in ends.items()
        if key in features[0]
    }


def tags(ids: list[int], draw: torch.Generator) -> list[int]:
    return [-100, *torch.randint(3, (len(ids) - 1,), generator=draw).tolist()]


def floats(count: int) -> Any:
    return lambda ids, draw: torch.randn(count, generator=draw).tolist()


RAGGED = (4, 2, 6, 3, 5)
CASES: dict[str, tuple[Any, Any, Any]] = {
    "token classification": (
        lambda: tf.BertForTokenClassification(tf.BertConfig(**SIZES, num_labels=3)),
        lambda: examples(tags, lengths=RAGGED),
        padded,
    ),
    "masked language model": (
        lambda: tf.BertForMaskedLM(tf.BertConfig(**SIZES)),
        lambda: examples(lambda ids, draw: [-100, *ids[1:]], lengths=RAGGED),
        padded,
    ),
    "causal language model": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
        lambda: examples(lambda ids, draw: ids, lengths=RAGGED),
        padded,
    ),
    "encoder-decoder": (
        lambda: tf.BartForConditionalGeneration(tf.BartConfig(**BART)),
        lambda: examples(lambda ids, draw: ids[::-1], lengths=RAGGED),
        padded,
    ),
    "classes": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=3)),
        lambda: examples(lambda ids, draw: ids[0] % 3),
        tf.default_data_collator,
    ),
    "choices": (
        lambda: tf.BertForMultipleChoice(tf.BertConfig(**SIZES)),
        lambda: [
            {"input_ids": [e["input_ids"], e["input_ids"][::-1]], "labels": e["input_ids"][0] % 2}
            for e in examples(lambda ids, draw: 0)
        ],
        tf.default_data_collator,
    ),
    "regression": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=1)),
        lambda: examples(lambda ids, draw: float(ids[0])),
        tf.default_data_collator,
    ),
    "regression of several numbers": (
        lambda: tf.BertForSequenceClassification(
            tf.BertConfig(**SIZES, num_labels=3, problem_type="regression")
        ),
        lambda: examples(floats(3)),
        tf.default_data_collator,
    ),
    "multi-label": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=3)),
        lambda: examples(lambda ids, draw: [float(i % 2) for i in ids[:3]]),
        tf.default_data_collator,
    ),
    "tuples": (
        lambda: tf.BertForTokenClassification(tf.BertConfig(**SIZES, num_labels=3, return_dict=False)),
        lambda: examples(tags, lengths=RAGGED),
        padded,
    ),
    "start and end of an answer": (
        lambda: tf.BertForQuestionAnswering(tf.BertConfig(**SIZES)),
        lambda: [
            {"input_ids": e["input_ids"], "start_positions": i % 3, "end_positions": 3}
            for i, e in enumerate(examples(lambda ids, draw: 0))
        ],
        tf.default_data_collator,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_models_own_loss(case: str) -> None:
    torch.manual_seed(0)
    make, rows, collate = CASES[case]
    model, data = make().eval(), rows()
    with torch.no_grad():
        found = model_loss(collate)(model, data)["loss"]
        own = []
        for row in data:
            output = model(**collate([dict(row)]))
            own.append(float(output[0] if isinstance(output, tuple) else output.loss))
    np.testing.assert_allclose(found, own, rtol=1e-4)
    assert len(set(own)) == len(own)


class Weighted(nn.Module):
    """A loss of its own: classes have weights."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(4, 3), 0

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        logits = self.head(input_ids.float())
        each = nn.functional.cross_entropy(logits, labels, reduction="none")
        return {"loss": (each * (1 + labels)).mean(), "logits": logits}


def test_a_loss_of_no_known_form_is_asked_for_example_by_example() -> None:
    torch.manual_seed(0)
    model, rows = Weighted(), examples(lambda ids, draw: ids[0] % 3)
    loss = model_loss(tf.default_data_collator)
    found = loss(model, rows)["loss"]
    batch = tf.default_data_collator([{k: r[k] for k in ("input_ids", "labels")} for r in rows])
    logits = model.head(batch["input_ids"].float())
    expected = (1 + batch["labels"]) * nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    torch.testing.assert_close(found, expected)
    assert found.requires_grad
    with pytest.raises(ValueError, match="loss of its own, without accuracy; pass loss="):
        model_loss(tf.default_data_collator, metrics=["accuracy"])(model, rows)


def test_the_model_is_asked_once_what_its_loss_is() -> None:
    class Plain(Weighted):
        def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
            self.calls += 1
            logits = self.head(input_ids.float())
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    model, rows = Plain(), examples(lambda ids, draw: ids[0] % 3)
    loss, state = model_loss(tf.default_data_collator, metrics=["accuracy", "margin"]), torch.get_rng_state()
    for _ in range(3):
        loss(model, rows)
    assert model.calls == 4 + 3
    assert torch.equal(state, torch.get_rng_state())


def test_what_is_needed_is_said() -> None:
    torch.manual_seed(0)
    bert = tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=3)).eval()
    loss = model_loss(tf.default_data_collator)
    with pytest.raises(ValueError, match=r"the label -1, which is no class; pass loss="):
        loss(bert, examples(lambda ids, draw: -1))
    with pytest.raises(ValueError, match=r"does not take .*out of bounds.*pass loss="):
        loss(bert, examples(lambda ids, draw: 3))
    with pytest.raises(ValueError, match="no target token"):
        loss(bert, examples(lambda ids, draw: -100))
    with pytest.raises(ValueError, match=r"no 'labels' and the model returned no loss; pass loss="):
        loss(bert, [{"input_ids": [4, 5]}])
    numbers = tf.BertForSequenceClassification(tf.BertConfig(**SIZES, num_labels=1)).eval()
    with pytest.raises(ValueError, match="accuracy is of classes, and the model predicts numbers"):
        model_loss(tf.default_data_collator, metrics=["accuracy"])(numbers, examples(lambda ids, draw: 0.5))

    class Logits(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.head = nn.Linear(1, int(np.prod(shape)))
            self.shape = shape

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.head(input_ids[:, :1].float()).reshape(-1, *self.shape)

    rows = examples(lambda ids, draw: ids[0] % 3)
    assert loss(Logits((3,)), rows)["loss"].shape == (5,)
    with pytest.raises(ValueError, match=r"may be meant in several ways .*pass loss="):
        loss(Logits((4, 30)), examples(lambda ids, draw: ids))
