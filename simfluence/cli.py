"""``simfluence``: the command line. Parses (with hydra), calls, prints; all else is elsewhere.

To add a command: a function that takes its configuration, a line in ``COMMANDS``, and conf/<name>.yaml.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from simfluence import renamed
from simfluence.errors import RecordingError, RunDataError

Command = Callable[[DictConfig], None]


def record(config: DictConfig) -> None:
    from simfluence.finetuning.experiment import record_runs

    plain = {key: _plain(config[key]) for key in ("task", "model", "tuning", "run")}
    numbers = None if config.number is None else [config.number]
    recorded = record_runs(
        plain,
        config.path,
        count=config.count,
        processes=config.processes,
        numbers=numbers,
        device=config.device,
    )
    what = f"all {config.count} runs" if numbers is None else f"run {config.number} of {config.count}"
    print(
        f"{what} complete in {config.path}; "
        + (f"{len(recorded)} recorded now" if recorded else "nothing to do")
    )


def fit(config: DictConfig) -> None:
    runs, simulator = _load(config.path), _simulator(config.simulator)
    _check_output(config.output)
    train, validation, notes = runs.split_to_fit(config.train, config.validation)
    for note in notes:
        print(f"note: {note}")
    simulator.fit(train, validation).save(config.output)
    print(f"fitted {simulator} to {len(train)} runs\nsaved to {config.output}")


def evaluate(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.evaluation import evaluate, scores_as_simulators

    runs = _load(config.path)
    train, validation, test = runs.split(config.train, config.validation, config.test, seed=config.seed)
    chosen = config.only if config.only is not None else list(config.simulators)
    if unknown := [name for name in chosen if name not in config.simulators]:
        raise ValueError(f"only={unknown[0]} is not among the simulators {', '.join(config.simulators)}")
    simulators = {name: _simulator(config.simulators[name]) for name in chosen}
    simulators |= scores_as_simulators(_plain(config.scores), train)
    print(f"{config.path}: {len(train)} training, {len(validation)} validation, {len(test)} test runs\n")
    evaluation = evaluate(simulators, train, test, validation)
    print(evaluation)
    if config.output is not None:
        report.write_evaluation(evaluation, config.output)
        print(f"table and figures: {config.output}/table.md, table.csv, loss_curves.png, error_by_step.png")


def whatif(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.finetuning.retrain import retrain_as_recorded
    from simfluence.whatif import ask, describe, edit

    runs, options = _load(config.path), _plain(config.edit)
    retrain = None
    if config.verify:
        retrain = retrain_as_recorded(config.path, describe(**options), config.device)
    answer = ask(
        runs,
        _simulator(config.simulator),
        lambda curriculum: edit(curriculum, train=runs.train, **options),
        run_id=config.run_id,
        train=config.train,
        validation=config.validation,
        level=config.level,
        retrain=retrain,
    )
    for note in answer.notes:
        print(f"note: {note}")
    run_id = config.run_id or runs.ids[-1]
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {run_id}: {describe(**options)} ({steps})\n\n{answer}")
    if config.output is not None:
        report.write_what_if(answer.changes, config.output)
        print(f"\nevery test example: {config.output}/what_if.csv, what_if.png")


def attribute(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.attribution.ekfac import layers_and_tokens
    from simfluence.attribution.methods import attribute as scores_of
    from simfluence.finetuning.attribution_context import recorded_context
    from simfluence.recording.weights import weight_steps

    runs, method, steps = _load(config.path), _plain(config.method), _plain(config)["steps"]
    if isinstance(steps, str) and steps != "initial":
        raise ValueError(f"steps must be null, initial, or a list of steps, got {steps!r}")
    ids = list(config.test_ids or runs.test.ids[:3])
    if unknown := [example for example in ids if example not in runs.test.ids]:
        raise ValueError(f"there is no test example {unknown[0]!r}; there are {', '.join(runs.test.ids)}")
    shown = [runs.test.ids.index(example) for example in ids]
    with_weights = [run.id for run in runs if weight_steps(Path(config.path) / run.id)]
    run = runs[runs.position(config.run_id or (with_weights or runs.ids)[0])]
    context = recorded_context(config.path, run, steps, config.device)

    scores = scores_of(context, method.pop("name"), only=config.only, progress=True, **method)
    scores = report.with_run(scores, Path(config.path).name, run.id)
    texts = (context.train_texts, context.test_texts) if config.text else None
    train, test = runs.train.ids, runs.test.ids
    print(report.write_attribution(scores, config.output, train, test, texts, shown, config.top))
    if method.get("factors") is not None:
        pair = [*scores.proponents(shown[0], 1), *scores.opponents(shown[0], 1)]
        parts = layers_and_tokens(context, pair, shown[:1], method["factors"])
        tokens = [context.tokens(context.train[i]) for i in pair]
        report.write_heat_map(parts, tokens, [f"{train[i]} for {ids[0]}" for i in pair], config.output)
    print(f"scores, card and figures: {config.output}")


def runs(config: DictConfig) -> None:
    from simfluence.runs import manage

    if config.run_id is not None:
        summary = manage.show(config.path, config.run_id)
        print(summary)
        if config.plot is not None:
            from simfluence import plots

            plots.recorded_losses(summary.run).savefig(config.plot, dpi=120)
            print(f"loss curves: {config.plot}")
    elif config.verify:
        problems = manage.verify(config.path)
        if len(problems):
            print(problems.to_markdown(index=False))
            _fail(f"{len(problems)} problems in {config.path}")
        print(f"every file in {config.path} is what its manifest says")
    elif config.prune is not None:
        chosen = {what: what in config.prune for what in ("attempts", "failed", "weights")}
        renamed.check(config.prune, renamed.PRUNING, ValueError)
        if unknown := set(config.prune) - set(chosen):
            raise ValueError(f"prune takes {', '.join(chosen)}, not {', '.join(sorted(unknown))}")
        found = manage.prune(config.path, **chosen, dry_run=not config.delete)
        print(found.to_markdown(index=False) if len(found) else "nothing to prune")
        if len(found) and not config.delete:
            print("\nnothing was deleted; add delete=true to delete these")
    elif len(sets := manage.list_sets(config.path)) == 1:
        print(manage.list_runs(config.path).to_markdown(index=False, floatfmt=".4g"))
    else:
        print(sets.to_markdown(index=False))


COMMANDS: dict[str, tuple[Command, str]] = {
    "record": (record, "fine-tune a model under many curricula and record every run"),
    "fit": (fit, "fit a simulator to a recorded run set and save it"),
    "evaluate": (evaluate, "fit simulators on some runs, predict the others, print the table"),
    "whatif": (whatif, "edit a curriculum, see the predicted change, verify it by retraining"),
    "attribute": (attribute, "score training examples for test examples by an attribution method"),
    "runs": (runs, "list, show, verify and prune what is recorded"),
}

_EXAMPLES = {
    "record": (
        "simfluence record task=piqa tuning=full run.optimizer.lr=3e-5 count=8",
        'simfluence record -m "number=range(0,32)" hydra/launcher=submitit_slurm',
        "simfluence record task=jsonl task.path=my.jsonl model=pretrained model.name=bert-base-uncased",
    ),
    "fit": ("simfluence fit simulator=linear simulator.center=pooled output=linear.safetensors",),
    "evaluate": (
        "simfluence evaluate path=runs/openbookqa-minilm only=[additive,linear] output=report",
        "simfluence evaluate scores=[runs/openbookqa-minilm/scores.safetensors]",
    ),
    "whatif": (
        "simfluence whatif edit.name=remove edit.groups=[completion]",
        "simfluence whatif edit.name=repeat edit.ids=[openbookqa-17] edit.times=10 verify=true",
        "simfluence whatif path=runs/mine simulator.scores=scores/scores.safetensors edit.ids=[q-17]",
    ),
    "attribute": (
        "simfluence attribute steps=initial",
        "simfluence attribute path=runs/mine method=ekfac test_ids=[q-17]",
        "simfluence attribute path=runs/mine method=tracin only=50",
    ),
    "runs": (
        "simfluence runs",
        "simfluence runs path=runs/openbookqa-minilm",
        "simfluence runs path=runs/openbookqa-minilm run_id=run-003 plot=run-003.png",
        "simfluence runs verify=true",
        "simfluence runs prune=[attempts,failed] delete=true",
    ),
}


# --------------------------------------------------------------------------------------- parsing


def main(arguments: list[str] | None = None) -> None:
    """The entry point; ``arguments`` as on the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return
    command, options = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"no command is named {command!r}; there are {', '.join(COMMANDS)}{hint}")
    if {"-h", "--help"} & set(options):
        print(_command_help(command, [option for option in options if not option.startswith("-")]))
        return
    _refuse_old(options)
    options.sort(key=lambda option: option not in ("-m", "--multirun"))  # hydra wants these first
    if not {"-m", "--multirun"} & set(options):
        _check(command, [option for option in options if not option.startswith("-")])
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    sys.argv = [f"simfluence {command}", *options]
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)
    run(_reported_plainly(COMMANDS[command][0]))()


