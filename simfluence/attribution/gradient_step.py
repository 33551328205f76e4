"""To first order, what a step of the run's own optimizer on i takes off the loss of z.

These are inner products of gradients for SGD (:mod:`.gradients`), and inner products in Adam's metric for
Adam and its variants (:mod:`.adam`). Where groups of parameters have different learning rates, momenta or ε,
or different optimizers, each parameter's part counts with its own (:mod:`.groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simfluence.attribution.groups import ADAM, adam_eps, optimizers_of
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.registry import METHODS, AttributionContext, method
from simfluence.scores import InfluenceScores


@method("gradient_step")
def gradient_step(context: AttributionContext, **options: Any) -> InfluenceScores:
    """The scores of ``gradient_adam`` or ``gradient_dot``, whichever fits the run's optimizer; where Adam and
    SGD trained different parameters, their sum, each over its own parameters.

    Raises ValueError if others than Adam and SGD trained some of the parameters; RunDataError if settings
    differ between groups of parameters and the run does not say which parameters are in which.
    """
    of_adam, mixed, own = step_settings(context, options.get("parameters"))
    if isinstance(own.get("eps"), dict) and "eps" in options:
        own["eps"] = dict.fromkeys(own["eps"], options.pop("eps"))
    options = {**own, **options}
    found = METHODS["gradient_adam" if of_adam else "gradient_dot"](context, **options)
    same = [
        one for one, there in (("gradient_adam", of_adam), ("gradient_dot", mixed or not of_adam)) if there
    ]
    return replace(
        found,
        method="gradient_step",
        units="loss / learning rate" if mixed else found.units,
        provenance={**found.provenance, "same_as": " + ".join(same)},
    )


def step_settings(
    context: AttributionContext, parameters: Sequence[str] | None
) -> tuple[bool, bool, dict[str, Any]]:
    """Whether Adam trained any of these parameters, whether SGD trained others of them, and the options that
    follow from the run: ``eps`` if Adam did, ``rates`` if they differ. Raises as :func:`gradient_step`."""
    names = list(selected_parameters(context.objective.module, parameters))
    by_class = optimizers_of(context.optimizer, names)
    if others := [name for name in by_class if name not in (*ADAM, "SGD")]:
        raise ValueError(_refusal(others[0], by_class))
    of_adam = any(name in ADAM for name in by_class)
    own: dict[str, Any] = {"eps": adam_eps(context.optimizer, names)} if of_adam else {}
    if rates := context.rates():
        own["rates"] = rates
    return of_adam, of_adam and "SGD" in by_class, own


def _refusal(other: str, by_class: dict[str, list[str]]) -> str:
    if len(by_class) == 1:
        return (
            f"gradient_step takes runs trained by Adam or SGD; this one was trained by"
            f" {other or 'an optimizer that was not recorded'}: choose gradient_adam or gradient_dot"
        )
    shown = ", ".join(by_class[other][:3]) + ", …" * (len(by_class[other]) > 3)
    return (
        f"gradient_step takes parameters trained by Adam or SGD; {other} trained {shown}: name with"
        " parameters= those that Adam or SGD trained, or choose gradient_adam or gradient_dot"
    )
