"""TRL's SFTTrainer: the recorded ids against the texts that the model was given."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="TRL is not installed: pip install --no-deps trl")
datasets = pytest.importorskip("datasets")

from peft import LoraConfig  # noqa: E402
from tiny_chat import CHATML, save_model  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

from simfluence.errors import RecordingError, RunDataError  # noqa: E402
from simfluence.recording import RunRecorder  # noqa: E402
from simfluence.recording.packing import packed_ids  # noqa: E402
from simfluence.recording.trainer import record_trainer  # noqa: E402
from simfluence.runs import RunSet  # noqa: E402
from simfluence.scores import INITIAL_SCORES, InfluenceScores  # noqa: E402

N, LENGTH = 14, 24
LETTERS = "ABCDEFGHIJKLMN"  # no other text, such as templates, has these
SIZES = np.random.default_rng(0).integers(3, 20, N)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def rows(form: str) -> list[dict]:
    """Each example is written in a letter of its own."""
    texts = [letter * int(size) for letter, size in zip(LETTERS, SIZES, strict=True)]
    made = {
        "text": lambda text: {"text": text},
        "completion": lambda text: {"prompt": "?" + text[:2], "completion": text},
        "chat": lambda text: {
            "prompt": [{"role": "user", "content": "?"}],
            "completion": [{"role": "assistant", "content": text}],
        },
    }[form]
    return [{"id": f"x-{letter}", **made(text)} for letter, text in zip(LETTERS, texts, strict=True)]


def letters_in(text: str) -> list[str]:
    """The examples in a text, in the order in which their letters occur."""
    return [f"x-{letter}" for letter in dict.fromkeys(text) if letter in LETTERS]


def letters_at_edges(text: str) -> list[str]:
    """The same, of a text that may begin with another example's end token, or end with a first "?"."""
    found = [letter for letter in dict.fromkeys(text) if letter in LETTERS]
    if text.startswith("</s>"):
        found.insert(0, chr(ord(found[0]) - 1))
    if text.replace("<pad>", "").endswith("?"):
        found.append(chr(ord(found[-1]) + 1))
    return [f"x-{letter}" for letter in found]


HALVES = {"per_device_train_batch_size": 7}
"""So that two batches are an epoch."""


class Seen:
    """The texts that the model was given in training, batch by batch."""

    def __init__(self, model: torch.nn.Module, tokenizer) -> None:
        self.batches: list[list[str]] = []
        self._tokenizer = tokenizer
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module, args, kwargs):
        if module.training:
            self.batches.append(self._tokenizer.batch_decode(kwargs["input_ids"]))

    def ids(self, accumulated: int = 1, of_text=letters_in) -> list[list[str]]:
        """The examples of each step."""
        starts = range(0, len(self.batches), accumulated)
        steps = [chain(*self.batches[start : start + accumulated]) for start in starts]
        return [[example for text in step for example in of_text(text)] for step in steps]


def new_trainer(
    tmp_path, form: str, *, stream: bool = False, lora: bool = False, ids: bool = True, **options
) -> tuple[SFTTrainer, Seen]:
    folder = save_model(tmp_path / "model", "llama", template=CHATML)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    dataset = datasets.Dataset.from_list(rows(form))
    if not ids:
        dataset = dataset.remove_columns("id")
    options = {
        "max_steps": 4, "per_device_train_batch_size": 3, "learning_rate": 1e-2, "report_to": "none",
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False, "logging_steps": 100,
        "max_length": LENGTH if form != "chat" else 128, "gradient_checkpointing": False,
    } | options  # fmt: skip
    trainer = SFTTrainer(
        model,
        args=SFTConfig(output_dir=str(tmp_path / "out"), eval_packing=False, **options),
        train_dataset=dataset.to_iterable_dataset() if stream else dataset,
        eval_dataset=datasets.Dataset.from_list(rows(form)[:5]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]) if lora else None,
    )
    return trainer, Seen(trainer.model, tokenizer)


