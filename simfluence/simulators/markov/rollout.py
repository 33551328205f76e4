"""From one-step models to whole trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from simfluence.curriculum import Curriculum
from simfluence.kernels.threads import in_threads, padded_to_fours, slices

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CHUNK_BYTES = 2**23  # of losses that a thread simulates at once
_TABLE_BYTES = 2**19  # of A' and B that should stay in a core's cache
_VECTOR = 64  # columns at least, of a part of them
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
    shape = (alpha if alpha is not None else beta).shape  # type: ignore[union-attr]
    losses = np.empty((shape[0], shape[1] + 1, shape[2]))
    losses[:, 0] = initial_loss
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(shape[1]):
            after = losses[:, step] if alpha is None else alpha[:, step] * losses[:, step]
            after = after if beta is None else after + beta[:, step]
            losses[:, step + 1] = after if clip is None else np.clip(after, *clip)
    return losses


def simulate_linear(
    curricula: Sequence[Curriculum],
    initial_loss: Array,
    slope: Array | None,
    intercept: Array | None,
    *,
    lags: Array | None = None,
    batch_size: float | None = None,
    rates: Array | None = None,
    clip: tuple[float, float] | None = None,
    progress: bool = False,
    out: Array | None = None,
) -> Array:
    """L_t − L_{t-1} = ρ_t Σ_{i∈c_t} (A'_i L_{t-1} + A_i2 L_{t-2} + … + B_i), for many curricula at once.

    Beside the answer, memory for a few curricula a thread is used.

    Parameters
    ----------
    initial_loss : [run, test].
    slope, intercept : A', B [train, test]; None for 0.
    lags : A_2, A_3, …, [order − 1, train, test]; None for none. Losses before the first are as the first.
    batch_size : every batch counts as that many examples of its composition; None counts as they are.
    rates : ρ, [run, step], factors of the effects; None for 1.
    clip : bounds that every L_t is moved into, if given.
    progress : whether to show it, where it takes long.
    out : where to write the answer, if at hand: fresh memory can cost more than the arithmetic.

    Returns
    -------
    [run, step + 1, test]; after a curriculum's end its last loss; inf where a rollout leaves the range
    of floats.
    """
    # compiles, where it is first needed
    from simfluence.kernels.rollout import roll_out_into, roll_out_orders_into

    lengths = np.array([len(curriculum.offsets) - 1 for curriculum in curricula])
    steps, tests = int(lengths.max()), initial_loss.shape[1]
    losses = np.empty((len(curricula), steps + 1, tests)) if out is None else out
    tables = [None if table is None else _flat(table) for table in (slope, intercept)]
    if lags is not None:
        past = np.zeros_like(lags[:1]) if slope is None else slope[None]
        tables[0] = np.stack([_flat(table) for table in (*past, *lags)])
    fill_in = roll_out_into if lags is None else roll_out_orders_into
    blocks = slices(tests, max(_VECTOR, _TABLE_BYTES // (16 * curricula[0].n_examples) // _VECTOR * _VECTOR))
    low, high = (-np.inf, np.inf) if clip is None else clip

    def fill(runs: slice) -> None:
        losses[runs, 0] = initial_loss[runs]
        rows = _batches(curricula[runs], lengths[runs], batch_size, None if rates is None else rates[runs])
        for block in blocks:
            fill_in(losses[runs], (block.start, block.stop), *tables, *rows, low, high)

    share = -(-len(curricula) // torch.get_num_threads())
    parts = slices(len(curricula), min(share, _CHUNK_BYTES // losses[0].nbytes))
    done = in_threads(fill, parts)
    for _ in tqdm(done, "simulate", len(parts), delay=_PROGRESS_AFTER, leave=False, disable=not progress):
        pass
    return losses


def _flat(table: Array) -> Array:
    """A table [train, test], below it a row of zeros, one row after the other."""
    return np.concatenate([np.asarray(table, np.float64).ravel(), np.zeros(table.shape[1])])


def _batches(
    curricula: Sequence[Curriculum], lengths: IntArray, batch_size: float | None, rates: Array | None
) -> tuple[IntArray, IntArray, IntArray, Array]:
    """examples, bounds, begins and weights, as the kernel takes them."""
    begins = np.concatenate([[0], np.cumsum(lengths)])
    offsets = np.concatenate([curriculum.offsets for curriculum in curricula])
    sizes = np.delete(np.diff(offsets), begins[1:-1] + np.arange(len(curricula) - 1))  # not between runs
    examples = np.concatenate([curriculum.examples for curriculum in curricula])
    examples, bounds = padded_to_fours(examples, sizes, curricula[0].n_examples)
    weights = np.ones(len(sizes)) if batch_size is None else batch_size / sizes
    if rates is not None:
        weights = weights * rates[:, : lengths.max()][np.arange(lengths.max()) < lengths[:, None]]
    return examples, bounds, begins, weights
