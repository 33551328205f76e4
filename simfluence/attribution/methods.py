"""Every method by its name, on a recorded run: what ``simfluence attribute method=…`` calls.

To add a method: a file of its own that returns :class:`InfluenceScores`, a function here that says what of a
:class:`Setting` it takes, a line in ``METHODS``, and a config of its name in conf/method/.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simfluence.attribution.adam import adam_similarity
from simfluence.attribution.checkpoints import Checkpoint
from simfluence.attribution.ekfac import (
    EKFACFactors,
    LayerTokenScores,
    ekfac_by_layer_and_token,
    ekfac_factors,
)
from simfluence.attribution.ekfac import ekfac as ekfac_scores
from simfluence.attribution.ekfac.factors import differences
from simfluence.attribution.ekfac.fitting import Fisher, about_factors
from simfluence.attribution.gradients import gradient_similarity
from simfluence.attribution.influence import influence as influence_function
from simfluence.attribution.ngrams import ngram_similarity
from simfluence.attribution.objective import Objective
from simfluence.attribution.parameters import selected_parameters
from simfluence.attribution.representations import representation_similarity
from simfluence.attribution.scores import InfluenceScores
from simfluence.attribution.text_similarity import bm25, candidates, filtered, tfidf
from simfluence.attribution.tracin import tracin as tracin_scores
from simfluence.attribution.trak import trak as trak_scores
from simfluence.errors import RunDataError


@dataclass(frozen=True)
class Setting:
    """What there is to compute scores from.

    objective : the model and its losses. train, test : examples as the objective takes them.
    train_texts, test_texts : what a person would read of them.
    checkpoints : of the run, in the order of their steps; methods that look at one take the last.
    tokens : example → its tokens as strings, as the model's layers see them.
    curvature : the examples that curvature is a mean over, if they are more than ``train``.
    batch, optimizer : the examples of one of the run's steps, and what trained it (``Run.optimizer``), where
        that is known.
    """

    objective: Objective
    train: Sequence[Any]
    test: Sequence[Any]
    train_texts: Sequence[str]
    test_texts: Sequence[str]
    checkpoints: Sequence[Checkpoint]
    tokens: Callable[[Any], list[str]]
    curvature: Sequence[Any] | None = None
    batch: int | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[..., InfluenceScores]
"""(setting, options …) → scores."""


def at_last_checkpoint(method: Method) -> Method:
    """Called with the weights of the last checkpoint in the model."""

    def called(setting: Setting, **options: Any) -> InfluenceScores:
        last = setting.checkpoints[-1]
        with last.loaded(setting.objective.module):
            found = method(setting.objective, setting.train, setting.test, **options)
        return replace(found, provenance={**found.provenance, "step": last.step})

    return called


def of_texts(method: Method) -> Method:
    """Called with the texts alone."""

    def called(setting: Setting, *, progress: bool = False, **options: Any) -> InfluenceScores:
        return method(setting.train_texts, setting.test_texts, **options)

    return called


def over_checkpoints(method: Method) -> Method:
    """Called with all checkpoints."""

    def called(setting: Setting, **options: Any) -> InfluenceScores:
        given = {"checkpoints": setting.checkpoints, **options}
        return method(setting.objective, setting.train, setting.test, **given)

    return called


def gradient_adam(setting: Setting, *, batch: int | None = None, **options: Any) -> InfluenceScores:
    """See :func:`.adam.adam_similarity`; batch : None: that of the run."""
    batch = setting.batch if batch is None else batch
    if batch is None:
        raise ValueError("gradient_adam needs batch, the number of examples in a training step")
    return at_last_checkpoint(adam_similarity)(
        setting, **{"batch": batch, "population": setting.curvature, **options}
    )


def gradient_step(setting: Setting, **options: Any) -> InfluenceScores:
    """To first order, what a step of the run's own optimizer on i takes off the loss of z: inner products of
    gradients for SGD, those in Adam's metric for Adam and its kin."""
    name = str(setting.optimizer.get("class", "")).rsplit(".", 1)[-1]
    if name in ("Adam", "AdamW", "NAdam", "RAdam"):
        return gradient_adam(setting, **{"eps": float(setting.optimizer.get("eps") or 1e-8), **options})
    if name == "SGD":
        return at_last_checkpoint(gradient_similarity)(setting, **options)
    said = name or "nothing of its optimizer"
    raise ValueError(
        f"gradient_step takes runs trained by Adam or SGD; this one says {said}: choose gradient_adam or"
        " gradient_similarity"
    )


