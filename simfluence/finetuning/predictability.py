"""How predictable a training is: recorded runs are trained again, from weights that hardly differ.

Where a difference of a millionth in every weight grows into losses that are as far apart as those of other
curricula, no simulator can predict them. Two things say how near a training comes to that:

    ceiling = 1 − ½ E(L − L')² / Var(L)      what is left of the variance over runs; no skill is above it
    growth  = max_t d_t / d_0                d_t: root mean square of L_t − L'_t over runs and test examples

L are the recorded losses, L' those of the same curricula from weights W (1 + ε n), n standard normal. Half of
the mean squared difference of two runs that differ by chance alone is the variance that is due to chance. A
simulator errs by far more than a millionth, and its errors grow as these differences do: growth warns where
the ceiling is still near 1 (analysis/results/predictability.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from simfluence.errors import RunDataError
from simfluence.finetuning.experiment import Prepared, prepare
from simfluence.finetuning.metrics import recorded_loss
from simfluence.finetuning.retrain import check_task, recorded_config, recorded_device, retrain
from simfluence.recording import Evaluator
from simfluence.runs import Run, RunSet

Array = npt.NDArray[np.float64]

EPSILON = 1e-6
"""ε: by how much of itself a weight is changed."""

GREAT_GROWTH = 100.0
"""From which on losses at the end of a run are hardly predicted (analysis/results/predictability.md)."""


@dataclass(frozen=True)
class Predictability:
    """What trainings from perturbed weights say.

    ceiling, ceiling_at_end : of skill, over all steps and at the last one; at most 1.
    growth : of differences between losses, from before the first step to where they are largest.
    """

    ceiling: float
    ceiling_at_end: float
    growth: float

    def beside(self, name: str, skill: tuple[float, float]) -> str:
        """A table of the ceiling and a simulator's skill (over all steps, at the last one); the growth."""
        rows = [("ceiling of skill", self.ceiling, self.ceiling_at_end), (name, *skill)]
        frame = pd.DataFrame(rows, columns=["", "all steps", "last step"])
        table = frame.to_markdown(index=False, floatfmt=".3f")
        return f"{table}\n\ndifferences between losses grow {self.growth:.2g} times"

    @property
    def warning(self) -> str | None:
        """A sentence where the training is hardly predictable."""
        if self.growth < GREAT_GROWTH:
            return None
        return (
            f"a difference in the initial weights grows {self.growth:.2g} times during training: expect no"
            " simulator to predict its end, and train with a lower learning rate"
        )


def predictability(losses: Array, again: Array, runs: Sequence[int]) -> Predictability:
    """Compare recorded runs with the same runs from perturbed weights.

    losses : float [run, step + 1, test] of all recorded runs, two at least, which the variance is taken over;
        NaN where not evaluated. again : float [number, step + 1, test] of those in ``runs`` (their numbers).

    Raises ValueError where the shapes do not fit, or the runs do not differ.
    """
    if len(losses) < 2 or again.shape != losses[list(runs)].shape:
        raise ValueError(
            f"expected losses [run, step + 1, test] of two runs or more and, of those trained again,"
            f" [{len(runs)}, step + 1, test]; got {losses.shape} and {again.shape}"
        )
    known = np.isfinite(losses).any(0)
    mean = np.where(known, np.nansum(losses, axis=0) / np.isfinite(losses).sum(0).clip(1), np.nan)
    differences = np.square(losses[list(runs)] - again)
    variance = np.square(losses - mean) * len(losses) / (len(losses) - 1)
    ceilings = []
    for part in (lambda squares: squares[:, 1:], _at_the_end):
        total = _mean_over_runs(part(variance))
        if not total > 0:
            raise ValueError("the recorded runs do not differ: record runs with different curricula")
        ceilings.append(1 - _mean_over_runs(part(differences)) / 2 / total)
    return Predictability(ceilings[0], ceilings[1], _growth(differences))


def train_again(path: str, runs: Sequence[Run], epsilon: float = EPSILON, device: str | None = None) -> Array:
    """The losses of recorded runs, trained once more from perturbed weights, float [run, step + 1, test].

    path : the folder of their run set. device : as torch names it; None is where each run was trained.

    Raises ValueError for an epsilon that is not above 0, RunDataError for runs that ``simfluence record`` did
    not make, or whose initial losses are others with the model as it is today.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is a change of weights relative to their size, above 0; got {epsilon}")
    recorded = RunSet.load(path)
    losses = np.full((len(runs), recorded.loss.shape[1], len(recorded.test)), np.nan)
    for number, run in enumerate(tqdm(runs, desc="training again", unit="run")):
        if not run.config:
            raise RunDataError(
                f"{run.id} was not recorded by `simfluence record`, which alone can train it again"
            )
        config = recorded_config(run)
        prepared = prepare(config, device or str(recorded_device(run)))
        check_task(prepared.task, recorded.train, recorded.test)
        size = int(config["run"].get("eval_batch_size", 10))
        loss = recorded_loss()
        evaluate = Evaluator(prepared.task.test, loss, batch_size=size, length=prepared.model.length)
        _check_start(run, prepared, evaluate)
        generator = torch.Generator().manual_seed(number)
        for step in retrain(_perturbed(prepared, epsilon, generator), run):
            if step in run.evaluated:
                losses[number, step] = evaluate(prepared.model)["loss"]
    return losses


def perturbed(weights: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """W (1 + ε n), n standard normal; ε at least what the weights' type can tell from 1."""
    noise = torch.randn(weights.shape, generator=generator).to(weights.device)
    return weights * (1 + max(epsilon, torch.finfo(weights.dtype).eps) * noise).to(weights.dtype)


def _perturbed(prepared: Prepared, epsilon: float, generator: torch.Generator) -> Prepared:
    """The same with other initial weights, where they are trained."""
    trained = {name for name, parameter in prepared.model.named_parameters() if parameter.requires_grad}
    initial = {
        name: perturbed(values, epsilon, generator) if name in trained else values
        for name, values in prepared.initial.items()
    }
    return dataclasses.replace(prepared, initial=initial)


def _check_start(run: Run, prepared: Prepared, evaluate: Evaluator) -> None:
    prepared.model.load_state_dict(prepared.initial)
    if not np.allclose(found := evaluate(prepared.model)["loss"], run.initial_loss, rtol=1e-2, atol=1e-3):
        raise RunDataError(
            f"the losses before the first step were {run.initial_loss.mean():.4g} on average in {run.id}, and"
            f" are {found.mean():.4g} now: the model is not the one that was recorded"
        )


def _growth(squares: Array) -> float:
    """Of squared differences [run, step + 1, test]; 1 where there are none."""
    known = np.isfinite(squares)
    steps = np.flatnonzero(known.any((0, 2)))
    sizes = np.sqrt(np.where(known, squares, 0.0).sum((0, 2))[steps] / known.sum((0, 2))[steps])
    from_where = sizes[np.flatnonzero(sizes > 0)[:1]]  # LoRA's second factor is 0: no difference at first
    return float(sizes.max() / from_where[0]) if from_where.size else 1.0


def _at_the_end(squares: Array) -> Array:
    """[run, step + 1, test] → [run, 1, test], at every run's last evaluation."""
    known = np.asarray(np.isfinite(squares).any(2))
    last = known.shape[1] - 1 - np.argmax(known[:, ::-1], axis=1)
    return squares[np.arange(len(squares)), last][:, None]


def _mean_over_runs(squares: Array) -> float:
    """Every run counts alike, however many of its steps were evaluated."""
    return float(np.mean([one[np.isfinite(one)].mean() for one in squares]))
