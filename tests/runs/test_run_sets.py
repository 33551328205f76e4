"""Run sets: exact round trips, and files that are torn, edited, or about other examples."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, Run, RunSet, storage


def table(n: int, prefix: str) -> ExampleTable:
    return ExampleTable(
        pd.DataFrame({"id": [f"{prefix}{i}" for i in range(n)], "group": [f"g{i % 2}" for i in range(n)],
                      "text": [f"«{i}»\n" for i in range(n)]})
    )  # fmt: skip


def a_run(run_id="a", steps=4, dtype="float32", seed=0, every=1, status="complete") -> Run:
    rng = np.random.default_rng(seed)
    evaluated = np.arange(0, steps + 1, every)
    return Run(
        id=run_id,
        curriculum=Curriculum.from_batches([rng.integers(0, 6, 1 + t % 3) for t in range(steps)], 6),
        metrics={name: rng.normal(size=(len(evaluated), 3)).astype(dtype) for name in ("loss", "margin")},
        evaluated=evaluated,
        learning_rate=rng.random(steps),
        train_loss=rng.random(steps),
        status=status,
        seed=seed,
        optimizer={"class": "AdamW", "betas": [0.9, 0.999]},
        config={"nested": {"a": [1, 2.5, None]}},
        environment={"torch": "2"},
    )


def a_set(**options) -> RunSet:
    runs = [a_run("run-10", 4, **options), a_run("run-9", 7, seed=1, **options)]
    return RunSet(runs, table(6, "train-"), table(3, "test-"))


def assert_same(ours: Run, theirs: Run) -> None:
    assert ours.curriculum == theirs.curriculum
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, values in ours.metrics.items():
        assert values.dtype == theirs.metrics[name].dtype
        np.testing.assert_array_equal(values, theirs.metrics[name])
    for name in ("evaluated", "learning_rate", "train_loss"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for name in ("id", "status", "seed", "optimizer", "config", "environment"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("every", [1, 3])
def test_saving_and_loading_is_exact(tmp_path, dtype, every):
    runs = a_set(dtype=dtype, every=every)
    runs.save(tmp_path)
    loaded = RunSet.load(tmp_path)
    assert loaded.ids == ["run-9", "run-10"]  # in natural order
    for run in loaded:
        assert_same(run, next(other for other in runs if other.id == run.id))
    assert (loaded.train, loaded.test) == (runs.train, runs.test)
    pd.testing.assert_frame_equal(loaded.train.frame, runs.train.frame)
    with pytest.raises(RunDataError, match="already"):
        runs.save(tmp_path)


losses = arrays.arrays(
    st.sampled_from([np.float32, np.float64]),
    st.tuples(st.integers(2, 5), st.integers(1, 3)),
    elements={"allow_subnormal": True, "allow_nan": True},
)


@settings(max_examples=25, deadline=None)
@given(loss=losses, seed=st.integers(0, 9))
def test_any_floats_survive_the_disk(tmp_path_factory, loss, seed):
    rng = np.random.default_rng(seed)
    batches = [[rng.integers(0, 4, rng.integers(1, 4)) for _ in range(len(loss) - 1)]]
    runs = RunSet.from_arrays(batches, [loss], train=4, allow_nonfinite=True)
    path = tmp_path_factory.mktemp("set")
    runs.save(path)
    loaded = RunSet.load(path)[0]
    assert loaded.loss.tobytes() == loss.tobytes()
    assert loaded.curriculum == runs[0].curriculum


def test_others_can_read_it(tmp_path):
    a_set().save(tmp_path, text=False)
    steps = pd.read_parquet(tmp_path / "run-10" / "steps.parquet")
    assert steps.columns.tolist() == ["step", "learning_rate", "batch", "train_loss", "loss", "margin"]
    assert steps["step"].tolist() == [0, 1, 2, 3, 4]
    assert len(steps["batch"][0]) == 0
    examples = pd.read_parquet(tmp_path / "examples.parquet")
    assert set(examples["text"]) == {""}
    assert RunSet.load(tmp_path).train == a_set().train  # texts do not make examples others


def test_incomplete_runs_keep_their_status(tmp_path):
    RunSet([a_run("a"), a_run("b", status="failed")], table(6, "train-"), table(3, "test-")).save(tmp_path)
    with pytest.warns(UserWarning, match=r"left out b \(failed\)"):
        assert RunSet.load(tmp_path).ids == ["a"]
    assert [run.status for run in RunSet.load(tmp_path, incomplete=True)] == ["complete", "failed"]
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(RunDataError, match=r"no complete run; there are b \(failed\)"):
        RunSet.load(tmp_path)


# ------------------------------------------------------------------------------------- damaged


def corrupt_manifest(folder, **changes):
    file = folder / storage.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def torn(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: torn(path / "run-9" / "steps.parquet"), r"run-9/steps.parquet is torn"),
        (lambda path: flipped(path / "run-9" / "steps.parquet"), r"run-9/steps.parquet is edited"),
        (lambda path: (path / "run-9" / "steps.parquet").unlink(), "steps.parquet is missing"),
        (lambda path: torn(path / "run-9" / "run.json"), "run.json is damaged"),
        (lambda path: (path / "run-9" / "run.json").write_text("[]"), "expected schema version 1, got None"),
        (
            lambda path: corrupt_manifest(path / "run-9", schema_version=99),
            "expected schema version 1, got 99",
        ),
        (lambda path: corrupt_manifest(path / "run-9", fingerprints={}), "another train table"),
        (lambda path: corrupt_manifest(path / "run-9", files={}), r"journal.arrow is missing"),
        (lambda path: torn(path / "examples.parquet"), "examples.parquet is damaged"),
        (lambda path: (path / "examples.parquet").unlink(), "is not a run set"),
    ],
)
def test_damaged_files_are_named(tmp_path, damage, message):
    a_set().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(RunDataError, match=message):
        RunSet.load(tmp_path)


def test_a_file_that_was_edited_with_its_checksum(tmp_path):
    a_set().save(tmp_path)
    folder = tmp_path / "run-9"
    steps = pq.read_table(folder / "steps.parquet")
    for edited, message in (
        (steps.slice(1), "expected the steps 0"),
        (steps.drop(["loss"]), "loss"),
        (
            steps.rename_columns(["step", "lr", "batch", "train_loss", "loss", "margin"]),
            r"columns \['learning_rate'\] too",
        ),
    ):
        pq.write_table(edited, folder / "steps.parquet")
        corrupt_manifest(folder, files={"steps.parquet": storage.file_entry(folder / "steps.parquet")})
        with pytest.raises(RunDataError, match=message):
            RunSet.load(tmp_path)


def test_a_run_over_other_examples_is_not_of_the_set(tmp_path):
    a_set().save(tmp_path / "a")
    other = RunSet([a_run("other")], table(6, "else-"), table(3, "test-"))
    other.save(tmp_path / "b")
    shutil.copytree(tmp_path / "b" / "other", tmp_path / "a" / "other")
    with pytest.raises(RunDataError, match="other was recorded on another train table"):
        RunSet.load(tmp_path / "a")
    with pytest.raises(RunDataError, match="about 6 training and 3 test examples"):
        RunSet([a_run()], table(6, "t"), table(4, "z"))
    with pytest.raises(RunDataError, match="different names"):
        RunSet([a_run(), a_run()], table(6, "t"), table(3, "z"))


# ---------------------------------------------------------------------------------- from arrays


def test_from_arrays():
    rng = np.random.default_rng(0)
    batches, losses = rng.integers(0, 5, (3, 4, 2)), rng.random((3, 5, 2))
    runs = RunSet.from_arrays(batches, losses, learning_rate=np.full(4, 0.1))
    np.testing.assert_array_equal(runs.loss, losses)
    np.testing.assert_array_equal(runs.initial_loss, losses[:, 0])
    assert [[list(b) for b in c] for c in runs.curricula] == batches.tolist()
    assert all(run.every_step for run in runs)
    ragged = RunSet.from_arrays([[[0], [1, 2]], [[2]]], [losses[0, :3], losses[1, :2]])
    assert np.isnan(ragged.loss[1, 2]).all()
    assert len(ragged.train) == 3


@pytest.mark.parametrize(
    ("batches", "losses", "message"),
    [
        ([[[0]]], [], "as many runs of batches as of losses"),
        ([[[0]]], [[[1.0], [1.0], [1.0]]], "1 steps need 2 rows of losses"),
        ([[[0]]], [[1.0, 2.0]], r"\[step \+ 1, test\]"),
        ([[[0]]], [[[1.0, 2.0], [1.0, np.nan]]], "test example '1' at step 1 is NaN or missing"),
    ],
)
def test_arrays_that_do_not_fit(batches, losses, message):
    with pytest.raises(RunDataError, match=message):
        RunSet.from_arrays(batches, losses)


def test_splitting_by_run():
    rng = np.random.default_rng(0)
    runs = RunSet.from_arrays(rng.integers(0, 5, (10, 4, 2)), rng.random((10, 5, 2)))
    a, b, c = runs.split(5, 2, seed=3)
    assert sorted(a.ids + b.ids + c.ids) == runs.ids
    assert [len(part) for part in (a, b, c)] == [5, 2, 3]
    assert runs.split(5, 2, seed=3)[0].ids == a.ids != runs.split(5, 2)[0].ids
    with pytest.raises(ValueError, match="cannot split 10 runs"):
        runs.split(9, 2)


def test_where_runs_are_few_all_are_fitted_to_but_those_asked_about():
    rng = np.random.default_rng(0)
    runs = RunSet.from_arrays(rng.integers(0, 5, (10, 4, 2)), rng.random((10, 5, 2)))

    def ids(parts):
        return [part.ids for part in parts if isinstance(part, RunSet)]

    names = runs.ids
    assert ids(runs.split_to_fit(5, 2)) == [names[:5], names[5:7]]
    assert ids(runs.split_to_fit(5, 2, held_out="run-001")) == [[names[0], *names[2:6]], names[6:8]]
    *parts, notes = runs.split_to_fit(9, 1, held_out="run-001")
    assert ids(parts) == [[names[0], *names[2:]], []]
    assert notes == ["fewer runs than train + validation = 10: fitted to all but run-001"]
    *parts, notes = runs[:1].split_to_fit(9, held_out="run-000")
    assert ids(parts) == [["run-000"], []]
    assert notes == ["fitted to run-000 itself, since the set has no other run"]

    assert ids(runs.split_to_test(5, 2)) == [names[:5], names[5:7], names[7:]]
    assert ids(runs.split_to_test(20, 2)) == [names[:8], [], names[8:]]
    assert ids(runs.split_to_test(20, 2, 4)) == [names[:6], [], names[6:]]
    assert ids(runs[:2].split_to_test(20, 2)) == [names[:1], [], names[1:2]]
    drawn = ids(runs.split_to_test(20, 2, seed=3))
    assert sorted(drawn[0] + drawn[2]) == names != drawn[0] + drawn[2]
    for few, test in ((runs[:1], None), (runs, 10)):
        with pytest.raises(ValueError, match="leave none to fit to"):
            few.split_to_test(20, 2, test)


def test_tables_of_examples():
    examples = ExampleTable.of([{"id": 1, "group": "a", "text": "x"}, {"id": "2", "q": ["y", "z"]}])
    assert examples.ids == ["1", "2"]
    assert examples.rows([2, "1"]).tolist() == [1, 0]
    assert examples.frame["text"].tolist() == ["x", "y | z"]
    assert examples.in_group("a").tolist() == [0]
    with pytest.raises(RunDataError, match=r"groups are \['', 'a'\]"):
        examples.in_group("b")
    for bad, message in (
        ([], "at least one example|need a field 'id'"),
        ([{"text": "x"}], "needs a field 'id'"),
        ([{"id": 1}, {"id": "1"}], "must be unique"),
        (["x"], "mapping or a dataclass"),
    ):
        with pytest.raises(RunDataError, match=message):
            ExampleTable.of(bad)
    changed = ExampleTable.of([{"id": 1, "group": "a", "text": "x!"}, {"id": "2", "q": ["y", "z"]}])
    assert changed != examples
