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

    train, validation = _to_fit(_load(config.path), config)
    simulator = _simulator(config.simulator).fit(train, validation)
    simulator.save(config.output)
    chosen = getattr(simulator, "penalty_", None)
    print(
        f"fitted {simulator} to {len(train)} runs" + (f", penalty {chosen:g}" if chosen is not None else "")
    )
    print(f"saved to {config.output}")


def evaluate(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.evaluation import evaluate, to_markdown

    runs = _load(config.path)
    train, validation, test = runs.split(config.train, config.validation, config.test, seed=config.seed)
    chosen = config.only if config.only is not None else list(config.simulators)
    if unknown := [name for name in chosen if name not in config.simulators]:
        raise ValueError(f"only={unknown[0]} is not among the simulators {', '.join(config.simulators)}")
    simulators = {name: _simulator(config.simulators[name]) for name in chosen}
    simulators |= _scored(_plain(config.scores), runs)
    print(f"{config.path}: {len(train)} training, {len(validation)} validation, {len(test)} test runs\n")
    evaluation = evaluate(simulators, train, test, validation)
    print(to_markdown(evaluation.scores))
    if config.output is not None:
        report.write_evaluation(evaluation, config.output)
        print(f"table and figures: {config.output}/table.md, table.csv, loss_curves.png, error_by_step.png")


def whatif(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.finetuning.experiment import record_runs
    from simfluence.finetuning.retrain import check_task, recorded_config, recorded_device
    from simfluence.finetuning.tasks import load_task
    from simfluence.runs import RunSet
    from simfluence.simulators import PredictiveBands
    from simfluence.whatif import agreement, by_group, edit, verified, what_if, with_band

    runs = _load(config.path)
    run = runs[runs.position(config.run_id) if config.run_id is not None else -1]
    level, (train, validation) = config.level, _to_fit(runs, config)
    if run.id in train.ids + validation.ids and len(train) + len(validation) < len(runs):
        print(f"note: the simulator is fitted to {run.id} itself; choose a run that it has not seen")
    if level is not None and len(train) + len(validation) < 3:
        print("note: no bands, which take three runs to learn errors from")
        level = None
    edited = edit(run.curriculum, train=runs.train, **_plain(config.edit))
    if level is None:
        simulator = _simulator(config.simulator).fit(train, validation)
        answer = what_if(simulator, run.curriculum, edited, run.initial_loss, runs.test)
    else:
        bands = PredictiveBands(_simulator(config.simulator), level)
        bands.fit(runs[: len(train) + len(validation)])
        answer = what_if(bands.simulator_, run.curriculum, edited, run.initial_loss, runs.test)
        answer = with_band(answer, bands, run.initial_loss)
    changes = answer.changes
    print(f"what if, in {run.id}: {_said(config.edit)} ({len(run)} steps → {len(edited)})\n")
    if config.verify:
        if not run.config:
            raise RunDataError(f"{run.id} was not recorded by `simfluence record`: retrain it yourself")
        folder, name = f"{config.path.rstrip('/')}-whatif", f"{run.id}-{_said(config.edit, slug=True)}"
        check_task(load_task(**recorded_config(run)["task"]), runs.train, runs.test)
        where = config.device or str(recorded_device(run))
        record_runs(recorded_config(run), folder, count=1, curricula={name: edited}, device=where)
        retrained = RunSet.load(folder)
        changes = verified(answer, run, retrained[retrained.position(name)])
    print(by_group(changes).to_markdown(floatfmt=".4f"))
    if config.verify:
        found = agreement(changes)
        print(
            f"\nagainst retraining, over {len(changes)} test examples: Pearson {found['pearson']:.2f},"
            f" Spearman {found['spearman']:.2f}, same sign {found['same_sign']:.0%}"
            + (f", {found['in_band']:.0%} within the {level:.0%} band" if "in_band" in found else "")
        )
    if config.output is not None:
        report.write_what_if(changes, config.output)
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


def linearise(config: DictConfig) -> None:
    from simfluence.finetuning.linearise import linearise_runs

    runs = _load(config.path)
    options = {key: config[key] for key in ("coordinates", "seed", "device")}
    found = linearise_runs(runs, config.along, **options, progress=True)
    found.save(config.output)
    print(f"Jacobians of {found.n_train} training and {found.n_test} test examples: {config.output}")


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
    "linearise": (linearise, "take the Jacobians of all examples, for simulators that train with them"),
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
    "linearise": (
        "simfluence linearise path=runs/mine",
        "simfluence fit path=runs/mine simulator.tangent=runs/mine/linearised.safetensors",
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
    if command == "tangent":
        _fail("the command 'tangent' is now named 'linearise'")
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


def _to_fit(runs: Any, config: DictConfig) -> tuple[Any, Any]:
    """The first runs, for fitting and for choosing; all for fitting, if that would be more than there are."""
    if len(runs) >= (wanted := config.train + config.validation):
        return runs.split(config.train, config.validation)[:2]
    print(f"note: {len(runs)} runs, fewer than train + validation = {wanted}: fitted to all")
    return runs.split(len(runs))[:2]


def _simulator(config: DictConfig) -> Any:
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import Tangent, make_simulator

    params = _plain(config)
    if isinstance(params.get("scores"), str):
        params["scores"] = InfluenceScores.load(params["scores"])
    if isinstance(params.get("tangent"), str):
        params["tangent"] = Tangent.load(params["tangent"])
    return make_simulator(**params)


def _scored(files: list[str], runs: Any) -> dict[str, Any]:
    """Simulators of files of scores: calibrated, as they are where they have units, and replayed where
    losses have log-odds."""
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import ReplayedSimulator, ScoredSimulator, Simulator

    found: dict[str, Simulator] = {}
    for file in files:
        scores = InfluenceScores.load(file)
        name = scores.method if f"{scores.method}, calibrated" not in found else f"{scores.method} ({file})"
        found[f"{name}, calibrated"] = ScoredSimulator(scores)
        if scores.weighing:
            found[f"{name}, as is"] = ScoredSimulator(scores, calibrated=False)
        if not (runs.loss <= 0).any():  # NaN where not evaluated
            found[f"{name}, replayed"] = ReplayedSimulator(scores)
    return found


def _said(edit: DictConfig, *, slug: bool = False) -> str:
    """The edit in words, or as a run's name."""
    words = [edit.name]
    words += [str(value) for key in ("groups", "ids", "before_groups", "before_ids") for value in edit[key]]
    words += [f"{key} {edit[key]}" for key in ("times", "window") if edit[key] is not None]
    if not slug:
        return " ".join(words)
    name = "-".join("".join(c if c.isalnum() else "-" for c in word) for word in words)
    return name[:60].strip("-")


if __name__ == "__main__":
    main()
