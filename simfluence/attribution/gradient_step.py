"""To first order, what a step of the run's own optimizer on i takes off the loss of z.

These are inner products of gradients for SGD (:mod:`.gradients`), and inner products in Adam's metric for
Adam and its variants (:mod:`.adam`). Where groups of parameters have different learning rates, momenta or ε,
each parameter's part counts with its own (:mod:`.groups`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from simfluence.attribution.groups import setting_by_parameter
from simfluence.attribution.registry import METHODS, AttributionContext, method
from simfluence.attribution.scores import InfluenceScores


@method("gradient_step")
def gradient_step(context: AttributionContext, **options: Any) -> InfluenceScores:
    """The scores of ``gradient_adam`` or ``gradient_dot``, whichever fits the run's optimizer.

    Raises ValueError for a run that neither Adam nor SGD trained; RunDataError if these settings differ
    between groups of parameters and the run does not say which parameters are in which.
    """
    name = str(context.optimizer.get("class", "")).rsplit(".", 1)[-1]
    if name in ("Adam", "AdamW", "NAdam", "RAdam"):
        same = "gradient_adam"
        eps = setting_by_parameter(context.optimizer, "eps") or float(context.optimizer.get("eps") or 1e-8)
        options = {"eps": eps, **options}
    elif name == "SGD":
        same = "gradient_dot"
    else:
        raise ValueError(
            f"gradient_step takes runs trained by Adam or SGD; this one was trained by"
            f" {name or 'an optimizer that was not recorded'}: choose gradient_adam or gradient_dot"
        )
    if rates := context.rates():
        options["rates"] = rates
    found = METHODS[same](context, **options)
    return replace(found, method="gradient_step", provenance={**found.provenance, "same_as": same})
