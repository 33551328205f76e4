"""On paper: what a model of a billion parameters would take, from what scale.py measured.

A pass takes 6 operations a parameter and token. Stages that take the model are counted in passes, those that
do not in seconds of one core an example, as measured at the largest size.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

PARAMETERS, EXAMPLES, TOKENS, TESTS = 1e9, 1e5, 512, 100
SPEED = 0.4 * 989e12
"""Operations a second of one H100 in bfloat16, at 40 % of what its data sheet says."""
PRICE = 2.5
"""Dollars an hour of one H100; an assumption."""
K, WIDTH, LANDMARKS = 4096, 2**16, 1024
LARGEST = 1.3e8
"""Numbers of the largest parameter: a vocabulary of 64 000 by 2048."""
BATCH = 8


def estimate(passes: Mapping[str, float], seconds: Mapping[str, float]) -> pd.DataFrame:
    """Hours, gigabytes and dollars of every stage on one GPU and on eight.

    passes : of the stages that take the model. seconds : of one core and one training example, of the others.
    """
    a_pass = 6 * PARAMETERS * TOKENS * EXAMPLES / SPEED / 3600
    sizes = {"record": 0.0, "store": stored(), "scores": 4 * EXAMPLES * TESTS / 1e9}
    rows = [_row("training itself: one pass and no recording", a_pass, a_pass / 8, 0.0)]
    for stage, count in passes.items():
        one = (count - (stage == "record")) * a_pass  # of a recording, what comes on top of training
        name = "recording, beside training" if stage == "record" else stage
        rows.append(_row(name, one, one / 8, sizes.get(stage, 0.0)))
    for stage, each in seconds.items():
        hours = each * EXAMPLES / 3600
        rows.append(_row(f"{stage}, one core", hours, hours, 0.0))
    frame = pd.DataFrame(rows)
    extra = frame.iloc[1:].sum(numeric_only=True)
    frame.loc[len(frame)] = {"stage": "all beside training", **extra}
    return frame


def _row(stage: str, one: float, eight: float, disk: float) -> dict[str, object]:
    cost = PRICE * max(one, 8 * eight) if one != eight else 0.0
    return {"stage": stage, "hours, 1 GPU": one, "hours, 8 GPUs": eight, "disk GB": disk, "dollars": cost}


def stored() -> float:
    """Gigabytes of a store on disk: gradients in float16, sizes and the landmarks' basis in float32."""
    return (2 * EXAMPLES * K + 4 * PARAMETERS + 4 * WIDTH * LANDMARKS) / 1e9


def memory() -> dict[str, float]:
    """Gigabytes beside the model in the three parts of writing a store, as `simfluence gradients` says it."""
    return {
        "Adam's sizes": (8 * PARAMETERS + 8 * BATCH * LARGEST) / 1e9,
        "landmarks": (8 * PARAMETERS + 12 * WIDTH * LANDMARKS) / 1e9,
        "gradients": (8 * PARAMETERS + 4 * WIDTH * LANDMARKS + 20 * 512 * K) / 1e9,
    }
