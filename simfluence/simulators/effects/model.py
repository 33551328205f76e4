"""A fitted deviation model, and what it says of other curricula. The equation stands in regression.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simfluence.curriculum import Curriculum
from simfluence.simulators.effects.features import Features, progress_basis

Array = npt.NDArray[np.float64]

SCORE_ORDERS, INITIAL_ORDERS = 3, 2  # P_0 … of the means
LINKS = ("identity", "log_odds")
_LOSS_FLOOR = 1e-2  # log-odds of smaller losses are all noise


def link(losses: Array, name: str) -> Array:
    """g(L), log(eᴸ − 1) as L + log(1 − e⁻ᴸ): nothing overflows."""
    if name == "identity":
        return losses
    floored = np.maximum(losses, _LOSS_FLOOR)
    return np.asarray(floored + np.log(-np.expm1(-floored)), np.float64)


def unlink(values: Array, name: str) -> Array:
    """g⁻¹"""
    return values if name == "identity" else np.logaddexp(0.0, values)


@dataclass(frozen=True)
class Model:
    """What a fit found; everything that simulating takes. Link space throughout.

    effects : b [k, column, test]. mean_coefficients : c [q, test].
    drift : μ [interval, test]. center : mean features per step [column]; scale : [column].
    average : mean over the runs of g(L) [point, test]. calibration : [point], see ``calibrated``.
    initial : mean initial losses [test]. predicted_before, slope : of the prior (prior.py), [step, test] and
    [point]; empty without one.
    """

    effects: Array
    mean_coefficients: Array
    drift: Array
    center: Array
    scale: Array
    average: Array
    calibration: Array
    initial: Array
    predicted_before: Array
    slope: Array


def legendre(steps: Array, total: int) -> Array:
    """P_k of training progress, float [step, k]."""
    position = np.clip((2 * np.asarray(steps, np.float64) - 1) / total - 1, -1.0, 1.0)
    powers = np.polynomial.legendre.legvander(position, max(SCORE_ORDERS, INITIAL_ORDERS) - 1)
    return np.asarray(powers, np.float64)


def average_effects(
    model: Model, features: Features, scores: Array, decay: float, link_name: str, total: int
) -> Array:
    """B on log(eᴸ − 1) of a use of a training example, averaged over training, float [train, test].

    Its own effect, that of its groups and that of the scores. Where effects are on losses they are
    carried over at the initial ones, dL = (1 − e⁻ᴸ) d log(eᴸ − 1).
    """
    steps = np.arange(1.0, total + 1)
    basis = progress_basis(steps, total, decay).mean(0)
    columns = np.tensordot(basis, model.effects, axes=1) * model.scale[:, None]
    effects = np.array(columns[: features.n_train])
    start = 0
    for block, width in zip(features.blocks, features.widths, strict=True):
        if block == "groups" and features.groups is not None:
            effects += features.groups @ columns[start : start + width]
        start += width
    powers = legendre(steps, total).mean(0)[:SCORE_ORDERS]
    for q, score in enumerate(scores):
        effects += score * (powers @ model.mean_coefficients[q * SCORE_ORDERS : (q + 1) * SCORE_ORDERS])
    if link_name == "identity":
        effects /= 1 - np.exp(-np.maximum(model.initial, _LOSS_FLOOR))
    return effects


def simulate(
    model: Model,
    features: Features,
    scores: Array,
    with_initial: bool,
    decay: float,
    link_name: str,
    grid: npt.NDArray[np.int64],
    curricula: list[Curriculum],
    initial_loss: Array,
    predicted_before: Array | None = None,
    use_weights: Sequence[Array] | None = None,
) -> Array:
    """Losses [run, step + 1, test] under a model; after the recorded steps the drift stands still.

    predicted_before : losses [run, step + 1, test] by other means, for a model with an prior (prior.py).
    use_weights : one [use] a curriculum (blocks.py).
    """
    steps, total = max(len(curriculum) for curriculum in curricula), int(grid[-1])
    columns = np.zeros((len(curricula), steps, len(model.center)))
    for number, curriculum in enumerate(curricula):
        weight = use_weights[number] if use_weights else None
        columns[number, : len(curriculum)] = features(curriculum, weight) - model.center
    at = np.arange(1, steps + 1)
    basis = progress_basis(at, total, decay)
    powers = legendre(at.astype(np.float64), total)
    start = link(initial_loss, link_name)
    which = np.minimum(np.searchsorted(grid, at), len(grid) - 1) - 1
    share = np.where(at <= total, 1 / np.diff(grid)[which], 0.0)
    examples = features.n_train
    levels = np.empty((len(curricula), steps + 1, len(model.initial)))
    levels[:, 0] = start
    for t in range(steps):
        rows = columns[:, t]
        change = (rows * model.scale) @ np.tensordot(basis[t], model.effects, axes=1)
        change += share[t] * model.drift[which[t]]
        q = 0
        for score in scores:
            weights = powers[t, :SCORE_ORDERS] @ model.mean_coefficients[q : q + SCORE_ORDERS]
            change += (rows[:, :examples] @ score) * weights
            q += SCORE_ORDERS
        if with_initial:
            weights = powers[t, :INITIAL_ORDERS] @ model.mean_coefficients[q:]
            change += (start - model.initial) * weights
        levels[:, t + 1] = levels[:, t] + change
    inside = np.minimum(np.arange(steps + 1), total)
    average = np.stack([np.interp(inside, grid, values) for values in model.average.T], axis=1)
    calibration = np.interp(inside, grid, model.calibration)[:, None]
    levels = average + calibration * (levels - average)
    if predicted_before is not None:
        deviation = (
            link(predicted_before, link_name)
            - model.predicted_before[np.minimum(inside, len(model.predicted_before) - 1)]
        )
        levels += np.interp(inside, grid, model.slope)[:, None] * deviation
    return unlink(levels, link_name)
