"""Data attribution: one method a file, all returning InfluenceScores in one sign convention."""

from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.ekfac import EKFACFactors, ekfac, ekfac_by_layer_and_token, ekfac_factors
from simfluence.attribution.gradients import example_gradients, gradient_similarity
from simfluence.attribution.objective import Classification, LossesOnly, Objective, Regression
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.tracin import tracin

__all__ = [
    "Checkpoint",
    "Classification",
    "EKFACFactors",
    "InfluenceScores",
    "LossesOnly",
    "Objective",
    "Regression",
    "ekfac",
    "ekfac_by_layer_and_token",
    "ekfac_factors",
    "example_gradients",
    "gradient_similarity",
    "recorded_checkpoints",
    "selected_parameters",
    "tracin",
]
