"""EK-FAC: the Fisher matrix of any model, approximated layer by layer, and influence scores with it."""

from simfluence.attribution.ekfac.factors import EKFACFactors
from simfluence.attribution.ekfac.fitting import ekfac_factors
from simfluence.attribution.ekfac.method import layers_and_tokens
from simfluence.attribution.ekfac.scores import LayerTokenScores, ekfac, ekfac_by_layer_and_token

__all__ = [
    "EKFACFactors",
    "LayerTokenScores",
    "ekfac",
    "ekfac_by_layer_and_token",
    "ekfac_factors",
    "layers_and_tokens",
]
