"""TRAK: influence in a linear model of projected gradients (Park et al. 2023).

    score(i, z) = [mean_k φ_k(z)ᵀ (Φ_kᵀ Φ_k + λI)⁻¹ φ_k(i)] · [mean_k q_k(i)]      [train, test]

    margin   f = log(p/(1 − p)), p = exp(−L) the probability of the right label;   q = 1 − p
    loss     f = −L;   q = 1

k are checkpoints (or models of other runs), each with a projection of its own; φ_k(·) is the projected
gradient of f at checkpoint k, Φ_k [train, dimension] has those of all training examples, and λ is the
damping. To first order the score is the change of f(z) when i is added, positive where that raises f(z) and
so lowers the loss; margins have no units, losses their own.

"margin" is the published output function. It holds wherever the loss is −log p of one event: a label, or a
whole answer (a sum over tokens, not a mean). For other losses, such as squared errors, take "loss".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from simfluence.attribution.checkpoints import Checkpoint, weights_fingerprint
from simfluence.attribution.gradients import flat
from simfluence.attribution.objective import LossesOnly, Objective, losses_of
from simfluence.attribution.parameters import selected_parameters, share_of_trained
from simfluence.attribution.projection import Projection
from simfluence.attribution.registry import AttributionContext, method
from simfluence.attribution.tracing import Tracer, tracer
from simfluence.recording.evaluator import undisturbed
from simfluence.scores import InfluenceScores

Output = Literal["margin", "loss"]

_HELD = 2**27
"""At most so many numbers of gradients are projected at once."""


def trak(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    checkpoints: Sequence[Checkpoint] | None = None,
    output: Output = "margin",
    dimension: int | None = 512,
    projection: Literal["rademacher", "gaussian"] = "rademacher",
    damping: float | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> InfluenceScores:
    """TRAK scores, a mean over checkpoints.

    Parameters
    ----------
    checkpoints : of one run or of several; None: the present weights alone.
    output : f in the formulas of this module.
    dimension : of the projections; None: the gradients are not projected, for small models.
    damping : λ ≥ 0, added to ΦᵀΦ (0 as published, where that can be inverted); None: 1% of its mean
        eigenvalue, at every checkpoint.
    parameters : as in :func:`.parameters.selected_parameters`.
    batch_size : examples in a pass; scores do not depend on it.
    seed : of the projections.

    Returns
    -------
    Scores whose provenance lists steps, fingerprints and dampings of the checkpoints.

    Raises
    ------
    ValueError : nothing to differentiate by, no examples or checkpoints, ΦᵀΦ + λI singular, or losses below
        0 with "margin".
    """
    if output not in ("margin", "loss"):
        raise ValueError(f"output must be 'margin' or 'loss', got {output!r}")
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    if checkpoints is not None and not len(checkpoints):
        raise ValueError("checkpoints is empty: expected some, or None for the present weights")
    if damping is not None and damping < 0:
        raise ValueError(f"damping must not be negative, got {damping}")
    module = objective.module
    covers = selected_parameters(module, parameters)
    size = sum(parameter.numel() for parameter in covers.values())
    features = _Features(objective, output)
    kernels, weights, fingerprints, dampings = [], [], [], []
    for number, within in enumerate(tqdm(_loaded(module, checkpoints), "TRAK", disable=not progress)):
        with within:
            projected = Projection(size, dimension, (seed, number), projection)
            with tracer(features, [train[0], test[0]], parameters) as trace:
                phi, phi_test = (
                    torch.cat([projected(part) for part in _gathered(trace, examples, batch_size)])
                    for examples in (train, test)
                )
            fingerprints.append(weights_fingerprint(module))
            if output == "margin":
                weights.append(_chances_of_others(objective, train, batch_size))
        scores, used = linear_influence(phi, phi_test, damping)
        kernels.append(scores)
        dampings.append(used)
    scores = np.mean(kernels, 0)
    if output == "margin":
        scores = scores * np.mean(weights, 0)[:, None]
    provenance = {
        "weights_fingerprint": fingerprints[0] if checkpoints is None else fingerprints,
        "steps": None if checkpoints is None else [checkpoint.step for checkpoint in checkpoints],
        "output": output, "dimension": dimension, "projection": projection, "seed": seed, "damping": dampings,
        **trace.about,
    }  # fmt: skip
    return InfluenceScores(
        scores,
        "trak",
        "" if output == "margin" else "loss",
        tuple(covers),
        provenance,
        coverage=share_of_trained(module, covers),
    )


@method("trak", of_all_examples=True, of_all_checkpoints=True)
def _in_context(context: AttributionContext, **options: Any) -> InfluenceScores:
    given = {"checkpoints": context.checkpoints, **options}
    return trak(context.objective, context.train, context.test, **given)


def linear_influence(
    phi: Tensor, phi_test: Tensor, damping: float | None
) -> tuple[npt.NDArray[np.float64], float]:
    """φ(i)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z), [train, test], and λ; in float64.

    With fewer examples than dimensions, by Φ (ΦᵀΦ + λI)⁻¹ = (ΦΦᵀ + λI)⁻¹ Φ.
    """
    phi, phi_test = phi.double(), phi_test.double()
    gram = phi.T @ phi if phi.shape[0] >= phi.shape[1] else phi @ phi.T
    if damping is None:
        damping = 0.01 * float(gram.trace()) / phi.shape[1]
        damping = damping or 1.0  # all gradients are zero, and so will be the scores
    gram.diagonal().add_(damping)
    factor, failed = torch.linalg.cholesky_ex(gram)
    # a pivot that is not larger than rounding errors counts as zero
    if (
        failed
        or factor.diagonal().min() ** 2 <= len(gram) * torch.finfo(gram.dtype).eps * gram.diagonal().max()
    ):
        raise ValueError(
            f"ΦᵀΦ + λI of {phi.shape[0]} examples in {phi.shape[1]} dimensions is singular with damping"
            f" {damping}: choose a larger damping, or a smaller dimension"
        )
    if phi.shape[0] >= phi.shape[1]:
        scores = phi @ torch.cholesky_solve(phi_test.T, factor)
    else:
        scores = torch.cholesky_solve(phi @ phi_test.T, factor)
    return scores.cpu().numpy(), damping


def _loaded(
    module: nn.Module, checkpoints: Sequence[Checkpoint] | None
) -> list[AbstractContextManager[None]]:
    if checkpoints is None:
        return [nullcontext()]
    return [checkpoint.loaded(module) for checkpoint in checkpoints]


def _gathered(trace: Tracer, examples: Sequence[Any], batch_size: int) -> Iterator[Tensor]:
    """Gradients [example, parameter] in batches as large as ``_HELD`` allows, since a large R is drawn anew
    for each batch."""
    held: list[Tensor] = []
    for batch in (flat(trace, trace(some)) for some in trace.batches(examples, batch_size)):
        held.append(batch)
        if sum(part.numel() for part in held) + batch.numel() > _HELD:
            yield torch.cat(held)
            held = []
    if held:
        yield torch.cat(held)


class _Features(LossesOnly):
    """An objective with f in place of the loss; in float64 for margins, since 1 − p may be very small."""

    def __init__(self, objective: Objective, output: Output) -> None:
        super().__init__(objective.module, self._margins if output == "margin" else self._minus_losses)
        self._objective = objective

    def rows(self, examples: Sequence[Any]) -> list[int]:
        return self._objective.rows(examples)

    def masks(self, examples: Sequence[Any]) -> list[Tensor]:
        return self._objective.masks(examples)

    def _minus_losses(self, examples: Sequence[Any]) -> Tensor:
        return -losses_of(self._objective, examples)

    def _margins(self, examples: Sequence[Any]) -> Tensor:
        losses = _wide_losses(self._objective, examples)
        if (losses < -1e-6).any():
            raise ValueError(
                "a loss is negative, and so is no −log p of a label, whose margin is asked for: output='loss'"
            )
        others = -torch.expm1(-losses)  # 1 − p
        return -losses - others.clamp_min(torch.finfo(losses.dtype).tiny).log()


def _wide_losses(objective: Objective, examples: Sequence[Any]) -> Tensor:
    """Losses [example] in float64, from the outputs where an objective has them."""
    if isinstance(objective, LossesOnly):
        return losses_of(objective, examples).double()
    return objective.output_losses(objective.outputs(examples).double(), examples).double()


def _chances_of_others(objective: Objective, examples: Sequence[Any], batch_size: int) -> np.ndarray:
    """1 − p of each example, [example]."""

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(examples), batch_size):
            yield -torch.expm1(-_wide_losses(objective, examples[start : start + batch_size]))

    with undisturbed(objective.module), torch.no_grad():
        return torch.cat(list(parts())).cpu().numpy()
