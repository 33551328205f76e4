"""Data attribution: one method a file, all returning InfluenceScores in one sign convention."""

from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.foreign import import_scores
from simfluence.attribution.gradients import example_gradients, gradient_similarity
from simfluence.attribution.objective import Classification, LossesOnly, Objective, Regression
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.sparsity import power_law_tail, share_of_top, sparsity

__all__ = [
    "Checkpoint",
    "Classification",
    "InfluenceScores",
    "LossesOnly",
    "Objective",
    "Regression",
    "example_gradients",
    "gradient_similarity",
    "import_scores",
    "power_law_tail",
    "recorded_checkpoints",
    "selected_parameters",
    "share_of_top",
    "sparsity",
]
