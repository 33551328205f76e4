"""A store of gradients: its scores against exact ones, and what becomes of it when it is interrupted."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import bert, network, points, texts

from simfluence.attribution import AttributionContext, Checkpoint, attribute
from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.landmarks import drawn
from simfluence.attribution.store import GradientStore, check_options, stored_scores
from simfluence.attribution.store_files import SCALES, Manifest, mapped, narrowed, read_about, shard_file
from simfluence.attribution.store_writing import write_store
from simfluence.errors import RunDataError
from simfluence.runs import ExampleTable, TableFingerprints
from simfluence.scores import OF_STORE

ADAM = {"class": "AdamW", "lr": 1e-3, "eps": 1e-8}
SGD = {"class": "SGD", "lr": 1e-3}


def context_of(objective: Any, train: Any, test: Any, optimizer: Any, **more: Any) -> AttributionContext:
    tables = [ExampleTable.of([{"id": f"{kind}{i}"} for i in range(len(some))]) for kind, some in
              (("train", train), ("test", test))]  # fmt: skip
    return AttributionContext(
        objective, train, test, [""] * len(train), [""] * len(test),
        [Checkpoint(0, 1e-3, lambda module: None, optimizer=optimizer)], str.split,
        batch=4, optimizer=optimizer, tables=TableFingerprints.of(*tables), **more,
    )  # fmt: skip


def small(optimizer: Any = ADAM, seed: int = 0) -> AttributionContext:
    return context_of(network(seed=seed), points(10), points(4, seed=1), optimizer)


GROUPED = {
    "class": "AdamW", "lr": 1e-3, "eps": 1e-8,
    "groups": [{"parameters": ["0.weight", "0.bias", "1.weight"], "eps": 1e-3, "lr": 1e-3},
               {"parameters": ["1.bias", "3.weight"], "lr": 1e-4}],
}  # fmt: skip
RATES = {"0.weight": 1.0, "0.bias": 1.0, "1.weight": 1.0, "1.bias": 0.1, "3.weight": 0.1}
CONTEXTS = {
    "Adam": small,
    "SGD": lambda: small(SGD),
    "groups of Adam": lambda: replace(small(GROUPED), rates=lambda: RATES),
    "groups of SGD": lambda: replace(small(SGD), rates=lambda: RATES),
    "bert, full": lambda: context_of(bert(), texts(7), texts(3, seed=1), ADAM),
    "bert, SGD": lambda: context_of(bert(), texts(7), texts(3, seed=1), SGD),
}


@pytest.mark.parametrize("landmarks", [0, None])
@pytest.mark.parametrize("case", CONTEXTS)
def test_scores_are_exact_where_numbers_are_enough(case: str, landmarks: int | None, tmp_path: Path) -> None:
    """With a number for every parameter; and with every training example a landmark of wide sketches. But for
    float16."""
    context = CONTEXTS[case]()
    write_store(context, tmp_path, k=4096, landmarks=landmarks, shard_rows=3, batch_size=2)
    found, exact = stored_scores(context, tmp_path), attribute(context, "gradient_step")
    error = np.abs(found.scores - exact.scores).max()
    assert error < 1e-3 * np.sqrt(np.square(exact.scores).mean())
    same = ("method", "units", "covers", "weighing", "coverage", "tables", "scale", "steps")
    assert [getattr(found, name) for name in same] == [getattr(exact, name) for name in same]


@pytest.mark.parametrize("processes", [1, 2])
def test_sizes_from_a_sample(processes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores are the exact ones in the metric of batches that are drawn from the sample."""
    context = small()
    options: dict[str, Any] = {"k": 4096, "landmarks": 0, "shard_rows": 3, "size_examples": 6, "seed": 2}
    for process in (*range(1, processes + 1), *range(1, processes)):
        write_store(context, tmp_path, share=(process, processes), **options)
    assert ("one over 6 examples for Adam's sizes" in capsys.readouterr().out) == (processes == 1)
    found = stored_scores(context, tmp_path)
    assert found.provenance["size_examples"] == 6
    sample = [context.train[i] for i in drawn(10, 6, 2)]
    model, train, test = context.objective, context.train, context.test
    exact = adam_similarity(model, train, test, batch=4, population=sample).scores
    assert np.abs(found.scores - exact).max() < 1e-3 * np.sqrt(np.square(exact).mean())
    assert "size_examples" not in write_and_read(context, tmp_path / "all", size_examples=10).metric


