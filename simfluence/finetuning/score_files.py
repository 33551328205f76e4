"""Attribution scores beside a run set, in <set>/scores/<method>.safetensors: computed once, then read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simfluence.attribution.methods import attribute
from simfluence.attribution.registry import OF_TEXTS, OF_WHOLE_RUN
from simfluence.finetuning.attribution_context import recorded_context, recorded_texts
from simfluence.recording.weights import weight_steps
from simfluence.runs import RunSet

FOLDER = "scores"


def score_files(path: str | Path) -> list[Path]:
    """The files of scores that lie beside a run set, or in its folder ``scores``."""
    return sorted(Path(path).glob("scores*.safetensors")) + sorted(Path(path).glob(f"{FOLDER}/*.safetensors"))


def make_scores(
    path: str | Path, runs: RunSet, methods: Sequence[str], device: str | None = None
) -> list[Path]:
    """The files of these methods' scores, of the set's first run that kept weights (else of its first run,
    trained again): with its last weights, or of the whole run. What is not there is computed.

    Raises what :func:`.attribution_context.recorded_context` raises.
    """
    with_weights = [run for run in runs if weight_steps(Path(path) / run.id)]
    run = (with_weights or runs.runs)[0]
    files = [Path(path) / FOLDER / f"{name}.safetensors" for name in methods]
    for name, file in zip(methods, files, strict=True):
        if not file.exists():
            if name in OF_TEXTS:
                context = recorded_texts(path, run)
            else:
                steps = [0] if name in OF_WHOLE_RUN else [len(run)]
                context = recorded_context(path, run, steps, device)
            print(f"scores of {name}: {len(context.train)} training, {len(context.test)} test examples")
            found = attribute(context, name, progress=True)
            file.parent.mkdir(exist_ok=True)
            replace(found, scores=found.scores.astype(np.float32)).save(file)
    return files
