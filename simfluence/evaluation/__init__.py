"""How well simulators predict training: metrics, the protocol, tables."""

from simfluence.evaluation.protocol import Evaluation, evaluate, score, scores_as_simulators
from simfluence.evaluation.tables import off_scale, summary, table, to_markdown

__all__ = [
    "Evaluation",
    "evaluate",
    "off_scale",
    "score",
    "scores_as_simulators",
    "summary",
    "table",
    "to_markdown",
]
