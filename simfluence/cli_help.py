"""What the command line prints when it is asked for help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from omegaconf import OmegaConf

from simfluence import options

EXAMPLES = {
    "record": (
        "simfluence record task=piqa tuning=full run.optimizer.lr=3e-5 count=8",
        'simfluence record -m "number=range(0,32)" hydra/launcher=submitit_slurm',
        "simfluence record task=jsonl task.path=my.jsonl model=pretrained model.name=bert-base-uncased",
        "simfluence record task=instructions task.path=my.jsonl model=smollm2 run=everything count=1",
    ),
    "fit": (
        "simfluence fit output=auto.safetensors",
        "simfluence fit path=runs/mine simulator.scores=scores/scores.safetensors output=auto.safetensors",
        "simfluence fit simulator=linear simulator.center=pooled output=linear.safetensors",
    ),
    "evaluate": (
        "simfluence evaluate path=runs/openbookqa-minilm only=[additive,linear] output=report",
        "simfluence evaluate scores=[runs/openbookqa-minilm/scores.safetensors]",
        "simfluence evaluate simulator=auto.safetensors   # what fit wrote, as it is, beside the others",
    ),
    "whatif": (
        "simfluence whatif edit.name=remove edit.groups=[completion]",
        "simfluence whatif simulator=auto.safetensors edit.groups=[completion]   # what fit wrote, as it is",
        "simfluence whatif edit.name=repeat edit.ids=[openbookqa-17] edit.times=10 verify=true",
        "simfluence whatif edit.groups=[completion] edit.schedule=keep   # the original's learning rates",
        "simfluence whatif path=runs/mine simulator.scores=scores/scores.safetensors edit.ids=[q-17]",
    ),
    "benchmark": (
        "simfluence benchmark path=runs/mine methods=[linear,auto,bm25,ekfac] output=benchmark",
        "simfluence benchmark path=runs/mine methods=[linear,my_scores.safetensors] scores=false",
    ),
    "attribute": (
        "simfluence attribute steps=initial",
        "simfluence attribute path=runs/mine steps=6   # along a run, for kernels that change",
        "simfluence attribute path=runs/mine method=ekfac test_ids=[q-17]",
        "simfluence attribute path=runs/mine method=tracin only=50",
    ),
    "predictability": (
        "simfluence predictability path=runs/mine count=2",
        "simfluence predictability path=runs/mine epsilon=1e-3   # how simulators' own errors grow",
    ),
    "runs": (
        "simfluence runs",
        "simfluence runs path=runs/openbookqa-minilm",
        "simfluence runs path=runs/openbookqa-minilm run_id=run-003 plot=run-003.png",
        "simfluence runs path=runs/openbookqa-minilm more=true   # what recording more would bring",
        "simfluence runs verify=true",
        "simfluence runs prune=[attempts,failed] delete=true",
    ),
}


def overview(commands: Mapping[str, str]) -> str:
    """What `simfluence` prints: every command, and what it does."""
    lines = [
        "simfluence: record fine-tuning runs, fit a simulator of training, ask it what if.",
        "",
        "usage: simfluence COMMAND [option=value ...]",
        "",
        *(f"  {name:16}{what}" for name, what in commands.items()),
        "",
        "simfluence COMMAND --help shows a command's options, their defaults and examples.",
    ]
    return "\n".join(lines)


def of_command(command: str, what: str, overrides: Sequence[str]) -> str:
    """Options and their values, as the overrides given would set them."""
    groups = options.groups_of(command)
    lines = [
        f"simfluence {command}: {what}",
        "",
        f"usage: simfluence {command} [option=value ...]",
        "",
        *(f"  {example}" for example in EXAMPLES[command]),
        "",
        *([f"{name}=  {' | '.join(choices)}" for name, choices in groups.items()] + [""] if groups else []),
        "options and defaults:",
        *(f"  {line}" for line in OmegaConf.to_yaml(options.compose(command, overrides)).splitlines()),
    ]
    return "\n".join(lines)
