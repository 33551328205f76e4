"""What a training run consumes: batches of training examples, step by step, and edits of them.

Examples are row numbers 0 .. n_examples - 1 of a fixed table of training examples (the names users
give their examples live in that table). Steps are counted from 0 here: ``curriculum[t]`` is the batch
consumed between the losses L_t and L_{t+1}.

Where a run consumes shares of groups ("60 % web, 40 % code") rather than single examples, the groups are the
rows of the table of training examples, and a curriculum says how much of each a step consumes
(:meth:`Curriculum.from_shares`, or :meth:`Curriculum.from_mixture` from words).

Edits are pure functions: they return a new curriculum and leave the old one as it was.
"""

from simfluence.curriculum.batches import (
    Array,
    Curriculum,
    IntArray,
    check_counted,
    count_matrix,
    of_shares,
    usual_batch_size,
)
from simfluence.curriculum.edits import (
    Examples,
    concatenate,
    keep,
    of_length,
    put_before,
    remove,
    repeat,
    set_shares,
    shuffle,
)
from simfluence.curriculum.mixtures import Mixture, check_shares

__all__ = [
    "Array",
    "Curriculum",
    "Examples",
    "IntArray",
    "Mixture",
    "check_counted",
    "check_shares",
    "concatenate",
    "count_matrix",
    "keep",
    "of_length",
    "of_shares",
    "put_before",
    "remove",
    "repeat",
    "set_shares",
    "shuffle",
    "usual_batch_size",
]
