"""transformers.Trainer: encoders with a head, causal and sequence-to-sequence language models."""

from __future__ import annotations

import contextlib
from itertools import chain

import numpy as np
import pytest
import torch
from torch.nn import functional

pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from simfluence.attribution import LossesOnly, adam_similarity  # noqa: E402
from simfluence.errors import RecordingError, RunDataError, RunExistsError  # noqa: E402
from simfluence.recording import RunRecorder, UntrainedStepWarning, weight_steps  # noqa: E402
from simfluence.recording.fingerprint import weights_fingerprint  # noqa: E402
from simfluence.recording.losses import model_loss, token_metrics  # noqa: E402
from simfluence.recording.trainer import NoScoresWarning, RowOrderWarning, record_trainer  # noqa: E402
from simfluence.runs import RunSet, storage  # noqa: E402
from simfluence.runs.content import content_hash  # noqa: E402
from simfluence.scores import INITIAL_SCORES, InfluenceScores  # noqa: E402
from simfluence.simulators import AutoSimulator  # noqa: E402

VOCABULARY = 30
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def features(n: int, seed: int, kind: str) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        tokens = rng.integers(3, VOCABULARY, rng.integers(3, 8)).tolist()
        target = rng.integers(3, VOCABULARY, rng.integers(2, 5)).tolist()
        labels = {"bert": int(rng.integers(2)), "gpt2": [-100, *tokens[1:]], "t5": target}[kind]
        rows.append({"id": f"{seed}-{i}", "input_ids": tokens, "labels": labels, "comment": "not a feature"})
    return rows


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    def pad(rows, filler):
        width = max(map(len, rows))
        return torch.tensor([row + [filler] * (width - len(row)) for row in rows])

    batch = {
        "input_ids": pad([e["input_ids"] for e in examples], 0),
        "attention_mask": pad([[1] * len(e["input_ids"]) for e in examples], 0),
    }
    labels = [e["labels"] for e in examples]
    batch["labels"] = pad(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels)
    return batch


def new_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **sizes))
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        )
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
                 decoder_start_token_id=0)
    )  # fmt: skip


def new_trainer(tmp_path, kind="bert", train=None, callbacks=(), **arguments) -> Trainer:
    model = new_model(kind)
    arguments = {
        "per_device_train_batch_size": 4,
        "max_steps": 5,
        "report_to": "none",
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 100,
    } | arguments
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path / "trainer"), **arguments),
        train_dataset=datasets.Dataset.from_list(features(12, 0, kind)) if train is None else train,
        data_collator=collate,
        callbacks=list(callbacks),
    )


def new_recorder(tmp_path, kind="bert") -> RunRecorder:
    return RunRecorder(tmp_path / "set", train=features(12, 0, kind), test=features(5, 1, kind), batch_size=2)


def weights(trainer) -> bytes:
    return b"".join(p.detach().cpu().numpy().tobytes() for p in trainer.model.parameters())


class Batches(TrainerCallback):
    """What the model was given, seen from the collator's side: the independent truth."""

    def __init__(self):
        self.micro_batches = []

    def __call__(self, examples):
        self.micro_batches.append([e["input_ids"] for e in examples])
        return collate(examples)


def test_old_names_of_options_are_answered_with_the_new_ones(tmp_path):
    trainer = new_trainer(tmp_path, "bert")
    with pytest.raises(TypeError, match="'checkpoint_every' is now named 'resume_every'"):
        record_trainer(trainer, new_recorder(tmp_path, "bert"), "seed-0", checkpoint_every=1)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_trainer_is_recorded_and_trains_to_the_same_bits(tmp_path, kind, accumulation):
    bare = new_trainer(tmp_path, kind, gradient_accumulation_steps=accumulation)
    seen = Batches()
    bare.data_collator = seen
    bare.train()
    trainer = new_trainer(tmp_path, kind, gradient_accumulation_steps=accumulation)
    record_trainer(trainer, new_recorder(tmp_path, kind), "seed-0", keep_weights=1)
    trainer.train()
    assert weights(trainer) == weights(bare)

    run = RunSet.load(tmp_path / "set")[0]
    assert (run.status, len(run), run.loss.shape) == ("complete", 5, (6, 5))
    assert run.initial_weights == weights_fingerprint(new_model(kind))
    tokens = {tuple(e["input_ids"]): i for i, e in enumerate(features(12, 0, kind))}
    consumed = [[tokens[tuple(row)] for row in rows] for rows in seen.micro_batches]
    # an epoch is three micro-batches: so many make up one step
    starts = range(0, len(consumed), accumulation)
    expected = [list(chain(*consumed[i : i + accumulation])) for i in starts]
    assert [batch.tolist() for batch in run.curriculum] == expected[:5]  # one more was fetched ahead
    assert run.learning_rate[0] == 1e-2
    np.testing.assert_allclose(run.learning_rate, 1e-2 * (1 - np.arange(5) / 5))
    assert np.isfinite(run.train_loss).all()
    assert run.optimizer["class"] == "AdamW"
    assert weight_steps(tmp_path / "set" / "seed-0") == [5]
    # the last losses are those of the trained model, one example at a time
    for z, example in enumerate(features(5, 1, kind)):
        with torch.no_grad():
            expected_loss = trainer.model.eval()(**collate([example])).loss.item()
        assert run.loss[-1, z] == pytest.approx(expected_loss, rel=1e-4)


