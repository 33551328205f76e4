"""Data attribution: one method a file, all returning InfluenceScores in one sign convention."""

from simfluence.attribution.foreign import import_scores
from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.sparsity import power_law_tail, share_of_top, sparsity

__all__ = [
    "InfluenceScores",
    "gradient_similarity",
    "import_scores",
    "power_law_tail",
    "share_of_top",
    "sparsity",
]
