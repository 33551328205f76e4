"""EK-FAC influence in a recorded run, with factors that a file keeps from one call to the next."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simfluence.attribution.ekfac.factors import EKFACFactors, differences
from simfluence.attribution.ekfac.fitting import Fisher, about_factors, ekfac_factors
from simfluence.attribution.ekfac.scores import LayerTokenScores, ekfac, ekfac_by_layer_and_token
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.registry import AttributionContext, method
from simfluence.errors import RunDataError
from simfluence.scores import InfluenceScores


@method("ekfac")
def ekfac_in_context(
    context: AttributionContext,
    *,
    factors: str | Path | None = None,
    parameters: Sequence[str] | None = None,
    fisher: Fisher = "true",
    seed: int = 0,
    **options: Any,
) -> InfluenceScores:
    """See :func:`.scores.ekfac`. factors : a file that keeps the factors for later calls."""

    def scores(
        objective: Objective,
        train: Sequence[Any],
        test: Sequence[Any],
        *,
        batch_size: int = 8,
        progress: bool = False,
        **chosen: Any,
    ) -> InfluenceScores:
        examples = train if context.curvature is None else context.curvature
        passes: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        of: dict[str, Any] = {"parameters": parameters, "fisher": fisher, "seed": seed}
        made = factors_of_file(objective, examples, factors, **of, **passes)
        return ekfac(objective, train, test, factors=made, **passes, **chosen)

    return context.at_last_checkpoint(scores, **options)


def factors_of_file(
    objective: Objective,
    examples: Sequence[Any],
    file: str | Path | None,
    **options: Any,
) -> EKFACFactors:
    """The factors in the file, if there is one; otherwise they are computed and saved there.

    A computation that is interrupted leaves what it finished in the folder FILE.unfinished, and the next call
    continues from it.

    Raises RunDataError if the file's factors are of other weights, examples or settings.
    """
    if file is not None and Path(file).exists():
        found = EKFACFactors.load(file)
        asked = {
            **about_factors(objective, examples, options["fisher"], options["seed"]),
            "parameters": sorted(selected_parameters(objective.module, options["parameters"])),
        }
        there = {**found.about, "parameters": sorted(found.parameters)}
        if other := differences(asked, there):
            raise RunDataError(f"{file} has factors of other {other}: delete it, or name another file")
        return found.to(next(objective.module.parameters()).device)
    if file is None:
        return ekfac_factors(objective, examples, **options)
    unfinished = Path(f"{file}.unfinished")
    made = ekfac_factors(objective, examples, folder=unfinished, **options)
    made.save(file)
    shutil.rmtree(unfinished)
    return made


def layers_and_tokens(
    context: AttributionContext, train: Sequence[int], test: Sequence[int], factors: str | Path
) -> LayerTokenScores:
    """EK-FAC scores of a few pairs by layer and token, with the factors that the method saved in a file."""
    objective = context.objective
    with context.checkpoints[-1].loaded(objective.module):
        return ekfac_by_layer_and_token(
            objective,
            [context.train[i] for i in train],
            [context.test[z] for z in test],
            factors=EKFACFactors.load(factors, objective.module),
        )
