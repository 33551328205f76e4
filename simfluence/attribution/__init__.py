"""Data attribution: one method a file, all returning InfluenceScores in one sign convention.

Importing this package imports the file of every method, and so registers it (:mod:`.registry`). The formulas
of all methods are in analysis/METHODS.md, "Attribution".
"""

from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.along_run import along_run, scores_along_run
from simfluence.attribution.checkpoints import Checkpoint, recorded_checkpoints
from simfluence.attribution.ekfac import (
    EKFACFactors,
    LayerTokenScores,
    ekfac,
    ekfac_by_layer_and_token,
    ekfac_factors,
)
from simfluence.attribution.gradient_step import gradient_step
from simfluence.attribution.gradients import example_gradients, gradient_similarity
from simfluence.attribution.importing import import_scores
from simfluence.attribution.influence import influence
from simfluence.attribution.inverse import ConjugateGradient, ConvergenceWarning, Exact, Lissa
from simfluence.attribution.metagradients import metagradients
from simfluence.attribution.methods import attribute
from simfluence.attribution.ngrams import ngram_similarity
from simfluence.attribution.objective import Classification, LossesOnly, Objective, Regression
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.pbrf import proximal_bregman_response
from simfluence.attribution.registry import METHODS, AttributionContext, method
from simfluence.attribution.representations import representation_similarity
from simfluence.attribution.sparsity import power_law_tail, share_of_top, sparsity
from simfluence.attribution.store import GradientStore, stored_scores
from simfluence.attribution.store_writing import write_store
from simfluence.attribution.text_similarity import bm25, candidates, filtered, tfidf
from simfluence.attribution.tracin import tracin
from simfluence.attribution.trak import trak
from simfluence.attribution.unrolled import unrolled
from simfluence.scores import InfluenceScores

__all__ = [
    "METHODS",
    "AttributionContext",
    "Checkpoint",
    "Classification",
    "ConjugateGradient",
    "ConvergenceWarning",
    "EKFACFactors",
    "Exact",
    "GradientStore",
    "InfluenceScores",
    "LayerTokenScores",
    "Lissa",
    "LossesOnly",
    "Objective",
    "Regression",
    "adam_similarity",
    "along_run",
    "attribute",
    "bm25",
    "candidates",
    "ekfac",
    "ekfac_by_layer_and_token",
    "ekfac_factors",
    "example_gradients",
    "filtered",
    "gradient_similarity",
    "gradient_step",
    "import_scores",
    "influence",
    "metagradients",
    "method",
    "ngram_similarity",
    "power_law_tail",
    "proximal_bregman_response",
    "recorded_checkpoints",
    "representation_similarity",
    "scores_along_run",
    "selected_parameters",
    "share_of_top",
    "sparsity",
    "stored_scores",
    "tfidf",
    "tracin",
    "trak",
    "unrolled",
    "write_store",
]
