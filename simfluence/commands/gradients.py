"""``simfluence gradients``: store gradients of the training examples, to score any test examples."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from omegaconf import DictConfig

from simfluence import outputs
from simfluence.attribution.initial import save_scores
from simfluence.attribution.registry import AttributionContext
from simfluence.attribution.store import LARGEST, is_complete, stored_scores
from simfluence.attribution.store_writing import write_store
from simfluence.commands.common import load, plain
from simfluence.finetuning.attribution_context import recorded_context
from simfluence.recording.weights import weight_steps
from simfluence.report import with_run
from simfluence.runs import Run
from simfluence.scores import OF_STORE


def run(config: DictConfig) -> None:
    outputs.check_folder(config.output)
    runs, steps = load(config.path), plain(config).get("steps", "initial")
    if steps is None:
        steps = "initial"
    with_weights = [run.id for run in runs if weight_steps(Path(config.path) / run.id)]
    run = runs[runs.position(config.run_id or (with_weights or runs.ids)[0])]
    share = share_of(config.shard)
    context = recorded_context(config.path, run, steps, config.device or _own_device())
    if (last := context.checkpoints[-1].step) and len(context.checkpoints) > 1:
        raise ValueError(f"a store is of the weights after one step: steps=initial, or steps=[{last}]")
    said = write_store(
        context,
        config.output,
        k=config.k,
        landmarks=config.landmarks,
        size_examples=config.size_examples,
        metric=config.metric,
        seed=config.seed,
        parameters=plain(config)["parameters"],
        batch_size=config.batch_size,
        shard_rows=config.shard_rows,
        share=share,
        wait=_wait(config.wait),
        progress=True,
    )
    print(said)
    if is_complete(config.output):
        print(_with_scores(context, config, run))


def _with_scores(context: AttributionContext, config: DictConfig, run: Run) -> str:
    """Leave the scores of the set's test examples in the store; a sentence on them."""
    if (size := len(context.train) * len(context.test)) > LARGEST:
        return (
            f"scores of all {len(context.test)} test examples would take {4 * size / 1e9:.1f} GB, and are not"
            f" written: attribute store={config.output} new=FILE scores some of them"
        )
    scores = with_run(stored_scores(context, config.output), Path(config.path).name, run.id)
    save_scores(scores, Path(config.output) / OF_STORE)
    return (
        f"scores of the set's test examples: {config.output}/{OF_STORE} (simulator.scores={config.output}"
        " takes them)"
    )


def share_of(shard: str | None) -> tuple[int, int]:
    """(j, p) of "j/p"; of the environment of torchrun where it is not given, else (1, 1)."""
    if shard is None:
        return int(os.environ.get("RANK", 0)) + 1, int(os.environ.get("WORLD_SIZE", 1))
    if not (found := re.fullmatch(r"(\d+)/(\d+)", shard)):
        raise ValueError(f"shard must be j/p, such as 3/8 for the third of eight processes; got {shard!r}")
    return int(found[1]), int(found[2])


def _wait(seconds: int | None) -> int:
    """Processes that torchrun started run at the same time, and so may wait for each other."""
    return seconds if seconds is not None else 3600 * ("WORLD_SIZE" in os.environ)


def _own_device() -> str | None:
    """Of a process that torchrun started, the GPU of its rank."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None