def new_recorder(tmp_path, trainer, form: str) -> RunRecorder:
    return RunRecorder(tmp_path / "set", train=rows(form), test=trainer.eval_dataset, batch_size=2)


def recorded_ids(tmp_path) -> list[list[str]]:
    runs = RunSet.load(tmp_path / "set")
    assert (runs[0].status, len(runs[0])) == ("complete", 4)
    return [[runs.train.ids[row] for row in batch] for batch in runs[0].curriculum]


def check_last_losses(tmp_path, trainer) -> None:
    """The last losses are those of the trained model, on the labels, an example at a time."""
    run, model = RunSet.load(tmp_path / "set")[0], trainer.model.eval()
    for z, example in enumerate(trainer.eval_dataset):
        ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            expected = model(input_ids=ids, labels=labels).loss.item()
        assert run.loss[-1, z] == pytest.approx(expected, rel=1e-4)


def weights(trainer) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("text", {}),
        ("text", {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, **HALVES}),
        ("text", {"padding_free": True, "max_length": None}),
        ("completion", {"completion_only_loss": True, "shuffle_dataset": True}),
        ("completion", {"padding_free": True, "max_length": None}),
        ("completion", {"bf16": True}),
        ("chat", {}),
        ("chat", {"lora": True}),
        ("chat", {"lora": True, "bf16": True, "gradient_checkpointing": True}),
    ],
)
def test_rows_of_single_examples(tmp_path, form, options) -> None:
    bare, _ = new_trainer(tmp_path / "bare", form, **options)
    bare.train()
    trainer, seen = new_trainer(tmp_path, form, **options)
    record_trainer(trainer, new_recorder(tmp_path, trainer, form), "seed-0")
    trainer.train()
    assert weights(trainer) == weights(bare)
    assert recorded_ids(tmp_path) == seen.ids(options.get("gradient_accumulation_steps", 1))
    check_last_losses(tmp_path, trainer)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize("form", ["text", "completion"])
def test_packed_rows(tmp_path, form, strategy) -> None:
    options = {"packing": True, "packing_strategy": strategy, "per_device_train_batch_size": 2}
    options["max_length"] = 12 if strategy == "bfd_split" else LENGTH
    options["shuffle_dataset"] = strategy != "wrapped"
    trainer, seen = new_trainer(tmp_path, form, **options)
    dataset, recorder = datasets.Dataset.from_list(rows(form)), new_recorder(tmp_path, trainer, form)
    with pytest.raises(RunDataError, match=r"packs several examples into a row.*packed_ids"):
        record_trainer(trainer, recorder, "seed-0")
    held = packed_ids(trainer, dataset)
    assert len(held) == len(trainer.train_dataset)
    assert {example for row in held for example in row} == {row["id"] for row in rows(form)}
    record_trainer(trainer, recorder, "seed-0", example_ids=held)
    trainer.train()
    found = recorded_ids(tmp_path)
    assert any(len(batch) > 2 for batch in found)
    if strategy == "bfd_split":  # two rows of a batch may have a piece of one example each
        found = [list(dict.fromkeys(batch)) for batch in found]
    assert found == seen.ids(of_text=letters_at_edges if strategy == "wrapped" else letters_in)
    check_last_losses(tmp_path, trainer)


def test_packing_that_cannot_be_followed_is_refused(tmp_path) -> None:
    dataset = datasets.Dataset.from_list(rows("text"))
    single, _ = new_trainer(tmp_path, "text")
    with pytest.raises(ValueError, match="does not pack"):
        packed_ids(single, dataset)
    packing = {"packing": True, "packing_strategy": "bfd"}
    packed, _ = new_trainer(tmp_path, "text", **packing)
    with pytest.raises(RunDataError, match="not made of these examples"):
        packed_ids(packed, dataset.select(range(9)))
    with pytest.raises(RunDataError, match="no column 'name'"):
        packed_ids(packed, dataset, "name")
    cut, _ = new_trainer(tmp_path, "text", packing=True, packing_strategy="wrapped", shuffle_dataset=True)
    with pytest.raises(ValueError, match="cuts rows out of a shuffled stream"):
        packed_ids(cut, dataset)


