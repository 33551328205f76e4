"""Importers and exporters: round trips are exact, and what does not fit is named."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, RunSet, gptfluence
from simfluence.runs.run import Run


def a_set(dtype) -> RunSet:
    """Ragged runs, awkward ids, metrics and floats; row 5 of the training table is never consumed."""
    rng = np.random.default_rng(0)
    ids = ["NA", "007", "7", "nan", 'with "quotes", and commas', "never"]
    train = ExampleTable(pd.DataFrame({"id": ids, "group": list("aabbcc")}))
    test = ExampleTable(pd.DataFrame({"id": ["true", "1e5", "line\nbreak"]}))
    runs = []
    for number, (steps, every) in enumerate([(3, 1), (4, 2), (1, 1)]):
        evaluated = np.arange(0, steps + 1, every)
        loss = rng.normal(size=(len(evaluated), 3)).astype(dtype)
        loss[-1, 0] = [np.nan, np.inf, 1e-40][number]
        runs.append(
            Run(
                id=f"run-{number}",
                curriculum=Curriculum.from_batches([rng.integers(0, 5, 1 + t) for t in range(steps)], 6),
                metrics={"loss": loss, "accuracy": rng.random(loss.shape).astype(dtype)},
                evaluated=evaluated,
                learning_rate=rng.random(steps),
                train_loss=np.where(rng.random(steps) < 0.5, np.nan, rng.random(steps)),
            )
        )
    return RunSet(runs, train, test)


def assert_same(ours: RunSet, theirs: RunSet) -> None:
    assert ours.ids == theirs.ids
    for a, b in zip(ours, theirs, strict=True):
        assert a.curriculum == b.curriculum
        assert a.metrics.keys() == b.metrics.keys()
        for name in a.metrics:
            assert a.metrics[name].dtype == b.metrics[name].dtype
            np.testing.assert_array_equal(a.metrics[name], b.metrics[name])
        for name in ("evaluated", "learning_rate", "train_loss"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["frame", "csv", "parquet"])
def test_a_long_table_there_and_back(tmp_path, dtype, kind):
    runs = a_set(dtype)
    path = None if kind == "frame" else tmp_path / f"table.{kind}"
    frame = runs.to_table(path)
    assert frame.columns.tolist() == [
        "run", "step", "example", "test", "loss", "accuracy", "learning_rate", "train_loss",
    ]  # fmt: skip
    table = frame if path is None else path
    same = RunSet.from_table(
        table,
        train=runs.train,
        test=runs.test,
        dtype=dtype if kind == "csv" else None,
        allow_nonfinite=True,
    )
    assert_same(same, runs)
    # without the tables, the ids that occur; a permutation of rows and columns
    alone = RunSet.from_table(table, allow_nonfinite=True)
    assert alone.train.ids == sorted(set(runs.train.ids) - {"never"}, key=lambda i: alone.train.ids.index(i))
    assert set(alone.train.ids) == set(runs.train.ids) - {"never"}
    for a, b in zip(alone, runs, strict=True):
        names = [[alone.train.ids[i] for i in batch] for batch in a.curriculum]
        assert names == [[runs.train.ids[i] for i in batch] for batch in b.curriculum]
        order = alone.test.rows(runs.test.ids)
        np.testing.assert_array_equal(a.loss[:, order].astype(dtype), b.loss)


def test_a_table_by_hand():
    frame = pd.DataFrame(
        {
            "run": "a",
            "step": [0, 0, 1, 1, 1, 1],
            "example": [None, None, 10, 9, None, None],
            "test": ["y", "x", None, None, "x", "y"],
            "loss": [2.0, 1.0, None, None, 0.5, 1.5],
        },
        dtype=object,
    )
    run = RunSet.from_table(frame)[0]
    assert run.loss.tolist() == [[1.0, 2.0], [0.5, 1.5]]
    assert run.curriculum[0].tolist() == [1, 0]  # ids "9", "10", in natural order
    for change, message in (
        (frame.drop(columns="loss"), "needs a column 'loss'"),
        (frame.assign(step=["x"] * 6), "row 0: step must be a number, got 'x'"),
        (frame.assign(example="e"), "row 0 must name either"),
        (frame.iloc[[0, 1, 2, 3, 4]], "test example 'y' has 0 losses at step 1"),
        (frame.iloc[[0, 1, 2, 3, 4, 5, 5]], "test example 'y' has 2 losses at step 1"),
        (frame.assign(step=[0, 0, 2, 2, 2, 2]), "consumed by step 1"),
        (frame.iloc[[2, 3]], "no losses|at least one example"),
    ):
        with pytest.raises(RunDataError, match=message):
            RunSet.from_table(change)
    with pytest.raises(RunDataError, match="id '10' is not in the table"):
        RunSet.from_table(frame, train=ExampleTable.numbered(3))


def test_a_table_that_cannot_be_read(tmp_path):
    with pytest.raises(RunDataError, match="cannot be read"):
        RunSet.from_table(tmp_path / "missing.csv")
    (tmp_path / "bad.csv").write_text("run,step,example,test,loss\na,0,,x,much\n")
    with pytest.raises(RunDataError, match="row 0: loss must be a number, got 'much'"):
        RunSet.from_table(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match=r"\.csv or \.parquet"):
        a_set("float32").to_table(tmp_path / "table.xlsx")


# ----------------------------------------------------------------------------------- GPTfluence


def write_log(folder, samples, losses):
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "samples_id": ids}) for step, ids in samples]
    (folder / "train_samples_id.json").write_text("\n".join(lines) + "\n")
    lines = [
        json.dumps({"id": z, "loss_trajectory": [{"step": s, "loss": v} for s, v in series]})
        for z, series in losses
    ]
    (folder / "all_loss_trajectory.out").write_text("\n".join(lines) + "\n")


def test_the_public_log_format(tmp_path):
    """As published: steps from 1, a loss at step s is that after batch s, none before the first."""
    samples = [(1, [5, 10]), (2, [15, 5]), (3, [20, 10]), (4, [5, 15])]
    losses = [(2, [(1, 0.1), (2, 1.2), (3, 2.3), (4, 3.4)]), (1, [(1, 0.5), (2, 1.5), (3, 2.5), (4, 3.5)])]
    write_log(tmp_path / "runs" / "output_seed-10", samples, losses)
    write_log(tmp_path / "runs" / "output_seed-9", samples, [(z, series[1:]) for z, series in losses])
    runs = RunSet.from_gptfluence(tmp_path / "runs")
    assert runs.ids == ["output_seed-9", "output_seed-10"]
    assert (runs.train.ids, runs.test.ids) == (["5", "10", "15", "20"], ["1", "2"])
    assert runs[1].loss.tolist() == [[0.5, 0.1], [1.5, 1.2], [2.5, 2.3], [3.5, 3.4]]
    assert [batch.tolist() for batch in runs[1].curriculum] == [[2, 0], [3, 1], [0, 2]]
    assert runs[1].config["steps_left_out"] == 1
    assert [batch.tolist() for batch in runs[0].curriculum] == [[3, 1], [0, 2]]
    assert runs[0].initial_loss.tolist() == [1.5, 1.2]
    assert RunSet.from_gptfluence(tmp_path / "runs" / "output_seed-9").ids == ["output_seed-9"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gptfluence_there_and_back(tmp_path, dtype):
    rng = np.random.default_rng(0)
    batches, losses = rng.integers(0, 12, (3, 5, 2)), rng.normal(size=(3, 6, 11)).astype(dtype)
    runs = RunSet.from_arrays(batches, losses, train=12)
    gptfluence.write(runs, runs.train, runs.test, tmp_path)
    same = RunSet.from_gptfluence(tmp_path, train=runs.train)
    np.testing.assert_array_equal(same.loss, runs.loss)
    assert same.curricula == runs.curricula
    assert same.test.ids == runs.test.ids
    assert same[0].config["steps_left_out"] == 0


def test_logs_that_do_not_have_the_form(tmp_path):
    samples, losses = [(1, [1]), (2, [2])], [(1, [(1, 0.1), (2, 0.2)])]
    with pytest.raises(RunDataError, match="no GPTfluence runs"):
        RunSet.from_gptfluence(tmp_path)
    for number, (changed_samples, changed_losses, message) in enumerate(
        [
            ([(1, [1]), (1, [2])], losses, r"train_samples_id.json, line 2: .* step 1 occurs twice"),
            ([(1, [1]), (3, [2])], losses, "consumed by step 2"),
            ([(1, [1]), ("x", [2])], losses, "line 2: expected"),
            (samples, [(1, [(1, 0.1)]), (2, [(2, 0.1)])], "no step after which every test example"),
            (samples, [(1, [(1, 0.1), (1, 0.2)])], "two losses at one step"),
        ]
    ):
        folder = tmp_path / str(number) / "run"
        write_log(folder, changed_samples, changed_losses)
        with pytest.raises(RunDataError, match=message):
            RunSet.from_gptfluence(folder)
    (folder / "all_loss_trajectory.out").write_text('{"id": 1, "loss_traj')
    with pytest.raises(RunDataError, match=r"all_loss_trajectory.out, line 1: expected a JSON object"):
        RunSet.from_gptfluence(folder)
    (folder / "all_loss_trajectory.out").unlink()
    with pytest.raises(RunDataError, match="cannot be read"):
        RunSet.from_gptfluence(folder)