@pytest.mark.parametrize("model", ["network", "bert"])
def test_in_the_metric_of_ekfac(model: str, tmp_path: Path) -> None:
    context = {"network": small, "bert": CONTEXTS["bert, full"]}[model]()
    write_store(context, tmp_path, k=8192, landmarks=0, metric="ekfac", shard_rows=3, batch_size=8)
    found, exact = stored_scores(context, tmp_path), attribute(context, "ekfac")
    assert np.abs(found.scores - exact.scores).max() < 2e-3 * np.sqrt(np.square(exact.scores).mean())
    same = ("method", "units", "weighing", "coverage", "tables")
    assert [getattr(found, name) for name in same] == [getattr(exact, name) for name in same]
    store = GradientStore(tmp_path)
    check_options(store, {"name": "ekfac"}, None)
    with pytest.raises(ValueError, match="has the scores of ekfac, not of gradient_step: give method=ekfac"):
        check_options(store, {"name": "gradient_step"}, None)
    with pytest.raises(RunDataError, match="with other metric"):
        write_store(context, tmp_path, k=8192, landmarks=0, shard_rows=3)
    with pytest.raises(RunDataError, match="is not there yet: the process of shard=1/2 makes it"):
        write_store(context, tmp_path / "two", k=8, metric="ekfac", shard_rows=3, share=(2, 2))
    with pytest.raises(ValueError, match="metric must be step or ekfac"):
        write_store(context, tmp_path / "two", metric="other")  # type: ignore[arg-type]


def write_and_read(context: AttributionContext, folder: Path, **options: Any) -> Manifest:
    write_store(context, folder, k=16, **options)
    return GradientStore(folder).manifest


def test_new_test_examples_blocks_and_factors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = small()
    write_store(context, tmp_path, k=64, landmarks=0, shard_rows=4)
    store = GradientStore(tmp_path)
    new = points(6, seed=9)
    projected = store.project(context.objective, new)
    scores = store.scores_of(projected).scores
    exact = attribute(replace(context, test=new, test_texts=[""] * 6), "gradient_step").scores
    np.testing.assert_allclose(scores, exact, atol=2e-3 * np.abs(exact).max())
    factors = store.factors(projected)
    assert [part.shape for part in factors.train] == [(4, 64), (4, 64), (2, 64)]
    assert all(isinstance(part, np.memmap) and part.dtype == np.float16 for part in factors.train)
    products = [(s[:, None] * t) @ factors.test.T for t, s in zip(*factors[:2], strict=True)]
    np.testing.assert_allclose(np.concatenate(products), scores, rtol=1e-3, atol=1e-3 * np.abs(exact).max())
    monkeypatch.setattr("simfluence.attribution.store._BLOCK", 3 * 64)
    assert [len(block) for _, block in store.blocks()] == [3, 1, 3, 1, 2]
    np.testing.assert_allclose(store.scores_of(projected).scores, scores, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr("simfluence.attribution.store.LARGEST", 50)
    with pytest.raises(ValueError, match=r"10 training and 6 test examples would take .* use `factors`"):
        store.scores_of(projected)
    with pytest.raises(ValueError, match=r"expected gradients \[test, 64\] of `project`, got \[6, 3\]"):
        store.scores_of(projected[:, :3])


def test_what_a_store_has_of_its_sets_test_examples(tmp_path: Path) -> None:
    """As it has attributes of scores, simulators take it as scores."""
    context = small()
    write_store(context, tmp_path, k=16)
    store = GradientStore(tmp_path)
    with pytest.raises(RunDataError, match=r"scores.safetensors: `simfluence gradients` leaves it there"):
        _ = store.scores
    scores = stored_scores(context, tmp_path)
    scores.save(tmp_path / OF_STORE)
    for name in ("weighing", "scale", "steps", "tables"):
        assert getattr(store, name) == getattr(scores, name)
    np.testing.assert_array_equal(store.scores, scores.scores)
    again = pickle.loads(pickle.dumps(GradientStore(tmp_path)))
    assert len(list(again.blocks())) == 1


def test_the_projection_of_an_example_does_not_depend_on_the_others(tmp_path: Path) -> None:
    context = context_of(bert(), texts(7), texts(3, seed=1), ADAM)
    write_store(context, tmp_path, k=32, landmarks=5)
    store = GradientStore(tmp_path)
    together = store.project(context.objective, context.train)
    alone = np.concatenate([store.project(context.objective, [example]) for example in context.train])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5 * np.abs(together).max())
    stored = np.concatenate([block for _, block in store.blocks()])
    np.testing.assert_allclose(stored, together, atol=2**-11 * np.abs(together).max())


# ------------------------------------------------------------------------------------- float16


