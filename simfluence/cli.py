"""``simfluence``: the command line. Parses (with hydra), calls, prints; all else is elsewhere.

To add a command: a function that takes its configuration, a line in ``COMMANDS``, and conf/<name>.yaml.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from simfluence import __version__, options, outputs, renamed
from simfluence.cli_help import of_command, overview
from simfluence.errors import RecordingError
from simfluence.options import conf_folder

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
        mixed=config.mixed,
    )
    what = f"all {config.count} runs" if numbers is None else f"run {config.number} of {config.count}"
    print(
        f"{what} complete in {config.path}; "
        + (f"{len(recorded)} recorded now" if recorded else "nothing to do")
    )


def fit(config: DictConfig) -> None:
    from simfluence.fitted import fit as fit_to

    outputs.check_file(config.output)
    runs, simulator = _load(config.path), _simulator(config.simulator)
    fitted = fit_to(runs, simulator, train=config.train, validation=config.validation, level=config.level)
    _print_notes([*fitted.notes, *fitted.simulator.notes])
    fitted.save(config.output)
    print(f"fitted {simulator} to {len(fitted.runs or ())} runs")
    print(f"saved to {config.output}: simulator={config.output} of whatif and evaluate takes it as it is")


def evaluate(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.evaluation import evaluate, scores_as_simulators
    from simfluence.fitted import Fitted

    if config.output is not None:
        outputs.check_folder(config.output)
    runs = _load(config.path)
    train, validation, test, notes = runs.split_to_test(
        config.train, config.validation, config.test, seed=config.seed
    )
    chosen = config.only if config.only is not None else list(config.simulators)
    if unknown := [name for name in chosen if name not in config.simulators]:
        raise ValueError(f"only={unknown[0]} is not among the simulators {', '.join(config.simulators)}")
    simulators = {name: _simulator(config.simulators[name]) for name in chosen}
    if config.only is None and any(curriculum.amounts is not None for curriculum in runs.curricula):
        simulators = {name: one for name, one in simulators.items() if one.takes_shares}
        notes.append("the runs consume shares of groups: without simulators of counted examples")
    simulators |= scores_as_simulators(_plain(config.scores), train)
    fitted = {file: Fitted.load(file) for file in config.fitted}
    simulators |= {f"{one.simulator.name} ({file})": one.unchanged(test) for file, one in fitted.items()}
    _print_notes([*notes, *(f"{file}: {one}" for file, one in fitted.items())])
    print(f"{config.path}: {len(train)} training, {len(validation)} validation, {len(test)} test runs\n")
    evaluation = evaluate(simulators, train, test, validation)
    print(evaluation)
    if config.output is not None:
        report.write_evaluation(evaluation, config.output)
        print(f"table and figures: {config.output}/table.md, table.csv, loss_curves.png, error_by_step.png")


def benchmark(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.evaluation.benchmark import benchmark as held_to_one_standard
    from simfluence.evaluation.benchmark import needs, score_methods, simulator_methods
    from simfluence.finetuning.score_files import make_scores, score_files
    from simfluence.finetuning.subsets import banks_beside, retrain_recorded

    outputs.check_folder(config.output)
    runs = _load(config.path)
    simulators, scored, files = _kinds_of_methods(config.methods)
    if config.against not in (*simulators, "persistence", "mean_trajectory"):
        raise ValueError(f"against={config.against} is not among the simulators of methods")
    for name, least in (("subsets", 0), ("seeds", 1)):
        if config[name] < least:
            raise ValueError(f"{name} must be at least {least}, got {config[name]}")
    there = score_files(config.path) if config.scores else []
    made = make_scores(config.path, runs, scored, config.device)
    files = list(dict.fromkeys([*files, *map(str, made), *map(str, there)]))
    split = {key: config[key] for key in ("train", "validation", "test", "processes")}
    split |= {"folder": Path(config.output) / "cells"}
    methods = [*simulator_methods(simulators), *score_methods(files, runs)]
    *_, notes = runs.split_to_test(config.train, config.validation, config.test)
    _print_notes(notes)
    found = held_to_one_standard(runs, methods, **split)
    print(f"{config.path}\n\n{found}\n")
    sizes, every = [int(size) for size in config.sizes], [int(step) for step in config.every]
    learners = needs(simulators, files, sizes, every, len(runs))
    costs = held_to_one_standard(runs, learners, **split)
    report.write_benchmark(found, costs, config.output, config.against, report.seconds_of_a_run(config.path))
    if config.subsets:
        retrain_recorded(config.path, runs, config.subsets, config.fraction, config.seeds, config.device)
    for bank in banks_beside(config.path):
        print(f"\n{report.write_lds(bank, files, config.output)}\n")
    print(f"tables (.md, .csv, .tex) and figures (.png, .pdf): {config.output}")


def whatif(config: DictConfig) -> None:
    from simfluence import report, verified
    from simfluence.edit import Edit
    from simfluence.finetuning.retrain import retrain_as_recorded
    from simfluence.fitted import Fitted
    from simfluence.whatif import ask

    if config.output is not None:
        outputs.check_folder(config.output)
    runs, edit = _load(config.path), Edit(**_plain(config.edit))
    simulator = _simulator(config.simulator) if config.fitted is None else Fitted.load(config.fitted)
    name = simulator.simulator.name if isinstance(simulator, Fitted) else simulator.name
    known = verified.Verified()
    if config.level is not None:
        known = verified.said(config.path, config.level, name)
    answer = ask(
        runs,
        simulator,
        edit,
        run_id=config.run_id,
        train=config.train,
        validation=config.validation,
        level=config.level,
        widened=known.widened,
        retrain=retrain_as_recorded(config.path, str(edit), config.device) if config.verify else None,
    )
    run_id = config.run_id or runs.ids[-1]
    steps = f"{len(answer.original)} steps → {len(answer.edited)}"
    print(f"what if, in {run_id}: {edit} ({steps})\n\n{answer}")
    if config.output is not None:
        report.write_what_if(answer, config.output)
        print(f"\nevery test example: {config.output}/what_if.csv, what_if.png, what_if.md, what_if.json")
    if config.verify and answer.level is not None:
        verified.keep(config.path, run_id, str(edit), name, answer)


def attribute(config: DictConfig) -> None:
    from simfluence import report
    from simfluence.attribution.along_run import along_run, expected_cost
    from simfluence.attribution.ekfac import layers_and_tokens
    from simfluence.attribution.methods import attribute as scores_of
    from simfluence.attribution.registry import OF_ALL_CHECKPOINTS, OF_TEXTS, OF_WHOLE_RUN
    from simfluence.finetuning.attribution_context import recorded_context, recorded_texts
    from simfluence.recording.weights import weight_steps

    outputs.check_folder(config.output)
    runs, method, steps = _load(config.path), _plain(config.method), _plain(config)["steps"]
    ids = list(config.test_ids or runs.test.ids[:3])
    if unknown := [example for example in ids if example not in runs.test.ids]:
        there = ", ".join([*runs.test.ids[:5], "…"][: len(runs.test)])
        raise ValueError(f"there is no test example {unknown[0]!r}; there are {there}")
    shown = [runs.test.ids.index(example) for example in ids]
    with_weights = [run.id for run in runs if weight_steps(Path(config.path) / run.id)]
    run = runs[runs.position(config.run_id or (with_weights or runs.ids)[0])]
    if method["name"] in OF_TEXTS:
        context = recorded_texts(config.path, run)
    else:
        if method["name"] in OF_WHOLE_RUN:
            steps = "initial"
        context = recorded_context(config.path, run, steps, config.device)

    name = method.pop("name")
    if steps is not None and len(context.checkpoints) > 1 and name not in OF_ALL_CHECKPOINTS:
        print(expected_cost(context, name, **method), flush=True)
        scores_of = along_run
    scores = scores_of(context, name, only=config.only, progress=True, **method)
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


def predictability(config: DictConfig) -> None:
    from simfluence.evaluation import evaluate
    from simfluence.finetuning.predictability import predictability as compared
    from simfluence.finetuning.predictability import train_again
    from simfluence.simulators import make_simulator

    runs = _load(config.path)
    train, validation, test, notes = runs.split_to_test(config.train, config.validation)
    numbers = range(len(runs))[-config.count :]
    again = train_again(config.path, [runs[number] for number in numbers], config.epsilon, config.device)
    found = compared(runs.loss, again, numbers)
    reached = evaluate({"auto": make_simulator("auto")}, train, test, validation).skill("auto")
    _print_notes([*notes, *([found.warning] if found.warning else [])])
    print(f"{config.path}: {len(numbers)} runs trained again from weights changed by {config.epsilon:g}\n")
    print(found.beside("skill of auto", reached))


def runs(config: DictConfig) -> None:
    from simfluence.runs import manage
    from simfluence.runs.start import in_words

    _check_runs(config)
    if config.run_id is not None:
        summary = manage.show(config.path, config.run_id)
        print(summary)
        if config.plot is not None:
            from simfluence import plots

            plots.recorded_losses(summary.run).savefig(config.plot, dpi=120)
            print(f"loss curves: {config.plot}")
    elif config.more:
        from simfluence.evaluation.more_runs import more_runs

        print(more_runs(_load(config.path), _simulator(config.simulator)))
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
        print(f"\n{in_words(manage.runs_start_alike(config.path))}")
    else:
        print(sets.to_markdown(index=False))


def _check_runs(config: DictConfig) -> None:
    """ValueError for options of ``runs`` that do not go together, and for a figure that cannot be written."""
    from matplotlib.figure import Figure

    given = [name for name in ("run_id", "more", "verify", "prune") if config[name] not in (None, False)]
    if len(given) > 1:
        raise ValueError(f"give only one of {', '.join(given)}")
    for option, of in (("plot", "run_id"), ("delete", "prune")):
        if config[option] not in (None, False) and of not in given:
            raise ValueError(f"{option} goes with {of}=")
    if config.plot is not None:
        outputs.check_file(config.plot, Figure().canvas.get_supported_filetypes())


COMMANDS: dict[str, tuple[Command, str]] = {
    "record": (record, "fine-tune a model under many curricula and record every run"),
    "fit": (fit, "fit a simulator to a recorded run set and save it"),
    "evaluate": (evaluate, "fit simulators on some runs, predict the others, print the table"),
    "benchmark": (benchmark, "hold simulators and attribution methods to one standard, in paper tables"),
    "whatif": (whatif, "edit a curriculum, see the predicted change, verify it by retraining"),
    "attribute": (attribute, "score training examples for test examples by an attribution method"),
    "runs": (runs, "list, show, verify and prune what is recorded"),
    "predictability": (predictability, "retrain runs from weights that hardly differ: a ceiling of skill"),
}

WHAT = {name: what for name, (_, what) in COMMANDS.items()}


# --------------------------------------------------------------------------------------- parsing

FLAGS = ("-h", "--help", "--version", "-m", "--multirun", "--cfg", "--resolve", "--info", "--hydra-help")
"""Ours, and those of hydra's that show something."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point; ``arguments`` as on the command line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = {argument for argument in arguments if argument.startswith("-")}
    if unknown := sorted(flag for flag in flags if flag.split("=")[0] not in FLAGS):
        close = difflib.get_close_matches(unknown[0], FLAGS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"there is no flag {unknown[0]!r}{hint}")
    given = [argument for argument in arguments if argument not in flags]
    if "--version" in flags:
        print(f"simfluence {__version__}")
        return
    if not given:
        print(overview(WHAT))
        return
    command = given[0]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"no command is named {command!r}; there are {', '.join(COMMANDS)}{hint}")
    sweep = bool(flags & {"-m", "--multirun"})
    try:
        overrides = options.as_typed(command, _from_files(command, given[1:]))
        options.check(command, overrides, sweep)
    except ValueError as error:
        _fail(str(error))
    if flags & {"-h", "--help"}:
        print(of_command(command, WHAT[command], overrides))
        return
    os.environ.setdefault("HYDRA_FULL_ERROR", "0")
    sys.argv = [f"simfluence {command}", *sorted(flags), *overrides]
    run = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)
    run(_reported_plainly(command))()