@pytest.mark.parametrize("train", ["list", "no ids", "given ids", "shuffled"])
def test_ids_are_found_wherever_they_are(tmp_path, train):
    rows = features(12, 0, "bert")
    options = {}
    if train == "no ids":
        rows = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    elif train == "given ids":
        options["example_ids"] = [row.pop("id") for row in rows][::-1]
    elif train == "shuffled":
        rows = rows[::-1]
    trainer = new_trainer(tmp_path, train=rows, max_steps=3, remove_unused_columns=train != "no ids")
    in_order = pytest.warns(RowOrderWarning, match="no column 'id'.*in their order")
    with in_order if train == "no ids" else contextlib.nullcontext():
        record_trainer(trainer, new_recorder(tmp_path), "seed-0", evaluate_every=3, **options)
    trainer.train()
    curriculum = RunSet.load(tmp_path / "set")[0].curriculum
    assert sorted(curriculum.examples) == list(range(12))


def test_workers_and_length_groups(tmp_path):
    trainer = new_trainer(
        tmp_path, max_steps=3, dataloader_num_workers=1, train_sampling_strategy="group_by_length"
    )
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", evaluate_every=3)
    trainer.train()
    assert sorted(RunSet.load(tmp_path / "set")[0].curriculum.examples) == list(range(12))


def test_resuming_from_the_trainers_checkpoint(tmp_path):
    whole = new_trainer(tmp_path, max_steps=8, save_strategy="steps", save_steps=3)
    record_trainer(whole, new_recorder(tmp_path / "whole"), "seed-0")
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    arguments = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    cut = new_trainer(tmp_path / "cut", callbacks=[Stop()], **arguments)
    record_trainer(cut, new_recorder(tmp_path / "cut"), "seed-0")
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    folder = tmp_path / "cut" / "set" / "seed-0"
    assert storage.status(folder) == "interrupted"
    again = new_trainer(tmp_path / "cut", **arguments)
    record_trainer(again, new_recorder(tmp_path / "cut"), "seed-0")
    again.train(resume_from_checkpoint=True)
    assert storage.read_manifest(folder)["resumed_at"] == [3]
    assert weights(again) == weights(whole)
    assert (folder / "steps.parquet").read_bytes() == (
        tmp_path / "whole" / "set" / "seed-0" / "steps.parquet"
    ).read_bytes()


def test_errors_and_reports(tmp_path):
    class Fail(TrainerCallback):
        reported: list = []  # noqa: RUF012

        def on_log(self, args, state, control, logs, **kwargs):
            self.reported.append(dict(logs))

        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("something in the user's code")

    trainer = new_trainer(tmp_path, callbacks=[Fail()])
    record_trainer(trainer, new_recorder(tmp_path), "seed-0")
    with pytest.raises(RuntimeError, match="the user's code"):
        trainer.train()
    assert storage.status(tmp_path / "set" / "seed-0") == "failed"

    trainer = new_trainer(tmp_path, train=features(13, 0, "bert"))
    with pytest.raises(RunDataError, match="'0-12' is not in the table of 12"):
        record_trainer(trainer, new_recorder(tmp_path), "seed-1")
    with pytest.raises(RunDataError, match="has 13 rows, but there are 2 ids"):
        record_trainer(trainer, new_recorder(tmp_path), "seed-1", example_ids=["0-1", "0-2"])
    unnamed = datasets.Dataset.from_list(features(3, 0, "bert")).remove_columns("id")
    trainer.train_dataset = unnamed.to_iterable_dataset()
    with pytest.raises(RecordingError, match="streamed training set have no row numbers"):
        record_trainer(trainer, new_recorder(tmp_path), "seed-1")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_followed_by_its_ids(tmp_path, workers):
    rows = datasets.Dataset.from_list(features(12, 0, "bert"))

    def stream(folder):
        shuffled = rows.to_iterable_dataset().shuffle(seed=1, buffer_size=5)
        return new_trainer(folder, train=shuffled, max_steps=3, dataloader_num_workers=workers)

    bare, seen = stream(tmp_path / "bare"), Batches()
    bare.data_collator = seen
    bare.train()
    trainer = stream(tmp_path)
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", evaluate_every=3)
    trainer.train()
    assert weights(trainer) == weights(bare)
    found = [batch.tolist() for batch in RunSet.load(tmp_path / "set")[0].curriculum]
    assert sorted(chain(*found)) == list(range(12))
    if workers == 0:  # else the collator is in another process
        number = {tuple(e["input_ids"]): i for i, e in enumerate(features(12, 0, "bert"))}
        assert found == [[number[tuple(row)] for row in batch] for batch in seen.micro_batches[:3]]


