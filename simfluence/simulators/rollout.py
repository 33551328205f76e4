"""From one-step models to whole trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from simfluence.curriculum import Curriculum

Array = npt.NDArray[np.float64]

_CHUNK_BYTES = 2**23  # of effects held at once by a thread
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
    a, b = (None if part is None else torch.from_numpy(np.ascontiguousarray(part)) for part in (alpha, beta))
    runs, steps, tests = (alpha if alpha is not None else beta).shape  # type: ignore[union-attr]
    losses = np.empty((runs, steps + 1, tests))
    _recur(a, b, torch.from_numpy(np.array(initial_loss, np.float64)), clip, torch.from_numpy(losses))
    return losses


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
    answer, start = torch.from_numpy(losses), torch.from_numpy(np.array(initial_loss, np.float64))
    parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in (slope, intercept) if part is not None]
    table = torch.cat(parts, dim=1)
    size = max(1, _CHUNK_BYTES // (8 * steps * table.shape[1]))

    def fill(first: int) -> None:
        runs = slice(first, first + size)
        weights = None if rates is None else rates[runs]
        effects = _summed(table, curricula[runs], steps, batch_size, weights)
        effect = iter(effects.view(-1, steps, len(parts), tests).unbind(2))
        alpha = None if slope is None else next(effect).add_(1.0)
        _recur(alpha, None if intercept is None else next(effect), start[runs], clip, answer[runs])

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
    losses: torch.Tensor,
) -> None:
    """Fill losses [run, step + 1, test] from α, β [run, step, test] and L_0 [run, test]."""
    losses[:, 0] = initial_loss
    slopes = None if alpha is None else alpha.unbind(1)
    intercepts = None if beta is None else beta.unbind(1)
    for step, (before, after) in enumerate(itertools.pairwise(losses.unbind(1))):
        if slopes is None:
            torch.add(before, intercepts[step], out=after)  # type: ignore[index]
        elif intercepts is None:
            torch.mul(before, slopes[step], out=after)
        else:
            torch.addcmul(intercepts[step], slopes[step], before, out=after)
        if clip is not None:
            after.clamp_(*clip)


def _summed(
    table: torch.Tensor,
    curricula: Sequence[Curriculum],
    steps: int,
    batch_size: float | None,
    rates: Array | None,
) -> torch.Tensor:
    """w_t Σ_{i∈c_t} table[i], [run × step, column]; 0 after a curriculum's end.

    Torch's sums of embeddings are vectorised as scipy's sparse products are not.
    """
    examples = torch.from_numpy(np.concatenate([curriculum.examples for curriculum in curricula]))
    sizes = np.zeros((len(curricula), steps), np.int64)
    for row, curriculum in zip(sizes, curricula, strict=True):
        row[: len(curriculum)] = curriculum.batch_sizes
    ends = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]))
    summed = torch.nn.functional.embedding_bag(
        examples.long(), table, ends, mode="sum", include_last_offset=True
    )
    weight = np.ones((len(curricula), steps)) if batch_size is None else batch_size / np.maximum(sizes, 1)
    if rates is not None:
        weight = weight * np.where(sizes > 0, rates[:, :steps], 0.0)
    return summed if (weight == 1).all() else summed.mul_(torch.from_numpy(weight.reshape(-1, 1)))