def _refuse_old(options: list[str]) -> None:
    """End with a sentence if an option has an old name, whatever else is wrong."""
    names = {f"run.{old}": f"run.{new}" for old, new in renamed.RECORDING.items()}
    try:
        renamed.check((option.split("=")[0].lstrip("+~") for option in options), names, ValueError)
    except ValueError as error:
        _fail(str(error))


def conf_folder() -> Path:
    """conf/ as it was installed with the package, or as it lies in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "conf" if (here / "conf").is_dir() else here.parent / "conf"


def _compose(command: str, overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose(command, overrides)


def _check(command: str, overrides: list[str]) -> None:
    """Compose once to see that all options exist; otherwise say which do."""
    try:
        _compose(command, overrides)
    except (HydraException, OmegaConfBaseException) as error:
        known, groups = _options(command), _groups()
        lines = [str(error).splitlines()[0]]
        for key in (override.split("=")[0].lstrip("+~") for override in overrides):
            if key in groups:
                lines.append(f"{key} is one of {', '.join(groups[key])}")
            elif key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                lines.append(f"{key!r} is no option of {command}{hint}")
                lines.append(f"its options are {', '.join(known)}")
        _fail("\n".join(lines))


def _options(command: str) -> list[str]:
    config = OmegaConf.to_container(_compose(command, []), resolve=False)
    found: list[str] = []

    def walk(value: Any, prefix: str) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{prefix}.{key}" if prefix else key)
        else:
            found.append(prefix)

    walk(config, "")
    return found


def _groups() -> dict[str, list[str]]:
    """Every group of conf/ and its choices."""
    folders = sorted(folder for folder in conf_folder().iterdir() if folder.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def _help() -> str:
    lines = [
        "simfluence: record fine-tuning runs, fit a simulator of training, ask it what if.",
        "",
        "usage: simfluence COMMAND [option=value ...]",
        "",
        *(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "simfluence COMMAND --help shows a command's options, their defaults and examples.",
    ]
    return "\n".join(lines)


def _command_help(command: str, overrides: list[str]) -> str:
    """Options and their values, as the overrides given would set them."""
    config = _compose(command, overrides)
    groups = {name: choices for name, choices in _groups().items() if name in config}
    if command == "record":
        groups["experiment"] = _groups()["experiment"]
    lines = [
        f"simfluence {command}: {COMMANDS[command][1]}",
        "",
        f"usage: simfluence {command} [option=value ...]",
        "",
        *(f"  {example}" for example in _EXAMPLES[command]),
        "",
        *([f"{name}=  {' | '.join(choices)}" for name, choices in groups.items()] + [""] if groups else []),
        "options and defaults:",
        *(f"  {line}" for line in OmegaConf.to_yaml(config).splitlines()),
    ]
    return "\n".join(lines)


def _reported_plainly(command: Command) -> Command:
    """What went wrong in a sentence, without a traceback, where the user can mend it."""

    @wraps(command)
    def reported(config: DictConfig) -> None:
        try:
            command(config)
        except (RunDataError, RecordingError, ValueError, OmegaConfBaseException) as error:
            _fail(str(error))

    return reported


def _fail(message: str) -> None:
    print(f"simfluence: {message}", file=sys.stderr)
    raise SystemExit(2)


# --------------------------------------------------------------------------------------- helpers


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _load(path: str) -> Any:
    from simfluence.runs import RunSet

    return RunSet.load(path)


def _simulator(config: DictConfig) -> Any:
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import make_simulator

    params = _plain(config)
    if isinstance(params.get("scores"), str):
        params["scores"] = InfluenceScores.load(params["scores"])
    return make_simulator(**params)


def _check_output(path: str) -> None:
    """ValueError, before the work, for a file that could not be written after it."""
    folder = Path(path).resolve().parent
    if not folder.is_dir() or Path(path).is_dir():
        raise ValueError(f"output={path} must be a file in a folder that exists")


if __name__ == "__main__":
    main()
