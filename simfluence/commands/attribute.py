"""``simfluence attribute``: score training examples for test examples by an attribution method."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from simfluence import outputs, report
from simfluence.attribution import methods
from simfluence.attribution.along_run import along_run, expected_cost
from simfluence.attribution.ekfac import layers_and_tokens
from simfluence.attribution.registry import OF_ALL_CHECKPOINTS, OF_TEXTS, OF_WHOLE_RUN
from simfluence.attribution.store import GradientStore, check_options, stored_scores
from simfluence.commands.common import load, plain
from simfluence.finetuning.attribution_context import recorded_context, recorded_texts
from simfluence.html_report import About, made_by
from simfluence.recording.weights import weight_steps


def run(config: DictConfig) -> None:
    outputs.check_folder(config.output)
    runs, method, steps = load(config.path), plain(config.method), plain(config)["steps"]
    ids = list(config.test_ids or runs.test.ids[:3])
    if unknown := [example for example in ids if example not in runs.test.ids]:
        there = ", ".join([*runs.test.ids[:5], "…"][: len(runs.test)])
        raise ValueError(f"there is no test example {unknown[0]!r}; there are {there}")
    shown = [runs.test.ids.index(example) for example in ids]
    with_weights = [run.id for run in runs if weight_steps(Path(config.path) / run.id)]
    run = runs[runs.position(config.run_id or (with_weights or runs.ids)[0])]
    if config.store is not None:
        check_options(method, config.only)
        steps = [GradientStore(config.store).manifest.step]
    if method["name"] in OF_TEXTS:
        context = recorded_texts(config.path, run)
    else:
        if method["name"] in OF_WHOLE_RUN:
            steps = "initial"
        context = recorded_context(config.path, run, steps, config.device)
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
    train, test = runs.train.ids, runs.test.ids
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
