"""The linearised model: a network's first-order expansion in the weights, trained on any curriculum.

    update.py      one step of SGD, Adam or AdamW
    model.py       the linearised model, and what it predicts of a curriculum
    jacobians.py   makes one from a torch model, or from the model of recorded runs
    simulator.py   a simulator: the linearised model, and effects beside it

It is not part of simfluence: it adds too little to the default simulator (results/linearised_on_bank.md).
"""

from linearised.jacobians import linearise, linearise_runs
from linearised.model import LinearisedModel
from linearised.simulator import LinearisedSimulator
from linearised.update import Update

__all__ = ["LinearisedModel", "LinearisedSimulator", "Update", "linearise", "linearise_runs"]
