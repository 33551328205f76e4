"""Simulating many curricula at once: losses from the changes that each step predicts.

L_t − L_{t-1} = ρ_t (b / |c_t|) Σ_{i∈c_t} (A'_i L_{t-1} + B_i)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from simfluence.curriculum import Curriculum
from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices
from simfluence.ridge.problem import Array, IntArray

_CHUNK_BYTES = 2**23  # of losses that a thread simulates at once
_TABLE_BYTES = 2**19  # of A' and B that should stay in a core's cache


def simulate_linear(
    curricula: Sequence[Curriculum],
    initial_loss: Array,
    slope: Array | None,
    intercept: Array | None,
    batch_size: float,
    *,
    rates: Array | None = None,
    clip: tuple[float, float] | None = None,
    progress: bool = False,
    out: Array | None = None,
) -> Array:
    """The losses of all steps, float [run, step + 1, test].

    After a curriculum's end its last loss is repeated. What leaves the range of floats is inf or NaN.

    Parameters
    ----------
    initial_loss : L_0, float [run, test].
    slope, intercept : A' and B, float [train, test]; None for 0.
    batch_size : b; batches count as that many examples of their composition.
    rates : ρ, float [run, step]; None for 1.
    clip : bounds that every L_t is moved into, if given.
    progress : whether to show a progress bar, where it takes over two seconds.
    out : where to write the losses, if an array is at hand: fresh memory can cost more than the arithmetic.
    """
    from simfluence.kernels.rollout import roll_out_into  # compiled when first used

    lengths = np.array([len(curriculum) for curriculum in curricula])
    steps, tests = int(lengths.max()), initial_loss.shape[1]
    width = max(tests, SIMD_WIDTH)
    wide = np.empty((len(curricula), steps + 1, width)) if out is None or width > tests else out
    tables = [None if table is None else _flat(table, width) for table in (slope, intercept)]
    firsts = np.unique(np.minimum(np.arange(0, width, SIMD_WIDTH), width - SIMD_WIDTH)).astype(np.uint64)
    groups = slices(len(firsts), _TABLE_BYTES // (16 * SIMD_WIDTH * curricula[0].n_examples))
    low, high = (-np.inf, np.inf) if clip is None else clip

    def fill(runs: slice) -> None:
        wide[runs, 0, :tests], wide[runs, 0, tests:] = initial_loss[runs], 0.0
        batches = _batches(curricula[runs], lengths[runs], batch_size, None if rates is None else rates[runs])
        for group in groups:
            roll_out_into(wide[runs], firsts[group], *tables, *batches, float(low), float(high))

    share = -(-len(curricula) // torch.get_num_threads())
    parts = slices(len(curricula), min(share, _CHUNK_BYTES // wide[0].nbytes))
    done = in_threads(fill, parts)
    for _ in tqdm(done, "simulate", len(parts), delay=2, leave=False, disable=not progress):
        pass
    if width == tests:
        return wide
    out = np.empty((*wide.shape[:2], tests)) if out is None else out
    out[:] = wide[..., :tests]
    return out


def _flat(table: Array, width: int) -> Array:
    """[train, test] with zeros up to ``width`` columns, row by row."""
    from simfluence.kernels.simd import aligned_zeros  # compiled when first used

    flat: Array = aligned_zeros(len(table) * width, np.empty(0))
    flat.reshape(-1, width)[:, : table.shape[1]] = table
    return flat


def _batches(
    curricula: Sequence[Curriculum], lengths: IntArray, batch_size: float, rates: Array | None
) -> tuple[IntArray, IntArray, IntArray, Array]:
    """examples, bounds, begins and weights, as the compiled loop takes them."""
    begins = np.concatenate([[0], np.cumsum(lengths)])
    examples = np.concatenate([curriculum.examples for curriculum in curricula])
    sizes = np.concatenate([np.diff(curriculum.offsets) for curriculum in curricula])
    weights = batch_size / sizes
    if rates is not None:
        weights *= rates[:, : lengths.max()][np.arange(lengths.max()) < lengths[:, None]]
    return examples, np.concatenate([[0], np.cumsum(sizes)]), begins, weights
