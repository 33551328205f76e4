"""Metrics against naive loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from simfluence.evaluation import metrics


@pytest.fixture
def losses() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(3, 6, 5))
    true[1, 4:] = np.nan  # a run that was shorter
    return true, rng.normal(size=(3, 6, 5))


def test_errors_over_all_steps(losses) -> None:
    true, simulated = losses
    mse, mae = metrics.all_steps_mse(true, simulated), metrics.all_steps_mae(true, simulated)
    for run in range(3):
        for z in range(5):
            errors = [
                true[run, t, z] - simulated[run, t, z] for t in range(1, 6) if np.isfinite(true[run, t, z])
            ]
            assert mse[run, z] == pytest.approx(sum(e * e for e in errors) / len(errors))
            assert mae[run, z] == pytest.approx(sum(abs(e) for e in errors) / len(errors))


def test_the_initial_loss_does_not_count(losses) -> None:
    true, simulated = losses
    changed = simulated.copy()
    changed[:, 0] = 1e6
    np.testing.assert_array_equal(
        metrics.all_steps_mse(true, simulated), metrics.all_steps_mse(true, changed)
    )


def test_final_losses_are_the_last_finite_ones(losses) -> None:
    final = metrics.final_loss(losses[0])
    np.testing.assert_array_equal(final[0], losses[0][0, 5])
    np.testing.assert_array_equal(final[1], losses[0][1, 3])


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_test_example_without_finite_losses_has_no_metrics(losses, lost) -> None:
    """Nothing is known of it in that run: NaN, never 0; the others are as they were."""
    true, simulated = losses
    holed = true.copy()
    holed[0, 1:, 2] = lost  # but for the initial loss, which does not count
    for metric in (metrics.all_steps_mse, metrics.all_steps_mae):
        found, before = metric(holed, simulated), metric(true, simulated)
        assert np.isnan(found[0, 2])
        before[0, 2] = np.nan
        np.testing.assert_array_equal(found, before)
    holed[0, 0, 2] = np.nan
    final = metrics.final_loss(holed)
    assert np.isnan(final[0, 2])
    assert np.isfinite(np.delete(final, 2, axis=1)).all()
    known = [0, 1, 3, 4]
    expected = spearmanr(final[0, known], metrics.final_loss(simulated)[0, known]).statistic
    found = metrics.final_step_spearman(final, metrics.final_loss(simulated))
    assert found[0] == pytest.approx(expected)


def test_skill_leaves_out_what_is_not_known() -> None:
    mse, baseline = np.array([[1.0, np.nan], [2.0, 4.0]]), np.array([[2.0, np.nan], [4.0, 8.0]])
    assert metrics.counterfactual_skill(mse, baseline) == pytest.approx(0.5)


def test_spearman_over_tests_and_over_runs() -> None:
    rng = np.random.default_rng(1)
    true, simulated = rng.normal(size=(2, 6, 9))
    over_tests = metrics.final_step_spearman(true, simulated)
    over_runs = metrics.across_runs_spearman(true, simulated)
    np.testing.assert_allclose(over_tests, [spearmanr(true[r], simulated[r]).statistic for r in range(6)])
    np.testing.assert_allclose(
        over_runs, [spearmanr(true[:, z], simulated[:, z]).statistic for z in range(9)]
    )


def test_constant_predictions_have_no_correlation() -> None:
    assert np.isnan(metrics.final_step_spearman(np.arange(4.0)[None], np.ones((1, 4)))).all()


def test_skill() -> None:
    baseline = np.array([1.0, 3.0])
    assert metrics.counterfactual_skill(baseline, baseline) == 0
    assert metrics.counterfactual_skill(np.zeros(2), baseline) == 1
    assert metrics.counterfactual_skill(np.array([1.0, 5.0]), baseline) == pytest.approx(-0.5)