def test_a_stream_whose_examples_have_ids(tmp_path) -> None:
    trainer, seen = new_trainer(tmp_path, "text", stream=True)
    record_trainer(trainer, new_recorder(tmp_path, trainer, "text"), "seed-0")
    trainer.train()
    assert recorded_ids(tmp_path) == seen.ids()
    check_last_losses(tmp_path, trainer)


def test_a_stream_without_ids_is_refused(tmp_path) -> None:
    trainer, _ = new_trainer(tmp_path, "text", stream=True)
    recorder = new_recorder(tmp_path, trainer, "text")
    record_trainer(trainer, recorder, "seed-0", example_ids="number")
    with pytest.raises(RecordingError, match="no field 'number'"):
        trainer.train()


def test_scores_before_training(tmp_path) -> None:
    trainer, _ = new_trainer(tmp_path, "completion")
    record_trainer(trainer, new_recorder(tmp_path, trainer, "completion"), "seed-0", scores=True)
    trainer.train()
    scores = InfluenceScores.load(tmp_path / "set" / INITIAL_SCORES)
    assert scores.scores.shape == (N, 5)
    assert (np.diag(scores.scores[:5]) > 0).all()  # each test example was trained on


def stream_recorder(tmp_path, trainer) -> RunRecorder:
    return RunRecorder(tmp_path / "set", train="stream", test=trainer.eval_dataset, batch_size=2)


def recorded_texts(tmp_path, tokenizer) -> list[list[str]]:
    """The examples of each step, known by the letters in their texts."""
    runs = RunSet.load(tmp_path / "set")
    assert (runs[0].status, len(runs[0])) == ("complete", 4)
    texts = runs.train.frame["text"].tolist()
    return [[letters_in(texts[row])[0] for row in batch] for batch in runs[0].curriculum]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("text", {}),
        ("text", {"dataloader_num_workers": 1}),
        ("completion", {"gradient_accumulation_steps": 2, **HALVES}),
        ("chat", {}),
    ],
)
def test_a_stream_without_ids_is_known_by_content(tmp_path, form, options) -> None:
    bare, _ = new_trainer(tmp_path / "bare", form, stream=True, ids=False, **options)
    bare.train()
    trainer, seen = new_trainer(tmp_path, form, stream=True, ids=False, **options)
    record_trainer(trainer, stream_recorder(tmp_path, trainer), "seed-0")
    trainer.train()
    assert weights(trainer) == weights(bare)
    steps = seen.ids(options.get("gradient_accumulation_steps", 1))
    assert recorded_texts(tmp_path, trainer.processing_class) == steps
    assert len(RunSet.load(tmp_path / "set").train) == len({one for batch in steps for one in batch})
    check_last_losses(tmp_path, trainer)


def test_a_packed_stream_is_known_by_the_tokens_of_each_example(tmp_path) -> None:
    options = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 2}
    trainer, seen = new_trainer(tmp_path, "text", stream=True, ids=False, **options)
    record_trainer(trainer, stream_recorder(tmp_path, trainer), "seed-0")
    trainer.train()
    runs = RunSet.load(tmp_path / "set")
    steps = seen.ids()
    assert any(len(batch) > 2 for batch in steps)
    letters: dict[int, str] = {}  # row → letter, the same wherever the row is consumed
    for rows_of_step, expected in zip(runs[0].curriculum, steps, strict=True):
        for row, letter in zip(rows_of_step.tolist(), expected, strict=True):
            assert letters.setdefault(row, letter) == letter
    assert len(set(letters.values())) == len(letters) == len(runs.train)


def test_packed_rows_without_spans_are_refused(tmp_path) -> None:
    options = {"packing": True, "packing_strategy": "wrapped"}
    trainer, _ = new_trainer(tmp_path, "text", stream=True, ids=False, **options)
    record_trainer(trainer, stream_recorder(tmp_path, trainer), "seed-0")
    with pytest.raises(RecordingError, match="do not say which examples are in them"):
        trainer.train()
