"""TracIn: how much steps on i lower the loss of z, to first order, summed along a run.

    TracIn-CP(i, z) = Σ_k η_k ⟨∇L(i; θ_k), ∇L(z; θ_k)⟩                   over checkpoints k
    TracIn(i, z)    = Σ_t η_t n_t(i)/|c_t| ⟨∇L(i; θ_t), ∇L(z; θ_t)⟩      over steps t, with a curriculum

η is a number; where groups of parameters have different learning rates, it is a diagonal matrix between the
gradients. n_t(i) is how often i is in the batch c_t. Units: loss. For plain SGD and small rates, the second
summed over all training examples is L(z; θ_0) − L(z; θ_T). For Adam, inner products may be in its metric
(adam.py); where Adam and SGD trained different parameters, those over Adam's must be. Source: Pruthi et al.
2020, equations 1 and 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.checkpoints import Checkpoint, losses_fingerprint, weights_fingerprint
from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.groups import ADAM, adam_eps, optimizers_of
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import selected_parameters, share_of_trained
from simfluence.attribution.registry import AttributionContext, method
from simfluence.curriculum import Curriculum, check_counted
from simfluence.errors import RunDataError
from simfluence.scores import InfluenceScores


def tracin(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    checkpoints: Sequence[Checkpoint],
    *,
    curriculum: Curriculum | None = None,
    adam_batch: int | None = None,
    population: Sequence[Any] | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
    folder: str | Path | None = None,
) -> InfluenceScores:
    """TracIn scores over checkpoints: a few evenly spaced ones, or those of all steps.

    Parameters
    ----------
    checkpoints : e.g. ``recorded_checkpoints(folder, run)``.
    curriculum : the run's, whose training table ``train`` is. If it is given, the second formula is used: at
        a checkpoint only those training examples count that the next step took. Meant for checkpoints of
        all steps.
    adam_batch : the number of examples in a training step; if it is given, inner products are in Adam's
        metric, over all parameters or, of a run with several optimizers, over those that Adam trained.
    population : the examples that Adam's batches are drawn from, if they are more than ``train``.
    parameters, batch_size : as in :func:`.gradients.gradient_similarity`.
    folder : keeps the scores of every checkpoint, so that an interrupted computation can be continued.

    Raises
    ------
    ValueError : no checkpoints; one of them twice; a step that the curriculum does not have; or several
        optimizers trained the parameters whose steps are not alike.
    RunDataError : the folder has scores of other weights or examples.
    """
    _check(checkpoints, curriculum, len(train))
    drawn = train if population is None else population
    total: npt.NDArray[np.floating] = np.zeros((len(train), len(test)))
    covers: tuple[str, ...] = ()
    note: dict[str, Any] = {}
    for number, checkpoint in enumerate(checkpoints, 1):
        which = _taken(curriculum, checkpoint.step, len(train))
        some = [train[i] for i in which]
        with checkpoint.loaded(objective.module):
            similarity, about = _metric(objective, checkpoint, parameters, adam_batch, drawn)
            about |= _about(objective, [*some[:1], *test[:1]], checkpoint, parameters)
            about |= {"examples": [len(which), len(test)]}
            if (part := _kept(folder, checkpoint.step, about)) is None:
                if progress:
                    print(f"checkpoint {number} of {len(checkpoints)}, after step {checkpoint.step}")
                options = {"parameters": parameters, "batch_size": batch_size, "progress": progress}
                part = similarity(objective, some, test, rates=checkpoint.rates or None, **options)
                note |= {key: part.provenance[key] for key in ("gradients",) if key in part.provenance}
                _keep(folder, checkpoint.step, replace(part, provenance=about))
        total[which] += _weights(curriculum, checkpoint, which) * part.scores
        covers = part.covers
    steps = [checkpoint.step for checkpoint in checkpoints]
    return InfluenceScores(
        total,
        method="tracin",
        units="loss",
        covers=covers,
        provenance={
            "formula": "TracIn-CP" if curriculum is None else "TracIn",
            "steps": steps,
            "learning_rates": [c.learning_rate for c in checkpoints],
            **({} if adam_batch is None else {"adam_batch": adam_batch}),
            **note,
        },
        weighing="use" if curriculum is None else "",  # with a curriculum, scores are of one run
        scale=1 / len(steps) if curriculum is None else 1.0,  # a step has the mean over checkpoints
        coverage=share_of_trained(objective.module, covers),
    )


@method("tracin", of_all_checkpoints=True)
def _in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    given = {"checkpoints": context.checkpoints, "population": context.curvature, **options}
    return tracin(context.objective, context.train, context.test, **given)


def _check(checkpoints: Sequence[Checkpoint], curriculum: Curriculum | None, train: int) -> None:
    if not checkpoints:
        raise ValueError("TracIn needs at least one checkpoint, got none")
    steps = [checkpoint.step for checkpoint in checkpoints]
    rates = [(c.step, rate) for c in checkpoints for rate in (c.learning_rate, *c.rates.values())]
    if unknown := [step for step, rate in rates if not np.isfinite(rate)]:
        raise ValueError(
            f"TracIn needs learning rates; that after step {unknown[0]} was not recorded, or groups of"
            " parameters had different ones and the recording does not say which parameters were in which"
        )
    if len(set(steps)) < len(steps):
        raise ValueError(f"every checkpoint counts once, got steps {steps}")
    if curriculum is not None:
        check_counted([curriculum], "TracIn")
        if train != curriculum.n_examples:
            raise ValueError(f"the curriculum is over {curriculum.n_examples} training examples, got {train}")
        if max(steps) >= len(curriculum):
            raise ValueError(
                f"no step follows the checkpoint after step {max(steps)} of {len(curriculum)}: leave it out"
            )


def _metric(
    objective: Objective,
    checkpoint: Checkpoint,
    parameters: Sequence[str] | None,
    adam_batch: int | None,
    drawn: Sequence[Any],
) -> tuple[Callable[..., InfluenceScores], dict[str, Any]]:
    """The inner products that are taken at a checkpoint, and what identifies them.

    Raises ValueError where they would count the gradients of some parameters as no optimizer of theirs did.
    """
    names = selected_parameters(objective.module, parameters)
    by_class = optimizers_of(checkpoint.optimizer, names)
    alike = {"Adam" if name in ADAM else name for name in by_class}
    if len(alike) > 1 and (alike != {"Adam", "SGD"} or adam_batch is None):
        way = "give adam_batch=, for Adam's metric over those of Adam" if alike == {"Adam", "SGD"} else ""
        raise ValueError(
            f"{' and '.join(by_class)} trained different parameters of this run, whose gradients TracIn would"
            f" count alike: {way}{', or ' if way else ''}name with parameters= those of one optimizer"
        )
    if adam_batch is None:
        return gradient_similarity, {}
    eps = adam_eps(checkpoint.optimizer, names) if "Adam" in alike else 1e-8
    sample = losses_fingerprint(objective, [drawn[0], drawn[-1]])
    about = {"adam_batch": adam_batch, "population": [len(drawn), *sample]}
    about |= {} if eps == 1e-8 else {"eps": eps}
    return partial(adam_similarity, batch=adam_batch, population=drawn, eps=eps), about


def _taken(curriculum: Curriculum | None, step: int, train: int) -> list[int]:
    """The training examples that count at a checkpoint."""
    return list(range(train)) if curriculum is None else np.unique(curriculum[step]).tolist()


def _weights(curriculum: Curriculum | None, checkpoint: Checkpoint, which: list[int]) -> Any:
    """η_k, or η_t n_t(i)/|c_t|, [example that counts, 1]; 1 in place of η where the inner products have the
    rates of each parameter in them."""
    rate = 1.0 if checkpoint.rates else checkpoint.learning_rate
    if curriculum is None:
        return rate
    batch = np.asarray(curriculum[checkpoint.step])
    counts = np.array([(batch == i).sum() for i in which])
    return rate * counts[:, None] / len(batch)


# ----------------------------------------------------------------------- the scores of checkpoints, kept


def _about(
    objective: Objective, some: list[Any], checkpoint: Checkpoint, parameters: Sequence[str] | None
) -> dict[str, Any]:
    """What identifies the scores of a checkpoint: the weights, and two examples' losses, which other data
    would not have."""
    return {
        "weights": weights_fingerprint(objective.module),
        "losses": losses_fingerprint(objective, some),
        "parameters": list(parameters) if parameters is not None else None,
        "step": checkpoint.step,
        **({"rates": dict(checkpoint.rates)} if checkpoint.rates else {}),
    }


def _file(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"gradients-{step:06d}.safetensors"


def _kept(folder: str | Path | None, step: int, about: dict[str, Any]) -> InfluenceScores | None:
    if folder is None or not _file(folder, step).is_file():
        return None
    part = InfluenceScores.load(_file(folder, step))
    if dict(part.provenance) != about:
        raise RunDataError(
            f"{_file(folder, step)} is of other weights or examples: {dict(part.provenance)}, not {about};"
            " delete it or choose another folder"
        )
    return part


def _keep(folder: str | Path | None, step: int, part: InfluenceScores) -> None:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        part.save(_file(folder, step))