def _from_files(command: str, given: list[str]) -> list[str]:
    """simulator=FILE as fitted=FILE: a file that ``fit`` wrote is no choice of a group."""
    taken = [
        option
        for option in given
        if re.match(r"simulator=.*(\.safetensors|/)", option)
        or (option.startswith("simulator=") and Path(option.removeprefix("simulator=")).is_file())
    ]
    if taken and command == "fit":
        raise ValueError(f"{taken[0]} is fitted already: whatif and evaluate take it")
    settings = [option for option in given if option.startswith("simulator.")]
    if taken and settings and command == "whatif":
        raise ValueError(f"{taken[0]} is fitted already: it does not take {settings[0]}")
    return [option.replace("simulator=", "fitted=", 1) if option in taken else option for option in given]


def _reported_plainly(command: str) -> Command:
    """A command that is given its options as their types, and says what went wrong in a sentence, without a
    traceback, where the user can mend it."""
    function = COMMANDS[command][0]

    @wraps(function)
    def reported(config: DictConfig) -> None:
        try:
            function(options.typed(command, config))
        except MissingMandatoryValue as error:
            _fail(f"{error.full_key} has no value: give one by {error.full_key}=…")
        except OmegaConfBaseException as error:
            _fail(str(error).splitlines()[0])
        except (RecordingError, ValueError, OSError) as error:
            _fail(str(error))
        except TypeError as error:
            if not (
                found := re.search(
                    r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error)
                )
            ):
                raise
            keys = [key for key, _ in options.leaves(_plain(config)) if key.split(".")[-1] == found[2]]
            where = keys[0] if keys else found[2]
            _fail(f"{found[1]} has no option {found[2]!r}; ~{where} leaves it out")

    return reported


