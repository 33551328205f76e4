"""Similarity of hidden representations (Hanawa et al. 2021).

    dot  ⟨φ_i, φ_z⟩      cosine  ⟨φ_i, φ_z⟩ / (‖φ_i‖ ‖φ_z‖)      l2  −‖φ_i − φ_z‖

More similar pairs have larger scores. Representations do not depend on labels, so that the sign says nothing
about the direction of an effect. The units are those of φ², none, and those of φ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.objective import Objective
from simfluence.attribution.registry import AttributionContext, method
from simfluence.recording.evaluator import undisturbed
from simfluence.scores import InfluenceScores

Similarity = Literal["dot", "cosine", "l2"]
_UNITS = {"dot": "representation²", "cosine": "", "l2": "representation"}


def representation_similarity(
    model: Any,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    similarity: Similarity = "cosine",
    batch_size: int = 8,
) -> InfluenceScores:
    """Similarity of the representations that a model gives to examples, in eval mode.

    model : has ``representations(examples)`` → [example, hidden], as the models of simfluence.finetuning
        have; or is such a function itself.

    Raises ValueError if representations are not finite and [example, hidden].
    """
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {list(get_args(Similarity))}, got {similarity!r}")
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    module = model if isinstance(model, nn.Module) else None
    with undisturbed(module), torch.no_grad():
        phi, phi_test = (_representations(model, examples, batch_size) for examples in (train, test))
    if similarity == "l2":
        scores = -torch.cdist(phi, phi_test, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        if similarity == "cosine":
            phi, phi_test = (torch.nn.functional.normalize(values) for values in (phi, phi_test))
        scores = phi @ phi_test.T
    return InfluenceScores(
        scores.cpu().numpy(),
        "representation",
        _UNITS[similarity],
        provenance={
            "similarity": similarity,
            **({} if module is None else {"weights_fingerprint": weights_fingerprint(module)}),
        },
    )


@method("representation")
def _in_context(context: AttributionContext, *, progress: bool = False, **options: Any) -> InfluenceScores:
    def scores(objective: Objective, train: Sequence[Any], test: Sequence[Any]) -> InfluenceScores:
        return representation_similarity(objective.module, train, test, **options)

    return context.at_last_checkpoint(scores)


def _representations(model: Any, examples: Sequence[Any], batch_size: int) -> Tensor:
    """[example, hidden], float32 at least."""
    function: Callable[[Sequence[Any]], Tensor] = getattr(model, "representations", model)
    parts = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        part = function(batch)
        if part.ndim != 2 or len(part) != len(batch) or not part.isfinite().all():
            raise ValueError(
                f"representations must be finite, [{len(batch)}, hidden], got shape {list(part.shape)}"
                + ("" if part.isfinite().all() else " with values that are not finite")
            )
        parts.append(part.float() if part.dtype.itemsize < 4 else part)
    return torch.cat(parts)
