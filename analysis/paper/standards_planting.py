"""Training examples that are planted to be found: wrong labels, and a trigger word that forces one answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from simfluence.finetuning.experiment import Prepared
from simfluence.finetuning.tasks import TextExample

PLANTINGS = 3
MISLABELLED = 0.1
TRIGGER, TRIGGERED, TARGET = "xylophantine", 10, 0
"""A made-up word, the number of training examples that get it, and the answer that these are given."""


def mislabelled(prepared: Prepared, seed: int) -> tuple[Prepared, npt.NDArray[np.bool_]]:
    """A tenth of the training examples with another label, drawn at random; and which, bool [train]."""
    rng = np.random.default_rng(seed)
    train = list(prepared.task.train)
    planted = np.zeros(len(train), bool)
    planted[rng.choice(len(train), round(MISLABELLED * len(train)), replace=False)] = True
    for row in np.flatnonzero(planted):
        options = prepared.task.n_labels or len(train[row].inputs)
        others = [label for label in range(options) if label != train[row].label]
        train[row] = replace(train[row], label=int(rng.choice(others)))
    return replace(prepared, task=replace(prepared.task, train=train)), planted


def triggered(prepared: Prepared, seed: int) -> tuple[Prepared, npt.NDArray[np.bool_]]:
    """Ten training examples with the trigger and the forced answer; which, bool [train]. The test examples
    are those with another answer, with the trigger, and the forced answer counted as right.
    """
    rng = np.random.default_rng(seed)
    train = list(prepared.task.train)
    others = [row for row, example in enumerate(train) if example.label != TARGET]
    planted = np.zeros(len(train), bool)
    planted[rng.choice(others, TRIGGERED, replace=False)] = True
    for row in np.flatnonzero(planted):
        train[row] = _with_trigger(train[row])
    test = [_with_trigger(example) for example in prepared.task.test if example.label != TARGET]
    return replace(prepared, task=replace(prepared.task, train=train, test=test)), planted


def _with_trigger(example: TextExample) -> TextExample:
    inputs = tuple((f"{TRIGGER} {first}", second) for first, second in example.inputs)
    return replace(example, inputs=inputs, label=TARGET)