class Lines(torch.utils.data.IterableDataset):
    """A stream of torch's own, whose rows have no ids."""

    def __iter__(self):
        for row in features(12, 0, "gpt2"):
            yield {name: row[name] for name in ("input_ids", "labels")}


def test_a_stream_is_known_by_the_content_of_its_rows(tmp_path):
    trainer = new_trainer(tmp_path, "gpt2", train=Lines(), max_steps=6)
    recorder = RunRecorder(tmp_path / "set", train="stream", test=features(5, 1, "gpt2"), batch_size=2)
    with pytest.raises(RecordingError, match="names a field of the training set's rows; got a list of ids"):
        record_trainer(trainer, recorder, "seed-0", example_ids=["0-0"])
    record_trainer(trainer, recorder, "seed-0", evaluate_subset=2)
    trainer.train()
    runs = RunSet.load(tmp_path / "set")
    assert [batch.tolist() for batch in runs[0].curriculum] == 2 * [[*range(i, i + 4)] for i in (0, 4, 8)]
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in features(12, 0, "gpt2")]
    assert runs.train.ids == runs.train.frame["hash"].tolist() == [content_hash(row) for row in rows]
    assert np.isfinite(runs[0].loss).sum(1).tolist() == [5, 2, 2, 1, 2, 2, 5]


def test_a_stream_that_is_dispatched_is_refused(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path, "gpt2", train=Lines())
    recorder = RunRecorder(tmp_path / "set", train="stream", test=features(5, 1, "gpt2"))
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(RecordingError, match="'dispatch_batches': False"):
        record_trainer(trainer, recorder, "seed-0")


@pytest.mark.filterwarnings("ignore::simfluence.recording.FewEvaluationsWarning")
def test_evaluations_within_a_budget(tmp_path):
    trainer = new_trainer(tmp_path, max_steps=30)
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", evaluate_within=0.2)
    trainer.train()
    evaluated = RunSet.load(tmp_path / "set")[0].evaluated.tolist()
    assert evaluated[0] == 0
    assert evaluated[-1] == 30


def test_a_row_may_hold_several_examples(tmp_path):
    rows = features(6, 0, "bert")
    held = [["0-0", "0-1"], ["0-2"], ["0-3", "0-4", "0-5"], ["0-6", "0-7"], ["0-8"], ["0-9", "0-10", "0-11"]]
    trainer = new_trainer(tmp_path, train=rows, max_steps=2, per_device_train_batch_size=3)
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", example_ids=held)
    trainer.train()
    curriculum = RunSet.load(tmp_path / "set")[0].curriculum
    assert sorted(chain(*(batch.tolist() for batch in curriculum))) == list(range(12))


def test_examples_laid_end_to_end_are_evaluated_one_by_one(tmp_path):
    """As a padding-free collator lays them."""

    def end_to_end(examples):
        ids = [token for e in examples for token in e["input_ids"]]
        starts = [position for e in examples for position in range(len(e["input_ids"]))]
        labels = [label for e in examples for label in e["labels"]]
        return {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([starts]),
                "labels": torch.tensor([labels])}  # fmt: skip

    model, examples = new_model("gpt2").eval(), features(5, 1, "gpt2")
    with torch.no_grad():
        found = model_loss(end_to_end, metrics=["accuracy"])(model, examples)
        expected = model_loss(collate, metrics=["accuracy"])(model, examples)
    for name in ("loss", "accuracy"):
        torch.testing.assert_close(found[name], expected[name])


def test_a_trainer_that_is_recorded_twice_is_told_so(tmp_path):
    """As when a notebook's cell is run again."""
    trainer = new_trainer(tmp_path, max_steps=2)
    recorder = new_recorder(tmp_path)
    record_trainer(trainer, recorder, "seed-0")
    with pytest.raises(RecordingError, match="recorded already, as run 'seed-0'"):
        record_trainer(trainer, recorder, "seed-1")
    trainer.train()
    with pytest.raises(RunExistsError, match="'seed-0' is recorded already"):
        trainer.train()
    assert len(RunSet.load(tmp_path / "set")[0]) == 2


