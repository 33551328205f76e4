"""Metagradients: the exact derivative of the losses after training by the weights of training examples.

    score(i, z) = −dL(z; θ_T)/dw_i,      [train, test], units: fall of the loss per unit of weight

w_i is the weight of example i's loss in each batch that it stands in, 1 in the run as it was (training.py
has the run as a function of w). To first order, leaving i out raises the loss of z by score(i, z), and a
second copy of i in each of its batches lowers it by as much; an example that the run did not use has 0. No
first-order score of this run can predict better than its derivative; where large edits are predicted badly
by it, the fault is in "first order".

The derivative goes backwards through the run. With x̄ for the derivative of L(z; θ_T) by x, every step has

    (θ̄, m̄, v̄)_t, ḡ_t  from  (θ̄, m̄, v̄)_{t+1}      through the optimizer's step (update_rules.py)
    θ̄_t += H_t ḡ_t,      −dL/dw_i += −⟨∇L(i; θ_t), ḡ_t⟩/|c_t|  for every i of the batch,

H_t the Hessian of the batch's loss: for each test example and step one Hessian-vector product, about two
forward and backward passes over the batch. Source: Maclaurin et al. 2015 (arXiv 1502.03492); as scores of
training data Engstrom et al. 2025 (2503.13751) and Ilyas & Engstrom 2025 (MAGIC, 2504.16430).

The run has to be deterministic: losses are taken without dropout. Adam divides by the size of the gradients
seen so far, and its first step is nearly their sign, which has derivative 0 but at 0: what changes a sign is
not in the derivative. A larger ε, or small rates at first, make a run smoother (Engstrom et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from simfluence.attribution.objective import Objective
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.training import Training
from simfluence.attribution.update_rules import State, update_rule
from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.scores import InfluenceScores


def metagradients(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    curriculum: Curriculum,
    *,
    optimizer: Mapping[str, Any],
    rates: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    by_step: bool = False,
    keep_every: int | None = None,
    progress: bool = False,
) -> InfluenceScores:
    """Derivatives of the test losses after training, through the whole run.

        run = RunSet.load("runs/mine")[0]      # the model has the weights that it began with
        about = {"optimizer": run.optimizer, "rates": run.learning_rate}
        scores = metagradients(objective, train, test, run.curriculum, **about)

    Parameters
    ----------
    objective : the model, with the weights that the run began with; all that requires gradients is trained.
        Afterwards it is as it was.
    train : the examples of the curriculum's table, all of them.
    optimizer : class and settings as in ``Run.optimizer``: AdamW, Adam or SGD.
    rates : float [step], the learning rate of each step.
    weights : float [train], the examples' weights where the derivative is taken; None: 1.
    by_step : scores [step, train, test] instead of their sum over steps: the part of the weights in each
        step's batch; ``steps`` says after how many steps that batch came.
    keep_every : weights and the optimizer's averages are kept in memory after so many steps, and computed
        again in between; None: about √T.

    Returns
    -------
    Scores whose provenance has ``final_losses`` [test], those after training, and the cost: ``gradients`` of
    single examples' losses and ``hessian_products`` of single examples.

    Raises ValueError for another optimizer, groups of parameters with settings of their own, a curriculum of
    another table, rates of another number of steps, or no test examples.
    """
    run = Training(objective, train, curriculum, update_rule(optimizer), rates, weights)
    if not len(test):
        raise ValueError("expected test examples, got none")
    found = np.zeros((len(run), len(train), len(test)) if by_step else (len(train), len(test)))
    products = 0
    with run.ready():
        states = run.backward(keep_every, progress)
        _, end = next(states)
        losses, gradients = run.test_gradients(test, end[0])
        derivatives = [_by_weights(gradient, end) for gradient in gradients]
        del gradients
        for step, state in states:
            gradient = run.differentiable_gradient(step, state[0])
            back = run.rule.pull_back(state, gradient.value, float(run.rates[step]), step + 1)
            for z, after in enumerate(derivatives):
                before, by_gradient = back(after)
                curved, by_uses = gradient.products(by_gradient)
                derivatives[z] = (before[0] + curved, *before[1:])
                np.subtract.at(
                    (found[step] if by_step else found)[:, z], gradient.rows, by_uses.cpu().numpy()
                )
            products += len(test) * len(gradient.rows)
    return InfluenceScores(
        found,
        "metagradients",
        "fall of the loss per unit of weight",
        tuple(run.parameters),
        {
            "run_steps": len(run),
            "final_losses": losses.tolist(),
            "gradients": run.gradients,
            "hessian_products": products,
        },
        coverage=1.0,
        steps=tuple(range(len(run))) if by_step else (),
    )


@method("metagradients", of_whole_run=True)
def _in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    return of_recorded_run(metagradients, context, **options)


def of_recorded_run(
    scores_of: Callable[..., InfluenceScores], context: AttributionContext, **options: Any
) -> InfluenceScores:
    """``scores_of`` the context's run, from the weights of its first checkpoint.

    Raises
    ------
    ValueError : the context has no run, or its first checkpoint is not that before training.
    RunDataError : the run, trained again, ends with other losses than were recorded, as one with dropout
        (compared where the context has all of the run's test examples).
    """
    run, first = context.run, context.checkpoints[0]
    if run is None or first.step != 0:
        raise ValueError(
            "this method trains the run again from the start: it needs the run (AttributionContext.run) and"
            " its initial weights as the first checkpoint (steps=initial)"
        )
    if run.group_rates is not None:
        raise ValueError(
            "derivatives go through runs whose parameters all have the same learning rates; this run has"
            " groups of parameters with their own"
        )
    with first.loaded(context.objective.module):
        found = scores_of(
            context.objective,
            context.train,
            context.test,
            run.curriculum,
            optimizer=run.optimizer,
            rates=run.learning_rate,
            **options,
        )
    if run.evaluated[-1] == len(run) and run.loss.shape[1] == len(context.test):
        _check_losses(np.array(found.provenance["final_losses"]), run.loss, run.id)
    return found


def _check_losses(found: npt.NDArray[np.float64], recorded: npt.NDArray[np.floating], run_id: str) -> None:
    """They may differ, root mean square, by a twentieth of what training changed."""
    differs, changed = found - recorded[-1], recorded[-1] - recorded[0]
    tolerated = 0.05 * np.sqrt(np.square(changed).mean()) + 1e-5
    if not np.sqrt(np.square(differs).mean()) <= tolerated:  # NaN is no agreement
        raise RunDataError(
            f"{run_id}, trained again, ends with losses that differ from the recorded ones by up to"
            f" {np.abs(differs).max():.3g}: it was trained with dropout, with other examples, or on another"
            " device"
        )


def _by_weights(gradient: torch.Tensor, end: State) -> State:
    """The derivative by the last state: only the weights count in the loss."""
    return gradient.clone(), *(torch.zeros_like(average) for average in end[1:])
