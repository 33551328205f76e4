"""Questions about a run that take many what-ifs at once: which examples, which groups, when and how."""

from simfluence.questions.groups import group_matrix
from simfluence.questions.interactions import interactions
from simfluence.questions.rank import rank
from simfluence.questions.when import when

__all__ = ["group_matrix", "interactions", "rank", "when"]
