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
        "simfluence whatif file=edits.yaml   # several named edits, in one table",
        "simfluence whatif edit.text=capital   # those whose text has this word",
        "simfluence whatif path=runs/mine simulator.scores=scores/scores.safetensors edit.ids=[q-17]",
    ),
    "rank": (
        "simfluence rank top=5",
        "simfluence rank of=which output=ranked   # for one group of test examples",
        "simfluence rank per=group what=add_one simulator=auto.safetensors",
    ),
    "groups": (
        "simfluence groups output=matrix",
        "simfluence groups path=runs/mine of=all simulator=auto.safetensors",
    ),
    "interactions": (
        "simfluence interactions top=5",
        "simfluence interactions per=example among=[openbookqa-229,openbookqa-476] of=which",
    ),
    "when": (
        "simfluence when groups=[which,what] output=places",
        "simfluence when of=which simulator=auto.safetensors",
    ),
    "search": (
        "simfluence search goal=leave_out k=20   # which 20 examples to leave out",
        "simfluence search goal=leave_out per=group k=1 of=which   # which group hurts those",
        "simfluence search goal=order objective=worst risk=1 output=order",
        "simfluence search goal=repeats most=3 budget=120",
    ),
    "next_runs": (
        "simfluence next_runs   # to know best what leaving out each group changes",
        "simfluence next_runs file=edits.yaml only='without which' count=4",
        "simfluence record path=runs/mine curricula=next_runs.json",
    ),
    "explore": (
        "simfluence explore output=openbookqa.html",
        "simfluence explore path=runs/mine run_id=run-003 texts=true output=mine.html",
        "simfluence explore path=runs/mine simulator=auto.safetensors output=mine.html   # what fit wrote",
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
        "simfluence attribute path=runs/mine steps=initial store=runs/mine/gradients",
        "simfluence attribute path=runs/mine store=runs/mine/gradients new=questions.jsonl",
        "simfluence attribute path=runs/mine store=runs/mine/gradients example.text='Why?'",
    ),
    "gradients": (
        "simfluence gradients path=runs/mine k=2048",
        "simfluence gradients path=runs/mine parameters=[*lora_*] batch_size=16",
        'simfluence gradients -m path=runs/mine "shard=1/4,2/4,3/4,4/4" wait=3600 hydra/launcher=joblib',
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
        "simfluence runs path=runs/mine watch=true   # while they are recorded: progress, time left, losses",
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
