"""Simulating many curricula at once: losses from the changes that each step predicts.

L_t − L_{t-1} = (b / |c_t|) Σ_{i∈c_t} (A'_i L_{t-1} + B_i)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from simfluence.curriculum import Curriculum
from simfluence.kernels.threads import SIMD_WIDTH, in_threads, slices, torch_threads
from simfluence.ridge.problem import Array

_CHUNK_BYTES = 2**23  # of losses that a thread simulates at once


def simulate_linear(
    curricula: Sequence[Curriculum],
    initial_loss: Array,
    slope: Array | None,
    intercept: Array | None,
    batch_size: float,
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
    progress : whether to show a progress bar, where it takes over two seconds.
    out : where to write the losses, if an array is at hand: fresh memory can cost more than the arithmetic.
    """
    from simfluence.kernels.rollout import roll_out_into  # compiled when first used

    lengths = np.array([len(curriculum) for curriculum in curricula])
    tests, width = initial_loss.shape[1], max(initial_loss.shape[1], SIMD_WIDTH)
    shape = len(curricula), int(lengths.max()) + 1, width
    losses = np.empty(shape) if out is None or width > tests else out
    losses[:, 0, :tests], losses[:, 0, tests:] = initial_loss, 0.0
    extra = ((0, 0), (0, width - tests))
    tables = [None if table is None else np.pad(table, extra).ravel() for table in (slope, intercept)]
    firsts = np.unique(np.minimum(np.arange(0, width, SIMD_WIDTH), width - SIMD_WIDTH)).astype(np.uint64)

    def fill(runs: slice) -> None:
        examples = np.concatenate([curriculum.examples for curriculum in curricula[runs]])
        sizes = np.concatenate([curriculum.batch_sizes for curriculum in curricula[runs]])
        bounds, begins = (np.concatenate([[0], np.cumsum(counts)]) for counts in (sizes, lengths[runs]))
        roll_out_into(losses[runs], firsts, *tables, examples, bounds, begins, batch_size / sizes)

    share = -(-len(curricula) // torch_threads())
    parts = slices(len(curricula), min(share, _CHUNK_BYTES // losses[0].nbytes))
    done = in_threads(fill, parts)
    for _ in tqdm(done, "simulate", len(parts), delay=2, leave=False, disable=not progress):
        pass
    if out is None:
        return np.ascontiguousarray(losses[..., :tests])
    if losses is not out:
        out[:] = losses[..., :tests]
    return out
