"""How well simulated losses agree with recorded ones. Pure functions of arrays (analysis/METHODS.md,
"Evaluation").

Shapes: losses [run, step + 1, test]; row 0 is before the first step and given to the simulator, so
errors are over steps 1 .. T. Entries where the truth is not finite (a run that was shorter, a step
without evaluation) are left out; a test example of which nothing is known in a run has NaN there, never 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def all_steps_mse(true: Array, simulated: Array) -> Array:
    """(1/T) Σ_t (L_t(z) − L̂_t(z))², float [run, test]; average over z for the published metric."""
    return _mean_over_steps(true, simulated, np.square)


def all_steps_mae(true: Array, simulated: Array) -> Array:
    """(1/T) Σ_t |L_t(z) − L̂_t(z)|, float [run, test]."""
    return _mean_over_steps(true, simulated, np.abs)


def final_loss(losses: Array, known: Array | None = None) -> Array:
    """float [run, test]: the loss of every run and test example at the last step where ``known`` is finite.

    known : float [run, step + 1, test], by default the losses themselves. To compare simulated losses with
        recorded ones, pass the recorded ones: the last steps of a run may not have been evaluated. NaN where
        nothing is known.
    """
    finite = np.isfinite(losses if known is None else known)
    last = finite.shape[1] - 1 - np.argmax(finite[:, ::-1], axis=1)
    values = np.take_along_axis(losses, last[:, None], axis=1)[:, 0]
    return np.where(finite.any(axis=1), values, np.nan)


def final_step_spearman(true_final: Array, simulated_final: Array) -> Array:
    """Spearman correlation over test examples of true and simulated final losses, float [run].

    NaN where either is the same for all test examples.
    """
    return _spearman(true_final, simulated_final)


def across_runs_spearman(true_final: Array, simulated_final: Array) -> Array:
    """Spearman correlation over runs, float [test]: is it known which curriculum is better?

    The linear datamodelling score over curricula. NaN where either is the same in all runs.
    """
    return _spearman(true_final.T, simulated_final.T)


def counterfactual_skill(mse: Array, baseline_mse: Array) -> float:
    """1 − MSE / MSE(mean trajectory): 0 is the mean trajectory, 1 is perfect.

    Both arguments are [run] or [run, test] over the same runs; the ratio is that of their means.
    """
    return float(1 - np.nanmean(mse) / np.nanmean(baseline_mse))


def _mean_over_steps(true: Array, simulated: Array, of: np.ufunc) -> Array:
    """[run, test]; NaN where no loss after the first step is known."""
    known = np.isfinite(true[:, 1:])
    with np.errstate(invalid="ignore", over="ignore"):
        errors = of(np.where(known, true[:, 1:] - simulated[:, 1:], 0.0))
        return np.asarray(errors.sum(axis=1) / known.sum(axis=1), np.float64)


def _spearman(true: Array, simulated: Array) -> Array:
    """Over the last axis, row by row; pairs with a value that is not finite are left out."""
    from scipy import stats  # takes long to import

    result = np.full(len(true), np.nan)
    for row, (a, b) in enumerate(zip(true, simulated, strict=True)):
        known = np.isfinite(a) & np.isfinite(b)
        if known.sum() > 1 and np.ptp(a[known]) > 0 and np.ptp(b[known]) > 0:
            result[row] = stats.spearmanr(a[known], b[known]).statistic
    return result