def _fail(message: str) -> None:
    print(f"simfluence: {message}", file=sys.stderr)
    raise SystemExit(2)


# --------------------------------------------------------------------------------------- helpers


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def _kinds_of_methods(names: list[str]) -> tuple[dict[str, dict[str, Any]], list[str], list[str]]:
    """Simulators with their options, attribution methods, and files of scores; ValueError for other names."""
    from simfluence.attribution import METHODS

    known = {file.stem: file for file in sorted((conf_folder() / "simulator").glob("*.yaml"))}
    simulators, scored, files = {}, [], []
    for name in names:
        if name in known:
            simulators[name] = _plain(OmegaConf.load(known[name]))
        elif name in METHODS:
            scored.append(name)
        elif Path(name).is_file():
            files.append(name)
        else:
            close = difflib.get_close_matches(name, [*known, *METHODS], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name!r} is no simulator, no attribution method and no file of scores{hint}")
    return simulators, scored, files


def _load(path: str) -> Any:
    from simfluence.runs import RunSet

    return RunSet.load(path)


def _simulator(config: DictConfig) -> Any:
    from simfluence.attribution import InfluenceScores
    from simfluence.simulators import make_simulator

    params = _plain(config)
    if files := params.get("scores"):
        scores = [InfluenceScores.load(file) for file in files]
        params["scores"] = scores[0] if len(scores) == 1 else scores
    return make_simulator(**params)


if __name__ == "__main__":
    main()