def test_float16_neither_overflows_nor_underflows() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([1e-300, 1e-30, 1e-9, 1.0, 1e9, 1e30, 1e300])
    gradients = random.standard_normal((7, 500)) * sizes[:, None]
    narrow, scale = narrowed(gradients)
    assert np.isfinite(narrow).all()
    error = np.abs(narrow.astype(np.float64) * scale[:, None] - gradients).max(1)
    assert (error <= 2.0**-11 * np.abs(gradients).max(1)).all()
    spread, scale = narrowed(np.array([[1.0, 1e-4, 1e-8], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(spread[0].astype(np.float64) * scale[0], [1.0, 1e-4, 1e-8], rtol=1e-3)
    assert not spread[1].any()
    with pytest.raises(RunDataError, match="gradient of example 1 of this shard is not finite"):
        narrowed(np.array([[1.0, 2.0], [np.nan, 0.0]]))


# ------------------------------------------------------------------------- refused or incomplete


def test_a_store_of_something_else_is_refused(tmp_path: Path) -> None:
    context, folder = small(), tmp_path / "store"
    write_store(context, folder, k=16, shard_rows=4)
    for other, options, message in (
        (small(seed=1), {}, "with other weights"),
        (replace(context, tables=TableFingerprints(train="other")), {}, "with other train"),
        (small(SGD), {}, "with other metric"),
        (context, {"k": 32}, r"with other k \(16 instead of 32\): choose another folder"),
        (context, {"seed": 1}, "with other seed"),
        (context, {"size_examples": 5}, "with other metric"),
        (context, {"parameters": ["3"]}, "with other parameters"),
    ):
        with pytest.raises(RunDataError, match=message):
            write_store(other, folder, **{"k": 16, "shard_rows": 4, **options})
    store = GradientStore(folder)
    with pytest.raises(RunDataError, match="is of other weights: those of step 0 of its run"):
        store.project(network(seed=1), context.test)
    projected = store.project(context.objective, context.test)
    with pytest.raises(RunDataError, match="are of other training examples than these tables"):
        store.scores_of(projected, TableFingerprints(train="other"))
    with pytest.raises(RunDataError, match="gradients of 10 training examples, this run has 9"):
        stored_scores(replace(context, train=context.train[:9]), folder)
    with pytest.raises(RunDataError, match="are of other training examples than these tables"):
        stored_scores(replace(context, tables=TableFingerprints(train="other"), test=None), folder)  # type: ignore[arg-type]
    write_store(small(seed=1), tmp_path / "other", k=16, shard_rows=4)
    os.replace(shard_file(tmp_path / "other", 1), shard_file(folder, 1))
    with pytest.raises(RunDataError, match=r"shard-00001.* belongs to a store of other weights"):
        GradientStore(folder)
    with pytest.raises(RunDataError, match=r"shard-00001.* belongs to a store of other weights"):
        write_store(context, folder, k=16, shard_rows=4)
    with pytest.raises(RunDataError, match="is no store of gradients: `simfluence gradients` makes one"):
        GradientStore(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"landmarks": 11}, "landmarks must be 0 or more"),
        ({"size_examples": 0}, "size_examples must be at least 1"),
        ({"share": (3, 2)}, "shard must be j/p"),
        ({"shard_rows": 0}, "shard_rows must be at least 1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_store(small(), tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_store_that_is_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = small()
    said = write_store(context, tmp_path, k=16, shard_rows=4)
    assert "10 of 10 training examples in 3 of 3 shards, 16 numbers each, of 5 parameters (100% of" in said
    cost = capsys.readouterr().out
    assert (
        "to write: one pass over 10 training examples (8 of them landmarks), one over 10 examples for Adam's"
        " sizes; batches of 8 examples; about" in cost
    )
    before = shard_file(tmp_path, 2).stat().st_mtime_ns
    shard_file(tmp_path, 1).unlink()
    with pytest.raises(RunDataError, match=r"lacks 1 of 3 shards \(shard-00001"):
        GradientStore(tmp_path)
    write_store(context, tmp_path, k=16, shard_rows=4)
    assert "one pass over 1 training examples" in capsys.readouterr().out
    assert shard_file(tmp_path, 2).stat().st_mtime_ns == before
    assert len(GradientStore(tmp_path)) == 10


# ------------------------------------------------------------------------------ several processes

SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}, {here!r}]
from test_store import small
from simfluence.attribution.store_writing import write_store

context = small()
losses = context.objective.losses

def slow(examples):
    time.sleep({pause})
    return losses(examples)

context.objective.losses = slow
options = dict(k=16, landmarks=4, shard_rows=1, batch_size=1)
print(write_store(context, sys.argv[1], share={share}, wait=60, **options))
"""


def started(folder: Path, share: tuple[int, int] = (1, 1), pause: float = 0.05) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    script = SCRIPT.format(tests=str(here.parent), here=str(here), share=share, pause=pause)
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script, str(folder)], **options)


def same_file(ours: Path, theirs: Path) -> bool:
    """Whether both hold the same arrays, to the last bit, of the same store."""
    a, b = mapped(ours), mapped(theirs)
    same = a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
    return same and read_about(ours) == read_about(theirs)


def test_killed_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """The store is the same to the last bit as one that was never interrupted."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_store(small(), whole, k=16, landmarks=4, shard_rows=1, batch_size=1)
    process = started(cut, pause=0.2)
    until = time.monotonic() + 120
    while not shard_file(cut, 2).exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    written = {file.name: file.stat().st_mtime_ns for file in cut.glob("shard-*.safetensors")}
    assert 3 <= len(written) < 10
    cut_off = cut / "shard-00009.safetensors.1.tmp"
    cut_off.write_bytes(b"half a shard")
    write_store(small(), cut, k=16, landmarks=4, shard_rows=1, batch_size=1)
    for name, changed in written.items():
        assert (cut / name).stat().st_mtime_ns == changed
    assert sorted(file.name for file in cut.iterdir()) == sorted(file.name for file in whole.iterdir())
    for file in whole.glob("*.safetensors"):
        assert same_file(file, cut / file.name), file.name


def test_two_processes_write_a_store_together(tmp_path: Path) -> None:
    context, alone = small(), tmp_path / "alone"
    write_store(context, alone, k=16, landmarks=4, shard_rows=1)
    processes = [started(tmp_path / "both", (number, 2)) for number in (1, 2)]
    for process in processes:
        out, error = process.communicate(timeout=400)
        assert process.returncode == 0, error
        assert "shards, 16 numbers each" in out
    assert not list((tmp_path / "both").glob("sums-*"))
    both, one = (stored_scores(context, tmp_path / name).scores for name in ("both", "alone"))
    np.testing.assert_allclose(both, one, rtol=1e-3, atol=1e-3 * np.abs(one).max())


def test_one_process_after_the_other(tmp_path: Path) -> None:
    """Without waiting, the sums of all come first, and the gradients when they are asked for again. Shards
    from elsewhere are copied into the folder."""
    context = small()
    options: dict[str, Any] = {"k": 16, "shard_rows": 4}
    said = write_store(context, tmp_path, share=(1, 2), **options)
    assert "those of other shares are not yet: run this again" in said
    said = write_store(context, tmp_path, share=(2, 2), **options)
    assert "gradients of 4 of 10 training examples in 1 of 3 shards" in said
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shard_file(tmp_path, 1).rename(shard_file(moved, 1))
    said = write_store(context, tmp_path, share=(1, 2), **options)
    assert "gradients of 6 of 10 training examples in 2 of 3 shards" in said
    shard_file(moved, 1).rename(shard_file(tmp_path, 1))
    expected = tmp_path / "expected"
    write_store(context, expected, **options)
    for shard in range(3):
        ours, theirs = (mapped(shard_file(folder, shard)) for folder in (tmp_path, expected))
        np.testing.assert_allclose(ours["scale"], theirs["scale"], rtol=1e-6)


def test_more_processes_than_shards(tmp_path: Path) -> None:
    context = small()
    for process in (3, 2):
        write_store(context, tmp_path, k=16, shard_rows=5, share=(process, 3))
    assert "5 of 10" in write_store(context, tmp_path, k=16, shard_rows=5, share=(1, 3))
    assert "10 of 10" in write_store(context, tmp_path, k=16, shard_rows=5, share=(2, 3))
    assert not list(tmp_path.glob("sums-*"))
    assert len(GradientStore(tmp_path)) == 10


def test_sums_of_a_process_that_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with the sums that it saved, none of them twice."""
    context = small()
    monkeypatch.setattr("simfluence.attribution.store_sizes._SAVE_EVERY", -1.0)
    write_store(context, tmp_path / "whole", k=16, shard_rows=2)
    losses, sums = context.objective.losses, tmp_path / "cut" / "sums-1-of-1.safetensors"

    def failing(examples: Any) -> torch.Tensor:
        if sums.exists() and read_about(sums)["examples"] == "4":
            raise KeyboardInterrupt
        return losses(examples)

    context.objective.losses = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        write_store(context, tmp_path / "cut", k=16, shard_rows=2)
    assert not (tmp_path / "cut" / SCALES).exists()
    context.objective.losses = losses  # type: ignore[method-assign]
    write_store(context, tmp_path / "cut", k=16, shard_rows=2)
    assert same_file(*(tmp_path / name / SCALES for name in ("whole", "cut")))
