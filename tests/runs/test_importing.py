"""Tables as people have them: indices, integers beside blanks, wide exports, runs without initial losses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simfluence.errors import RunDataError
from simfluence.jsonl import read_jsonl
from simfluence.runs import ExampleTable, RunSet, gptfluence

SHAPES = st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(1, 3))  # run, step + 1, test
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SETS = SHAPES.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=FLOATS))
laws = settings(max_examples=30, deadline=None)


def a_set(loss: np.ndarray, seed: int = 0) -> RunSet:
    """Runs of batches of one to three examples; every one of the six training examples is consumed."""
    rng = np.random.default_rng(seed)
    batches = [[rng.integers(0, 6, rng.integers(1, 4)) for _ in range(loss.shape[1] - 1)] for _ in loss]
    batches[0][0] = np.arange(6)
    return RunSet.from_arrays(batches, loss, train=6, learning_rate=rng.random(loss.shape[1] - 1))


def assert_same(ours: RunSet, theirs: RunSet) -> None:
    assert (ours.ids, ours.train.ids, ours.test.ids) == (theirs.ids, theirs.train.ids, theirs.test.ids)
    assert ours.curricula == theirs.curricula
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.loss, b.loss)
        np.testing.assert_array_equal(a.evaluated, b.evaluated)
        np.testing.assert_array_equal(a.learning_rate, b.learning_rate)


def by_hand(runs: RunSet) -> pd.DataFrame:
    """A long table of dictionaries of numbers, as someone would log it."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        for step, losses in enumerate(run.loss):
            if step:
                rate = run.learning_rate[step - 1]
                rows += [
                    {"run": run.id, "step": step, "example": int(i), "learning_rate": rate}
                    for i in run.curriculum[step - 1]
                ]
            rows += [{"run": run.id, "step": step, "test": z, "loss": v} for z, v in enumerate(losses)]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------ long tables


@laws
@given(SETS)
def test_integers_beside_blanks_and_an_index_column(tmp_path_factory, loss) -> None:
    runs, frame = a_set(loss), by_hand(a_set(loss))
    assert frame["example"].dtype == float  # pandas made "3.0" of 3
    folder = tmp_path_factory.mktemp("tables")
    frame.to_csv(folder / "index.csv")
    frame.iloc[::-1].iloc[::-1].to_csv(folder / "plain.csv", index=False)
    frame.sample(frac=1, random_state=0).sort_index().to_parquet(folder / "table.parquet")
    for table in (frame, *sorted(folder.iterdir())):
        assert_same(RunSet.from_table(table), runs)
    read_again = pd.read_csv(folder / "index.csv")
    assert_same(
        RunSet.from_table(read_again.assign(loss=frame["loss"], learning_rate=frame["learning_rate"])), runs
    )


def test_ids_that_read_like_floats(tmp_path) -> None:
    """A CSV file does not say whether "3.0" was 3; a table of examples does."""
    runs = a_set(np.ones((1, 2, 2)))
    names = ExampleTable(pd.DataFrame({"id": [f"{i}.0" for i in range(6)]}))
    RunSet(runs.runs, names, runs.test).to_table(tmp_path / "runs.csv")
    assert RunSet.from_table(tmp_path / "runs.csv").train.ids == runs.train.ids
    assert RunSet.from_table(tmp_path / "runs.csv", train=names).train.ids == names.ids
    large = by_hand(runs).replace({"example": {3: 2.0**60}})
    large.to_csv(tmp_path / "large.csv")
    for table in (large, tmp_path / "large.csv"):
        with pytest.raises(RunDataError, match="float, which may differ"):
            RunSet.from_table(table)