def influence(setting: Setting, **options: Any) -> InfluenceScores:
    """See :func:`.influence.influence`."""
    return at_last_checkpoint(influence_function)(setting, **{"curvature": setting.curvature, **options})


def tracin(setting: Setting, **options: Any) -> InfluenceScores:
    """See :func:`.tracin.tracin`."""
    return over_checkpoints(tracin_scores)(setting, **{"population": setting.curvature, **options})


def ekfac(
    setting: Setting,
    *,
    factors: str | Path | None = None,
    parameters: Sequence[str] | None = None,
    fisher: Fisher = "true",
    seed: int = 0,
    **options: Any,
) -> InfluenceScores:
    """See :func:`.ekfac.ekfac`; factors : a file that keeps them, for later calls."""

    def scores(
        objective: Objective,
        train: Sequence[Any],
        test: Sequence[Any],
        *,
        batch_size: int = 8,
        progress: bool = False,
        **chosen: Any,
    ) -> InfluenceScores:
        examples = train if setting.curvature is None else setting.curvature
        passes: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
        of: dict[str, Any] = {"parameters": parameters, "fisher": fisher, "seed": seed}
        made = kept_factors(objective, examples, factors, **of, **passes)
        return ekfac_scores(objective, train, test, factors=made, **passes, **chosen)

    return at_last_checkpoint(scores)(setting, **options)


def kept_factors(
    objective: Objective,
    examples: Sequence[Any],
    file: str | Path | None,
    **options: Any,
) -> EKFACFactors:
    """Factors from their file, if it is there; else made, and kept there; if that is interrupted, the next
    call goes on with what the folder FILE.unfinished has.

    Raises RunDataError if the file's are of other weights, examples or settings.
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
    setting: Setting, train: Sequence[int], test: Sequence[int], factors: str | Path
) -> LayerTokenScores:
    """EK-FAC scores of a few pairs by layer and token, with the factors that :func:`ekfac` kept."""
    objective = setting.objective
    with setting.checkpoints[-1].loaded(objective.module):
        return ekfac_by_layer_and_token(
            objective,
            [setting.train[i] for i in train],
            [setting.test[z] for z in test],
            factors=EKFACFactors.load(factors, objective.module),
        )


def representation(
    objective: Objective, train: Sequence[Any], test: Sequence[Any], *, progress: bool = False, **options: Any
) -> InfluenceScores:
    """See :func:`.representations.representation_similarity`."""
    return representation_similarity(objective.module, train, test, **options)


METHODS: dict[str, Method] = {
    "gradient_similarity": at_last_checkpoint(gradient_similarity),
    "gradient_adam": gradient_adam,
    "gradient_step": gradient_step,
    "tracin": tracin,
    "influence": influence,
    "ekfac": ekfac,
    "trak": over_checkpoints(trak_scores),
    "representation": at_last_checkpoint(representation),
    "tfidf": of_texts(tfidf),
    "bm25": of_texts(bm25),
    "ngrams": of_texts(ngram_similarity),
}


def attribute(
    setting: Setting, name: str, *, only: int | None = None, progress: bool = False, **options: Any
) -> InfluenceScores:
    """The scores of a method by its name.

    Parameters
    ----------
    only : compute the method for the so many training examples that BM25 finds most similar to each test
        example; all other scores are 0 (Grosse et al. 2023).
    options : the method's own.

    Raises
    ------
    ValueError : no such method, or an option that it does not have.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no attribution method is named {name!r}; there are {', '.join(METHODS)}{hint}")

    def scores(train: Sequence[int], test: Sequence[Any]) -> InfluenceScores:
        part = replace(
            setting,
            train=[setting.train[i] for i in train],
            train_texts=[setting.train_texts[i] for i in train],
            curvature=setting.train,
        )
        try:
            return METHODS[name](part, progress=progress, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise ValueError(f"method {name}: {str(error).split('() ')[-1]}") from None

    everything = range(len(setting.train))
    if only is None:
        return scores(everything, setting.test)
    return filtered(
        scores, everything, setting.test, candidates(bm25(setting.train_texts, setting.test_texts), only)
    )
