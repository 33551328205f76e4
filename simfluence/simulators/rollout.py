"""From one-step models to whole trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from tqdm import tqdm

from simfluence.curriculum import Curriculum

Array = npt.NDArray[np.float64]

_CHUNK_BYTES = 2**22  # α, β and losses of steps held at once, each; more than that leaves the cache
_PROGRESS_AFTER = 2.0  # seconds


def roll_out(
    alpha: Array | None, beta: Array | None, initial_loss: Array, clip: tuple[float, float] | None = None
) -> Array:
    """L_t = α_t L_{t-1} + β_t from L_0, for many runs and test examples at once.

    Parameters
    ----------
    alpha, beta : [run, step, test]; None for α = 1 or β = 0.
    initial_loss : [run, test].
    clip : bounds that every L_t is moved into, if given.

    Returns
    -------
    [run, step + 1, test]; a rollout that leaves the range of floats is inf, never an error here.
    """
    by_step = [
        None if effect is None else torch.from_numpy(np.ascontiguousarray(effect.swapaxes(0, 1)))
        for effect in (alpha, beta)
    ]
    losses = _recur(by_step[0], by_step[1], torch.from_numpy(np.array(initial_loss)), clip)
    return np.ascontiguousarray(losses.numpy().swapaxes(0, 1))


def simulate_linear(
    curricula: Sequence[Curriculum],
    initial_loss: Array,
    slope: Array | None,
    intercept: Array | None,
    *,
    batch_size: float | None = None,
    rates: Array | None = None,
    clip: tuple[float, float] | None = None,
    progress: bool = False,
) -> Array:
    """L_t − L_{t-1} = ρ_t Σ_{i∈c_t} (A'_i L_{t-1} + B_i) for many curricula, a few at a time.

    Beside the answer, memory for a few curricula a thread is used.

    Parameters
    ----------
    initial_loss : [run, test].
    slope, intercept : A', B [train, test]; None for 0.
    batch_size : every batch counts as that many examples of its composition; None counts as they are.
    rates : ρ, [run, step], factors of the effects; None for 1.
    clip : bounds that every L_t is moved into, if given.
    progress : whether to show it, where it takes long.

    Returns
    -------
    [run, step + 1, test]; after a curriculum's end its last loss; inf where a rollout leaves the range
    of floats.
    """
    steps, tests = max(len(curriculum) for curriculum in curricula), initial_loss.shape[1]
    losses = np.empty((len(curricula), steps + 1, tests))
    size = max(1, _CHUNK_BYTES // (8 * steps * tests))

    def fill(start: int) -> None:
        runs = slice(start, start + size)
        counts = _counts_by_step(curricula[runs], steps, batch_size, None if rates is None else rates[runs])
        effects = [
            None if part is None else torch.from_numpy(counts @ part).view(steps, -1, tests)
            for part in (slope, intercept)
        ]
        alpha = None if effects[0] is None else effects[0].add_(1.0)
        series = _recur(alpha, effects[1], torch.from_numpy(np.array(initial_loss[runs])), clip)
        losses[runs] = series.numpy().swapaxes(0, 1)

    starts = range(0, len(curricula), size)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        done = map(fill, starts) if len(starts) == 1 else pool.map(fill, starts)
        for _ in tqdm(
            done, "simulate", len(starts), delay=_PROGRESS_AFTER, leave=False, disable=not progress
        ):
            pass
    return losses


def _recur(
    alpha: torch.Tensor | None,
    beta: torch.Tensor | None,
    initial_loss: torch.Tensor,
    clip: tuple[float, float] | None,
) -> torch.Tensor:
    """[step + 1, run, test] from α, β [step, run, test]."""
    steps = len(beta if alpha is None else alpha)  # type: ignore[arg-type]
    series = torch.empty(steps + 1, *initial_loss.shape, dtype=torch.float64)
    series[0] = initial_loss
    by_step = series.unbind()
    for step, (before, after) in enumerate(itertools.pairwise(by_step)):
        if alpha is None:
            torch.add(before, beta[step], out=after)  # type: ignore[index]
        elif beta is None:
            torch.mul(before, alpha[step], out=after)
        else:
            torch.addcmul(beta[step], alpha[step], before, out=after)
        if clip is not None:
            after.clamp_(*clip)
    return series


def _counts_by_step(
    curricula: Sequence[Curriculum], steps: int, batch_size: float | None, rates: Array | None
) -> sparse.csr_array:
    """Scaled counts, sparse [step × run, train], step by step; nothing after a curriculum's end."""
    examples = np.concatenate([curriculum.examples for curriculum in curricula])
    runs = len(curricula)
    sizes = np.zeros((runs, steps), np.int64)
    for row, curriculum in zip(sizes, curricula, strict=True):
        row[: len(curriculum)] = np.diff(curriculum.offsets)
    if (sizes == sizes[0, 0]).all():
        ordered = examples.reshape(runs, steps, -1).swapaxes(0, 1).ravel()
    else:
        start = (np.cumsum(sizes) - sizes.ravel()).reshape(runs, steps)
        length = sizes.T.ravel()
        shift = start.T.ravel() - (np.cumsum(length) - length)
        ordered = examples[np.arange(len(examples)) + np.repeat(shift, length)]
    weight = np.ones((runs, steps)) if batch_size is None else batch_size / np.maximum(sizes, 1)
    if rates is not None:
        weight = weight * np.where(sizes > 0, rates[:, :steps], 0.0)
    ends = np.concatenate([[0], np.cumsum(sizes.T.ravel())])
    return sparse.csr_array(
        (np.repeat(weight.T.ravel(), sizes.T.ravel()), ordered, ends),
        shape=(steps * runs, curricula[0].n_examples),
    )