def test_losses_that_are_missing() -> None:
    frame = by_hand(a_set(np.ones((1, 3, 2))))
    blank = frame.copy()
    blank.loc[(blank["test"] == 1) & (blank["step"] == 2), "loss"] = None
    gone = frame[(frame["test"] != 1) | (frame["step"] != 2)]
    for table, message in ((blank, "'1' at step 2 is NaN or missing"), (gone, "'1' has 0 losses at step 2")):
        with pytest.raises(RunDataError, match=message):
            RunSet.from_table(table)
        read = RunSet.from_table(table, allow_nonfinite=True)
        np.testing.assert_array_equal(read[0].loss, [[1, 1], [1, 1], [1, np.nan]])
    with pytest.raises(RunDataError, match="row 0 names no run"):
        RunSet.from_table(frame.assign(run=None))


def test_columns_that_are_no_metrics() -> None:
    frame = by_hand(a_set(np.ones((1, 3, 2))))
    about_test = frame["test"].notna()
    accuracy = np.where(about_test, 0.5, np.nan)
    named = frame.assign(accuracy=accuracy, epoch=1, note="x", nothing=np.nan)
    with pytest.warns(UserWarning, match="left out of the table: epoch, note, nothing"):
        run = RunSet.from_table(named)[0]
    assert set(run.metrics) == {"loss", "accuracy"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        indexed = frame.assign(**{"Unnamed: 0": range(len(frame)), "__index_level_0__": 1})
        assert set(RunSet.from_table(indexed)[0].metrics) == {"loss"}


def test_what_a_table_does_not_say_is_given() -> None:
    optimizer = {"class": "SGD", "momentum": 0.9}
    frame = by_hand(a_set(np.ones((2, 3, 2))))
    runs = RunSet.from_table(frame, optimizer=optimizer)
    assert [run.optimizer for run in runs] == [optimizer, optimizer]


# ----------------------------------------------------------------------------- no initial losses


@laws
@given(SETS)
def test_initial_losses_are_given_or_left_out(loss) -> None:
    runs = a_set(loss)
    frame = by_hand(runs)
    later = frame[frame["step"] > 0]
    if loss.shape[1] > 1:
        with pytest.raises(RunDataError, match="no losses before its first step: they begin at step 1"):
            RunSet.from_table(later)
    assert_same(RunSet.from_table(later, initial_loss=loss[:, 0]), runs)
    same_start = by_hand(
        a_set(np.concatenate([np.broadcast_to(loss[:1, :1], loss[:, :1].shape), loss[:, 1:]], 1))
    )
    by_id = dict(zip(runs.test.ids, loss[0, 0], strict=True))
    assert_same(
        RunSet.from_table(same_start[same_start["step"] > 0], initial_loss=by_id),
        RunSet.from_table(same_start),
    )
    first = RunSet.from_table(later, initial_loss="first", train=runs.train)
    np.testing.assert_array_equal(first.loss, loss[:, 1:])
    for run, whole in zip(first, runs, strict=True):
        assert [list(batch) for batch in run.curriculum] == [list(batch) for batch in whole.curriculum][1:]
        np.testing.assert_array_equal(run.learning_rate, whole.learning_rate[1:])
        assert run.config["steps_left_out"] == 1
    assert_same(RunSet.from_table(frame, initial_loss="first"), runs)  # it has its first losses at step 0


def test_initial_losses_that_do_not_fit() -> None:
    frame = by_hand(a_set(np.ones((2, 3, 2))))
    later = frame[frame["step"] > 0]
    for given_losses, message in (
        ([1.0, 2.0, 3.0], r"\[test\] = \(2,\) or \[run, test\] = \(2, 2\), got shape \(3,\)"),
        ({"0": 1.0}, "no loss of test example '1'"),
        ({"0": 1.0, "2": 1.0}, "'2' is not in the table"),
        ([np.nan, 1.0], "'0' at step 0 is NaN"),
    ):
        with pytest.raises(RunDataError, match=message):
            RunSet.from_table(later, initial_loss=given_losses)
    with pytest.raises(ValueError, match="got 'last'"):
        RunSet.from_table(later, initial_loss="last")
    counted_from_0 = frame.assign(step=frame["step"] - frame["example"].notna())
    with pytest.raises(RunDataError, match="step 0 consumes examples, but steps count from 1"):
        RunSet.from_table(counted_from_0)
    with pytest.raises(RunDataError, match="consumed by step 2"):
        RunSet.from_table(frame.assign(step=frame["step"] + 2 * (frame["step"] == 2)))
    resumed = later.assign(step=later["step"] + 100)
    with pytest.raises(RunDataError, match=r"they begin at step 101"):
        RunSet.from_table(resumed)
    assert [len(run) for run in RunSet.from_table(resumed, initial_loss="first")] == [1, 1]


def test_initial_losses_of_a_run_log(tmp_path) -> None:
    runs = a_set(np.arange(12.0).reshape(2, 3, 2))
    gptfluence.write(runs, runs.train, runs.test, tmp_path)
    for file in tmp_path.glob("*/all_loss_trajectory.out"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            line["loss_trajectory"].pop(0)
        file.write_text("\n".join(map(json.dumps, lines)))
    read = RunSet.from_gptfluence(tmp_path, initial_loss=runs.initial_loss, optimizer={"class": "AdamW"})
    np.testing.assert_array_equal(read.loss, runs.loss)
    assert read.curricula == runs.curricula
    assert read[0].optimizer == {"class": "AdamW"}
    with pytest.raises(RunDataError, match="no losses before its first step"):
        RunSet.from_gptfluence(tmp_path, initial_loss=None)


# ------------------------------------------------------------------------------------ wide tables

CELLS = {
    "JSON": lambda ids: json.dumps([str(i) for i in ids]),
    "a Python list": lambda ids: str([str(i) for i in ids]),
    "numbers": lambda ids: str([int(i) for i in ids]),
    "numpy": lambda ids: str(np.array(ids)),
    "spaces": lambda ids: " ".join(map(str, ids)),
    "commas": lambda ids: ", ".join(map(str, ids)),
}


def wide(runs: RunSet, cell: Any = list, prefix: str = "") -> pd.DataFrame:
    rows = []
    for run in runs:
        for step, losses in enumerate(run.loss):
            batch = run.curriculum[step - 1] if step else []
            about = {"run": run.id, "_step": step, "_runtime": 0.5, "batch": cell(batch) if step else None}
            about["learning_rate"] = run.learning_rate[step - 1] if step else None
            rows.append(
                about | {f"{prefix}{z}": value for z, value in zip(runs.test.ids, losses, strict=True)}
            )
    return pd.DataFrame(rows)


@laws
@given(SETS, st.sampled_from(list(CELLS)))
def test_wide_tables(tmp_path_factory, loss, kind) -> None:
    runs = a_set(loss)
    path = tmp_path_factory.mktemp("tables") / "wide.csv"
    wide(runs, CELLS[kind]).to_csv(path)
    assert_same(RunSet.from_table(path), runs)
    tracked = wide(runs, CELLS[kind], prefix="eval/").assign(loss=0.5, epoch=1)
    tracked.to_csv(path, index=False)
    assert_same(RunSet.from_table(path, prefix="eval/"), runs)
    assert_same(RunSet.from_table(wide(runs)), runs)  # lists as cells, in memory


def test_wide_rows_without_losses() -> None:
    """A training step and an evaluation may be rows of their own; steps between evaluations have none."""
    runs = a_set(np.arange(10.0).reshape(1, 5, 2))
    frame = wide(runs).drop(columns="run")
    frame.loc[frame["_step"] % 2 == 1, ["0", "1"]] = np.nan
    trained, evaluated = frame.copy(), frame.copy()
    trained[["0", "1"]] = np.nan
    evaluated["batch"] = None
    for table in (frame, pd.concat([evaluated, trained])):
        read = RunSet.from_table(table)
        assert read.ids == ["run"]
        assert read[0].evaluated.tolist() == [0, 2, 4]
        np.testing.assert_array_equal(read[0].loss, runs[0].loss[::2])
        assert read[0].curriculum == runs[0].curriculum
    frame.loc[0, "1"] = np.nan
    with pytest.raises(RunDataError, match="'1' has 0 losses at step 0"):
        RunSet.from_table(frame)


def test_test_examples_with_dashes_in_their_names() -> None:
    runs = a_set(np.arange(12.0).reshape(2, 3, 2))
    named = wide(runs).rename(columns={"0": "a - 1", "1": "a - 2"})
    read = RunSet.from_table(named)
    assert (read.ids, read.test.ids) == (runs.ids, ["a - 1", "a - 2"])
    np.testing.assert_array_equal(read.loss, runs.loss)


def test_a_chart_of_several_runs(tmp_path) -> None:
    runs = a_set(np.arange(12.0).reshape(2, 3, 2))
    columns: dict[str, Any] = {"Step": range(3)}
    for run in runs:
        for z, losses in zip(runs.test.ids, run.loss.T, strict=True):
            for end in ("", "__MIN", "__MAX"):
                columns[f"{run.id} - eval/{z}{end}"] = losses
    path = tmp_path / "chart.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    with pytest.raises(RunDataError, match="give it a column 'batch', or pass batches="):
        RunSet.from_table(path, prefix="eval/")
    by_run = {run.id: [batch.tolist() for batch in run.curriculum] for run in runs}
    rates = by_hand(runs).dropna(subset=["example"])
    rates.to_csv(tmp_path / "batches.csv")
    read = RunSet.from_table(path, prefix="eval/", batches=by_run)
    np.testing.assert_array_equal(read.loss, runs.loss)
    assert read.curricula == runs.curricula
    for batches in (rates, tmp_path / "batches.csv"):
        assert_same(RunSet.from_table(path, prefix="eval/", batches=batches), runs)
    losses_only = by_hand(runs).dropna(subset=["test"])[["run", "step", "test", "loss"]]
    assert RunSet.from_table(losses_only, batches=by_run).curricula == runs.curricula
    with pytest.raises(RunDataError, match=r"no column holds the losses .* begin with 'test/'"):
        RunSet.from_table(path, prefix="test/", batches=by_run)
    with pytest.raises(RunDataError, match="batches needs a column 'example'"):
        RunSet.from_table(path, batches=rates.drop(columns="example"))
    with pytest.raises(RunDataError, match=r"row 1: batch must be a list of ids, got '\[1, 2'"):
        RunSet.from_table(pd.DataFrame({"step": [0, 1], "batch": ["", "[1, 2"], "z": [1.0, 2.0]}))


# ------------------------------------------------------------------------------------- JSON Lines


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers(), max_size=3)))
def test_any_text_is_read_from_json_lines(tmp_path_factory, objects) -> None:
    """JSON may hold U+2028 and its like as they are; only a newline ends a line."""
    file = Path(tmp_path_factory.mktemp("lines")) / "objects.jsonl"
    text = "".join(json.dumps(value, ensure_ascii=False) + "\r\n\n" for value in objects)
    file.write_bytes(text.encode("utf-8-sig", errors="surrogatepass"))
    assert [value for _, value in read_jsonl(file)] == objects


def test_lines_that_are_no_objects(tmp_path) -> None:
    file = tmp_path / "objects.jsonl"
    for content, message in (
        (b'{"a": 1}\n\n[1]\n', r"line 3: expected a JSON object, got '\[1\]'"),
        (b'{"a": 1}\n{"b', "line 2: expected a JSON object"),
        (b"\xff\xfe", "cannot be read"),
    ):
        file.write_bytes(content)
        with pytest.raises(RunDataError, match=message):
            read_jsonl(file)


def test_ids_with_other_digits() -> None:
    """Python counts ² among the digits, but it is no number."""
    frame = by_hand(a_set(np.ones((1, 2, 3)))).replace({"test": {0: "²", 1: "10", 2: "٣"}})
    assert RunSet.from_table(frame).test.ids == ["٣", "10", "²"]
