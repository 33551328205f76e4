"""Attribution scores beside a run set, in <set>/scores/<method>.safetensors: computed once, then read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simfluence.attribution.along_run import expected_cost
from simfluence.attribution.initial import save_scores
from simfluence.attribution.methods import attribute
from simfluence.attribution.registry import OF_TEXTS, OF_WHOLE_RUN
from simfluence.errors import RecordingError
from simfluence.finetuning.attribution_context import recorded_context, recorded_texts
from simfluence.recording.weights import weight_steps
from simfluence.runs import RunSet
from simfluence.scores import INITIAL_SCORES

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
            save_scores(found, file)
    return files


def keep_initial_scores(path: str | Path, device: str | None = None) -> str:
    """Scores of the weights before training by the run's own optimizer (``gradient_step``), kept beside the
    set in ``scores/initial.safetensors``, of its first run; what they cost is printed first. Where they are
    there, or cannot be had, nothing is done.

    Returns a sentence on what was done; "" where they were there.
    """
    file = Path(path) / INITIAL_SCORES
    if file.exists():
        return ""
    try:
        context = recorded_context(path, RunSet.load(path, unreadable="skip")[0], "initial", device)
        print(f"to keep: {expected_cost(context, 'gradient_step')}", flush=True)
        save_scores(attribute(context, "gradient_step", progress=True), file)
    except (ValueError, RecordingError) as error:
        return f"no scores are kept beside the set: {error}"
    return f"scores before training: {file} (simulators use them; scores=false leaves them out)"
