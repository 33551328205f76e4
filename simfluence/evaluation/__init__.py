"""How well simulators predict training: metrics, the protocol, comparisons, tables, the benchmark."""

from simfluence.evaluation.benchmark import (
    Benchmark,
    Method,
    benchmark,
    score_methods,
    simulator_methods,
)
from simfluence.evaluation.comparison import paired_differences
from simfluence.evaluation.protocol import Evaluation, evaluate, score, scores_as_simulators
from simfluence.evaluation.results import get_results
from simfluence.evaluation.tables import off_scale, summary, table, to_latex, to_markdown, write_table

__all__ = [
    "Benchmark",
    "Evaluation",
    "Method",
    "benchmark",
    "evaluate",
    "get_results",
    "off_scale",
    "paired_differences",
    "score",
    "score_methods",
    "scores_as_simulators",
    "simulator_methods",
    "summary",
    "table",
    "to_latex",
    "to_markdown",
    "write_table",
]
