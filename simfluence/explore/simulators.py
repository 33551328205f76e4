"""Fitted simulators as plain arrays, for the page's JavaScript (web/simulate.js has the same equations).

Arrays with a row for every training example are most of the page: large ones are float32, all others float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.runs.schedule import RelativeRates
from simfluence.simulators import AutoSimulator, Simulator
from simfluence.simulators.baselines import MeanTrajectory, Persistence
from simfluence.simulators.dynamics.model import TrainingDynamics
from simfluence.simulators.dynamics.simulator import DynamicsSimulator
from simfluence.simulators.effects.model import (
    INITIAL_ORDERS,
    SCORE_ORDERS,
    EffectsModel,
    basis_norms,
)
from simfluence.simulators.effects.simulator import EffectsSimulator
from simfluence.simulators.markov.simulator import MarkovSimulator

TAKEN = "auto, effects, dynamics, mean_trajectory, persistence, linear, additive and multiplicative"

LARGE = 100_000
"""Arrays of more numbers are rounded to float32, which moves predictions by about 1e-7 of themselves."""


def exported(simulator: Simulator) -> dict[str, Any]:
    """The members whose mean a simulator predicts, and the units of their losses.

    Raises ValueError for a simulator that the page has no equations of.
    """
    members, offset, scale = [simulator], 0.0, 1.0
    if isinstance(simulator, AutoSimulator):
        members = simulator.members_
        offset, scale = simulator.units_.offset, simulator.units_.scale
    return {"members": [_member(member) for member in members], "offset": offset, "scale": scale}


def _member(simulator: Simulator) -> dict[str, Any]:
    if isinstance(simulator, EffectsSimulator):
        dynamics = simulator.dynamics_
        return {
            "kind": "effects",
            **_effects(simulator.model_),
            "dynamics": None if dynamics is None else _dynamics(dynamics),
            "rates": _rates(simulator.rates_),
        }
    if isinstance(simulator, DynamicsSimulator):
        return {
            "kind": "dynamics",
            "dynamics": _dynamics(simulator.dynamics_),
            "initial": simulator.initial_,
            "rates": _rates(simulator.rates_),
        }
    if isinstance(simulator, MarkovSimulator):
        slope = simulator.A_ - 1 / simulator.batch_size_
        return {
            "kind": "linear",
            "slope": _by_example(slope) if simulator.free_slope else None,
            "intercept": _by_example(simulator.B_) if simulator.free_intercept else None,
            "batchSize": simulator.batch_size_,
        }
    if isinstance(simulator, MeanTrajectory):
        return {"kind": "mean", "mean": simulator.mean_}
    if isinstance(simulator, Persistence):
        return {"kind": "constant"}
    raise ValueError(f"the page cannot compute the simulator {simulator.name!r}; it takes {TAKEN}")


def _effects(model: EffectsModel) -> dict[str, Any]:
    """The effects and the scores' share of them, both as coefficients of Legendre polynomials."""
    effects = _legendre_effects(model)
    some = bool(effects.any())
    settings = model.settings
    initial = model.coefficients[SCORE_ORDERS * len(model.scores) :]
    return {
        "link": settings.link,
        "beta": settings.momentum.beta,
        "biasCorrection": settings.momentum.bias_correction,
        "withRates": settings.with_rates,
        "batchSize": model.batch_size,
        "effects": _by_example(effects.transpose(1, 0, 2)) if some else None,  # [train, order, test]
        "orders": len(effects),
        "center": np.einsum("i,kiz->kz", model.center, effects) if some else None,
        "drift": model.drift / np.diff(model.grid)[:, None],  # a step
        "grid": model.grid,
        "average": model.average,
        "initial": model.initial,
        "initialSlopes": initial[:INITIAL_ORDERS] if model.with_initial else None,
        "calibration": model.calibration,
        "priorAverage": model.prior_average if len(model.prior_slope) else None,
        "priorSlope": model.prior_slope if len(model.prior_slope) else None,
    }


def _legendre_effects(model: EffectsModel) -> npt.NDArray[np.float64]:
    """float [order, train, test]: Σ_k φ_k(t) B_k + Σ_q S_q Σ_k P_k(t) c_qk, sorted by P_k."""
    own = len(model.effects)
    orders = max(own, SCORE_ORDERS if len(model.scores) else 0)
    found = np.zeros((orders, *model.effects.shape[1:]))
    found[:own] = model.effects * basis_norms(model.settings.decay)[:, None, None]
    for number, scores in enumerate(model.scores):
        for order in range(SCORE_ORDERS):
            found[order] += scores * model.coefficients[number * SCORE_ORDERS + order]
    return found


def _dynamics(dynamics: TrainingDynamics) -> dict[str, Any]:
    return {
        "train": _by_example(dynamics.train),
        "metric": dynamics.metric,
        "test": dynamics.test * dynamics.metric,
        "profile": dynamics.profile,
        "kept": dynamics.kept,
        "beta": dynamics.momentum.beta,
        "biasCorrection": dynamics.momentum.bias_correction,
        "feedback": dynamics.feedback,
        "growth": dynamics.growth,
        "start": dynamics.start,
        "average": dynamics.average,
        "usual": dynamics.usual,
    }


def _rates(rates: RelativeRates) -> dict[str, Any]:
    return {"schedule": rates.schedule, "usual": None if np.isnan(rates.usual) else rates.usual}


def _by_example(values: npt.NDArray[np.float64]) -> npt.NDArray[np.floating]:
    return values.astype(np.float32) if values.size > LARGE else values
