"""``simfluence runs``: list, show, verify and prune what is recorded."""

from __future__ import annotations

from matplotlib.figure import Figure
from omegaconf import DictConfig

from simfluence import outputs, plots, renamed
from simfluence.commands.common import fail, load, make_simulator
from simfluence.evaluation.more_runs import more_runs
from simfluence.runs import example, live, manage
from simfluence.runs.start import in_words


def run(config: DictConfig) -> None:
    _check_runs(config)
    if config.run_id is not None:
        summary = manage.show(config.path, config.run_id)
        print(summary)
        if config.plot is not None:
            groups = manage.test_groups(config.path)
            plots.recorded_losses(summary.run, groups).savefig(config.plot, dpi=120)
            print(f"loss curves: {config.plot}")
    elif config.more:
        print(more_runs(load(config.path), make_simulator(config.simulator, config.path)))
    elif config.watch:
        live.watch(config.path)
    elif config.verify:
        problems = manage.verify(config.path)
        if len(problems):
            print(problems.to_markdown(index=False))
            fail(f"{len(problems)} problems in {config.path}")
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
    given = [
        name for name in ("run_id", "more", "watch", "verify", "prune") if config[name] not in (None, False)
    ]
    if len(given) > 1:
        raise ValueError(f"give only one of {', '.join(given)}")
    for option, of in (("plot", "run_id"), ("delete", "prune")):
        if config[option] not in (None, False) and of not in given:
            raise ValueError(f"{option} goes with {of}=")
    if config.delete:
        example.check_writable(config.path, "delete=true")
    if config.plot is not None:
        outputs.check_file(config.plot, Figure().canvas.get_supported_filetypes())
