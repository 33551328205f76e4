"""Training examples of a stream: known by content, in tables that grow while runs are recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BATCH, N_TRAIN, TEST, TRAIN, Training, per_example

from simfluence.errors import RecordingError, RunDataError
from simfluence.recording import RunRecorder
from simfluence.recording.stream import StreamTable, entry_of, examples_in, spans_of
from simfluence.runs import ExampleTable, RunSet, journal, manage, storage, streams
from simfluence.simulators import SIMULATORS

CONTENTS = [{key: value for key, value in row.items() if key != "id"} for row in TRAIN]
ROW_OF = {row["id"]: number for number, row in enumerate(TRAIN)}
STEPS = 12


def record(folder: Path, run_id: str, seed: int = 0, *, text: bool = True, steps=STEPS, **options) -> list:
    """Record a run over the stream; returns the examples of each step, as the training saw them."""
    training = Training(seed=seed, steps=STEPS)
    recorder = RunRecorder(folder, train="stream", test=TEST, text=text)
    seen = []
    options = {"total_steps": STEPS, "state": training.state} | options
    with recorder.run(
        run_id, model=training.model, loss=per_example, optimizer=training.optimizer, **options
    ) as run:
        for _ in range(run.start, steps):
            ids, loss = training.step()
            seen.append([CONTENTS[ROW_OF[name]] for name in ids])
            run.step(seen[-1], train_loss=loss)
    return seen


def consumed(runs: RunSet, number: int = 0) -> list[list[tuple[str, str]]]:
    """Group and hash of the examples of each step."""
    known = runs.train.frame[["group", "hash"]].to_numpy().tolist()
    return [[tuple(known[row]) for row in batch] for batch in runs[number].curriculum]


def expected(steps: list) -> list[list[tuple[str, str]]]:
    """The same, from tables whose ids are given."""
    frame = ExampleTable.of(TRAIN).frame
    known = {
        json.dumps(content): (g, h)
        for content, g, h in zip(CONTENTS, frame["group"], frame["hash"], strict=True)
    }
    return [[known[json.dumps(example)] for example in batch] for batch in steps]


def test_runs_over_a_stream_make_one_set(tmp_path):
    seen = [record(tmp_path, f"run-{seed}", seed) for seed in range(3)]
    runs = RunSet.load(tmp_path)
    for number, steps in enumerate(seen):
        assert consumed(runs, number) == expected(steps)
        assert runs[number].status == "complete"
    different = {json.dumps(example) for steps in seen for batch in steps for example in batch}
    assert len(runs.train) == len(different)
    assert len(RunSet.load(tmp_path).train) <= N_TRAIN
    assert storage.read_examples(tmp_path)[0] == runs.train
    assert sorted(p.name for p in (tmp_path / "run-0").iterdir() if p.suffix != ".lock") == [
        ".lock", "run.json", "steps.parquet", "train.parquet",
    ]  # fmt: skip
    assert manage.verify(tmp_path).empty
    assert manage.list_sets(tmp_path)["train"].tolist() == [len(runs.train)]
    assert len(manage.show(tmp_path, "run-1").run) == STEPS


def test_the_set_is_that_of_a_recorder_that_knew_the_examples(tmp_path):
    """Losses, batches and predictions are the same as with the training table given."""
    for seed in range(3):
        record(tmp_path / "stream", f"run-{seed}", seed)
        training = Training(seed=seed, steps=STEPS)
        recorder = RunRecorder(tmp_path / "table", train=TRAIN, test=TEST)
        with recorder.run(
            f"run-{seed}", model=training.model, loss=per_example, optimizer=training.optimizer
        ) as run:
            for _ in range(STEPS):
                ids, loss = training.step()
                run.step(ids, train_loss=loss)
    streamed, known = RunSet.load(tmp_path / "stream"), RunSet.load(tmp_path / "table")
    assert np.array_equal(streamed.loss, known.loss)
    for ours, theirs in zip(streamed, known, strict=True):
        order = streamed.train.frame["hash"].tolist(), known.train.frame["hash"].tolist()
        assert [order[0][row] for row in ours.curriculum.examples] == [
            order[1][row] for row in theirs.curriculum.examples
        ]
        assert np.array_equal(ours.learning_rate, theirs.learning_rate)
    simulated = [
        SIMULATORS["linear"](penalty=1.0).fit(runs[:2]).simulate([runs[2].curriculum], runs.initial_loss[2:])
        for runs in (streamed, known)
    ]
    np.testing.assert_allclose(simulated[0], simulated[1], rtol=1e-6)


def test_what_is_read_while_recording_is_consistent(tmp_path):
    training = Training(steps=STEPS)
    recorder = RunRecorder(tmp_path, train="stream", test=TEST)
    assert manage.list_sets(tmp_path)["train"].tolist() == [0]
    with pytest.raises(RunDataError, match="no example was consumed yet"):
        storage.read_examples(tmp_path)
    with recorder.run("a", model=training.model, loss=per_example, optimizer=training.optimizer) as run:
        assert manage.list_sets(tmp_path)["train"].tolist() == [0]
        seen = []
        for _ in range(3):
            ids, loss = training.step()
            seen.append([CONTENTS[ROW_OF[name]] for name in ids])
            run.step(seen[-1], train_loss=loss)
            runs = RunSet.load(tmp_path, incomplete=True)
            assert (runs[0].status, len(runs[0])) == ("running", run.steps)
            assert consumed(runs) == expected(seen)
            different = {json.dumps(example) for batch in seen for example in batch}
            assert len(runs.train) == len(different)


def test_a_killed_run_loses_nothing_and_goes_on_to_the_same_files(tmp_path, monkeypatch):
    """What a kill after any write to a journal (of examples or of steps) leaves is what is on the disk then:
    a copy of the folder, whose lock nobody holds.
    """
    whole, append, copies = tmp_path / "whole", journal.Journal.append, []

    def copying(self, batch):
        append(self, batch)
        copies.append(shutil.copytree(whole, tmp_path / f"killed-{len(copies)}"))

    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "append", copying)
        seen = record(whole, "a", resume_every=4)
    assert len(copies) > STEPS + 5
    for number, killed in enumerate(copies):
        left = RunSet.load(killed, incomplete=True)[0] if number > 1 else None
        if left is not None:
            assert left.status == "interrupted"
            assert consumed(RunSet.load(killed, incomplete=True)) == expected(seen[: len(left)])
        if number in (0, 9, 16):
            record(killed, "a", resume=True)
            for name in (storage.STEPS, streams.TABLE):
                assert (killed / "a" / name).read_bytes() == (whole / "a" / name).read_bytes()
            assert not (killed / "a" / streams.JOURNAL).exists()


def test_a_restarted_run_keeps_its_first_attempt(tmp_path):
    with pytest.warns(UserWarning, match="after 5 of 12 steps"):
        record(tmp_path, "a", steps=5)
    record(tmp_path, "a", seed=1, restart=True)
    attempt = tmp_path / "a" / "attempt-1"
    assert len(streams.read_table(attempt)) > BATCH
    assert len(RunSet.load(tmp_path)[0]) == STEPS


def test_texts_are_kept_or_not(tmp_path):
    for text in (True, False):
        training = Training(steps=1)
        recorder = RunRecorder(tmp_path / str(text), train="stream", test=TEST, text=text)
        with recorder.run("a", model=training.model, loss=per_example) as run:
            chat = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "🙂"}]
            run.step(
                ["plain", {"text": "x" * 10**5, "label": 1}, {"messages": chat, "group": "chats"}, [5, 6]]
            )
        table = RunSet.load(tmp_path / str(text)).train
        texts = ["plain", "x" * 10**5, "user: Hi <b> | assistant: 🙂", ""]
        assert table.frame["text"].tolist() == (texts if text else [""] * 4)
        assert table.groups == ["", "", "chats", ""]
        assert len(set(table.ids)) == 4


def test_what_makes_two_examples_the_same():
    same = [
        {"input_ids": [4, 5, 6], "labels": [4, 5, 6]},
        {"labels": torch.tensor([4, 5, 6]), "input_ids": torch.tensor([4, 5, 6])},
        {"input_ids": [4, 5, 6, 0], "attention_mask": [1, 1, 1, 0], "labels": [4, 5, 6, -100]},
        {"input_ids": [0, 4, 5, 6], "attention_mask": [0, 1, 1, 1], "labels": [-100, 4, 5, 6]},
    ]
    assert len({entry_of(one).id for one in same}) == 1
    others = [
        {"input_ids": [4, 5, 6]},
        {"input_ids": [4, 5, 6], "labels": [4, 5, 7]},
        {**same[0], "group": "g"},
    ]
    assert len({entry_of(one).id for one in [same[0], *others]}) == 4
    assert entry_of("a") == entry_of({"text": "a"})
    assert entry_of({"text": "a", "id": 3}).id == "3"
    assert entry_of({"text": "a", "id": None}).id == entry_of("a").id


def test_batches_as_data_loaders_collate_them():
    rows = [
        {"input_ids": torch.tensor([i, 7, 0]), "attention_mask": torch.tensor([1, 1, 0])} for i in range(3)
    ]
    batch = torch.utils.data.default_collate([{**row, "text": f"t{i}"} for i, row in enumerate(rows)])
    assert [entry_of(one) for one in examples_in(batch)] == [
        entry_of({"input_ids": [i, 7], "text": f"t{i}"}) for i in range(3)
    ]
    assert [entry_of(one) for one in examples_in(torch.tensor([[1, 2], [3, 4]]))] == [
        entry_of({"input_ids": [1, 2]}), entry_of({"input_ids": [3, 4]}),
    ]  # fmt: skip


def test_spans_of_a_packed_row():
    row = {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4], "seq_lengths": [1, 3], "name": "x"}
    assert spans_of(row) == [
        {"input_ids": [1], "labels": [-100]},
        {"input_ids": [2, 3, 4], "labels": [2, 3, 4]},
    ]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([3, 4], "pass the examples themselves"),
        ("a text", "expected a list of examples, got the text"),
        ({"text": "a", "label": 1}, r"text \(one value\), label \(one value\)"),
        ({"text": ["a", "b"], "label": [1]}, r"text \(2 values\), label \(1 values\)"),
        (None, "has no example ids"),
        (7, "expected a list of examples, got int"),
        ([object()], "must be a mapping or a dataclass"),
        ([torch.zeros(2, 3), torch.zeros(2)], r"make a mapping: \{'x': x, 'y': y\}"),
        ([("a", "b"), (0, 1)], "a row, a text, or a list of token ids, got"),
    ],
)
def test_what_is_no_batch_of_examples_is_refused(tmp_path, examples, message):
    training = Training(steps=1)
    recorder = RunRecorder(tmp_path, train="stream", test=TEST)
    with (
        pytest.raises(RunDataError, match=message),
        recorder.run("a", model=training.model, loss=per_example, optimizer=training.optimizer) as run,
    ):
        training.step()
        run.step(examples)


def test_one_id_for_two_examples_is_refused(tmp_path):
    table = StreamTable()
    with pytest.raises(RunDataError, match="two examples of the stream have the id '1'"):
        table.numbered(table.rows([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}]))
    for number, text in enumerate("ab"):
        training = Training(steps=1)
        recorder = RunRecorder(tmp_path, train="stream", test=TEST)
        with recorder.run(f"run-{number}", model=training.model, loss=per_example) as run:
            run.step([{"id": 1, "text": text}])
    with pytest.raises(RunDataError, match="two runs consumed different examples with the id '1'"):
        RunSet.load(tmp_path)


def test_streams_and_tables_are_not_mixed(tmp_path):
    RunRecorder(tmp_path / "stream", train="stream", test=TEST)
    with pytest.raises(RecordingError, match="over a stream, and this recorder is over a table"):
        RunRecorder(tmp_path / "stream", train=TRAIN, test=TEST)
    RunRecorder(tmp_path / "table", train=TRAIN, test=TEST)
    with pytest.raises(
        RecordingError, match="over a table of training examples, and this recorder is over a stream"
    ):
        RunRecorder(tmp_path / "table", train="stream", test=TEST)
    with pytest.raises(ValueError, match="or 'stream'; got the text 'steam'"):
        RunRecorder(tmp_path / "other", train="steam", test=TEST)


def test_a_damaged_table_is_noticed(tmp_path):
    record(tmp_path, "a")
    file = tmp_path / "a" / streams.TABLE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RunDataError, match=r"train.parquet is torn"):
        RunSet.load(tmp_path)
    assert manage.verify(tmp_path)["file"].tolist() == ["train.parquet"]


def test_a_saved_set_has_one_table(tmp_path):
    for seed in range(2):
        record(tmp_path / "stream", f"run-{seed}", seed)
    runs = RunSet.load(tmp_path / "stream")
    runs.save(tmp_path / "closed")
    closed = RunSet.load(tmp_path / "closed")
    assert closed.train == runs.train
    assert [run.fingerprint for run in closed] == [run.fingerprint for run in runs]
