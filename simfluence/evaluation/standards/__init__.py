"""Attribution's standards on retrained subsets: one metric a file, pure functions of arrays.

Scores are float [train, test], positive where training on i lowers the loss of z. Every standard but ``auc``
gives one number a test example; ``mean_with_interval`` makes a cell of a table of them.
"""

from simfluence.evaluation.standards.bank import SubsetBank, random_subsets
from simfluence.evaluation.standards.intervals import Estimate, agreement, ceiling, mean_with_interval
from simfluence.evaluation.standards.lds import lds
from simfluence.evaluation.standards.leave_one_out import leave_one_out_correlation
from simfluence.evaluation.standards.planted import auc
from simfluence.evaluation.standards.removal import brittleness, removal_curve, top_examples
from simfluence.evaluation.standards.retrieval import recall_at_k, reciprocal_rank

__all__ = [
    "Estimate",
    "SubsetBank",
    "agreement",
    "auc",
    "brittleness",
    "ceiling",
    "lds",
    "leave_one_out_correlation",
    "mean_with_interval",
    "random_subsets",
    "recall_at_k",
    "reciprocal_rank",
    "removal_curve",
    "top_examples",
]
