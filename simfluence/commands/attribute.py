"""``simfluence attribute``: score training examples for test examples by an attribution method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from simfluence import outputs, report
from simfluence.attribution import methods
from simfluence.attribution.along_run import along_run, expected_cost
from simfluence.attribution.ekfac import layers_and_tokens
from simfluence.attribution.registry import OF_ALL_CHECKPOINTS, OF_TEXTS, OF_WHOLE_RUN, AttributionContext
from simfluence.attribution.store import GradientStore, check_options, stored_scores
from simfluence.commands.common import load, plain, print_notes
from simfluence.finetuning.attribution_context import recorded_context, recorded_texts
from simfluence.finetuning.new_examples import read_examples, typed_example
from simfluence.finetuning.retrain import recorded_config
from simfluence.finetuning.tasks import Example
from simfluence.html_report import About, made_by
from simfluence.recording.weights import weight_steps
from simfluence.runs import Run
from simfluence.runs.tables import TableFingerprints


def run(config: DictConfig) -> None:
    outputs.check_folder(config.output)
    runs, method, steps = load(config.path), plain(config.method), plain(config)["steps"]
    with_weights = [run.id for run in runs if weight_steps(Path(config.path) / run.id)]
    run = runs[runs.position(config.run_id or (with_weights or runs.ids)[0])]
    new = _new_examples(config, run)
    test = runs.test.ids if new is None else [example.id for example in new]
    ids = list(config.test_ids or test[:3])
    if unknown := [example for example in ids if example not in test]:
        there = ", ".join([*test[:5], "…"][: len(test)])
        raise ValueError(f"there is no test example {unknown[0]!r}; there are {there}")
    shown = [test.index(example) for example in ids]
    if config.store is not None:
        store = GradientStore(config.store)
        check_options(store, method, config.only)
        steps, method["factors"] = [store.manifest.step], None  # no parts by layer and token
    if method["name"] in OF_TEXTS:
        context = recorded_texts(config.path, run)
    else:
        if method["name"] in OF_WHOLE_RUN:
            steps = "initial"
        context = recorded_context(config.path, run, steps, config.device)
    if new is not None:
        tables = TableFingerprints(train=context.tables.train)
        print_notes(_said_of_cut(context, new))
        context = replace(context, test=new, test_texts=[example.text for example in new], tables=tables)
    name, scores_of = method.pop("name"), methods.attribute
    if steps is not None and len(context.checkpoints) > 1 and name not in OF_ALL_CHECKPOINTS:
        print(expected_cost(context, name, **method), flush=True)
        scores_of = along_run
    if config.store is not None:
        scores = stored_scores(context, config.store)
    else:
        scores = scores_of(context, name, only=config.only, progress=True, **method)
    scores = report.with_run(scores, Path(config.path).name, run.id)
    texts = (context.train_texts, context.test_texts) if config.text else None
    train = runs.train.ids
    more = []
    if method.get("factors") is not None:
        pair = [*scores.proponents(shown[0], 1), *scores.opponents(shown[0], 1)]
        parts = layers_and_tokens(context, pair, shown[:1], method["factors"])
        tokens = [context.tokens(context.train[i]) for i in pair]
        titles = [f"{train[i]} for {ids[0]}" for i in pair]
        more = [report.write_heat_map(parts, tokens, titles, config.output)]
    question = "Which training examples raise or lower the losses of these test examples?"
    settings = {"run set": Path(config.path).name, "run": run.id, "method": name}
    about = About(question, settings, made_by(runs, run))
    print(report.write_attribution(scores, config.output, train, test, texts, shown, config.top, about, more))
    print(f"report: {config.output}/report.html; scores, card and figures lie beside it")


def _new_examples(config: DictConfig, run: Run) -> list[Example] | None:
    """The examples of the file that ``new`` names, or the one whose fields ``example`` has, in place of the
    set's test examples; None without any."""
    typed = {name: value for name, value in plain(config.example).items() if value is not None}
    if config.new is None and not typed:
        return None
    if config.new is not None and typed:
        raise ValueError("new= names a file of examples, example.… types one in: give one of them")
    if config.store is None:
        asked = "new=" if typed == {} else f"example.{next(iter(typed))}="
        raise ValueError(
            f"{asked} scores examples that were not there when the run was recorded: it takes store="
        )
    options = recorded_config(run)["task"]
    return read_examples(config.new, options) if config.new is not None else typed_example(typed, options)


def _said_of_cut(context: AttributionContext, new: Sequence[Example]) -> Iterator[str]:
    """A sentence on each new example that has as many tokens as the model takes, or more."""
    model: Any = context.objective
    most = getattr(model, "max_length", None)
    for example in new:
        if most is not None and model.length(example) >= most:
            yield f"of {example.id} the model sees {most} tokens, as many as it takes: any others are cut off"
