"""Data attribution: one method a file, all returning InfluenceScores in one sign convention."""

from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.tangent import tangent

__all__ = ["InfluenceScores", "gradient_similarity", "tangent"]