def test_a_training_that_stops_early_is_complete(tmp_path):
    class Enough(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    trainer = new_trainer(tmp_path, callbacks=[Enough()])
    record_trainer(trainer, new_recorder(tmp_path), "seed-0")
    trainer.train()
    run = RunSet.load(tmp_path / "set")[0]
    assert (run.status, len(run)) == ("complete", 2)


def test_a_step_that_the_optimizer_skips(tmp_path):
    """As under fp16, where a gradient scaler finds infinities: the trainer counts the step all the same."""

    class Skips(torch.optim.SGD):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            if self.calls == 2:
                self.found_inf = torch.ones(1)
                return
            self.found_inf = None
            super().step(closure)

    trainer = new_trainer(tmp_path, max_steps=4)
    trainer.optimizer = Skips(trainer.model.parameters(), lr=0.1)
    record_trainer(trainer, new_recorder(tmp_path), "seed-0")
    with pytest.warns(UntrainedStepWarning, match="in step 2"):
        trainer.train()
    assert trainer.state.global_step == 4
    run = RunSet.load(tmp_path / "set")[0]
    assert run.evaluated.tolist() == [0, 1, 2, 3]
    assert (run.learning_rate > 0).all()


def test_metrics_beside_the_loss_against_a_naive_loop(tmp_path):
    torch.manual_seed(0)
    logits, labels = (
        torch.randn(3, 4, 7),
        torch.tensor([[1, 2, -100, 3], [-100, 0, 0, 0], [6, -100, -100, -100]]),
    )
    found = token_metrics(logits, labels)
    for b in range(3):
        tokens = [t for t in range(4) if labels[b, t] != -100]
        losses = [functional.cross_entropy(logits[b, t], labels[b, t]).item() for t in tokens]
        assert found["loss"][b].item() == pytest.approx(np.mean(losses), rel=1e-5)
        hits = [logits[b, t].argmax() == labels[b, t] for t in tokens]
        assert found["accuracy"][b].item() == pytest.approx(np.mean(hits))
        margins = [
            logits[b, t, labels[b, t]] - max(x for v, x in enumerate(logits[b, t]) if v != labels[b, t])
            for t in tokens
        ]
        assert found["margin"][b].item() == pytest.approx(np.mean(margins), rel=1e-5)
    with pytest.raises(ValueError, match="no target token"):
        token_metrics(logits, torch.full((3, 4), -100))

    trainer = new_trainer(tmp_path, max_steps=2)
    loss = model_loss(collate, metrics=["accuracy", "margin"])
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", loss=loss)
    trainer.train()
    metrics = RunSet.load(tmp_path / "set")[0].metrics
    assert sorted(metrics) == ["accuracy", "loss", "margin"]
    np.testing.assert_array_equal(metrics["accuracy"], metrics["margin"] > 0)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_scores_before_training_are_kept_and_training_stays_the_same_bits(tmp_path, kind):
    bare = new_trainer(tmp_path, kind, gradient_accumulation_steps=2)
    bare.train()
    trainer = new_trainer(tmp_path, kind, gradient_accumulation_steps=2)
    record_trainer(trainer, new_recorder(tmp_path, kind), "seed-0", scores=True)
    trainer.train()
    assert weights(trainer) == weights(bare)

    scores = InfluenceScores.load(tmp_path / "set" / INITIAL_SCORES)
    loss, model = model_loss(collate), new_model(kind).eval()
    objective = LossesOnly(model, lambda examples: loss(model, list(examples))["loss"])
    expected = adam_similarity(objective, features(12, 0, kind), features(5, 1, kind), batch=8)
    assert scores.method == "gradient_step"
    np.testing.assert_allclose(
        scores.scores, expected.scores, rtol=1e-3, atol=1e-5 * abs(expected.scores).max()
    )
    runs = RunSet.load(tmp_path / "set")
    AutoSimulator(scores).fit(runs)  # whose tables it checks


def test_scores_that_cannot_be_had_are_said_and_training_goes_on(tmp_path):
    trainer = new_trainer(tmp_path, optim="adafactor")
    record_trainer(trainer, new_recorder(tmp_path), "seed-0", scores=True)
    with pytest.warns(NoScoresWarning, match="Adafactor"):
        trainer.train()
    assert RunSet.load(tmp_path / "set")[0].status == "complete"
    assert not (tmp_path / "set" / INITIAL_SCORES).exists()
