"""A store of gradients: scores of any test example from one gradient of it and one matrix product.

    S(i, z) ≈ φ(∇L_i) · φ(∇L_z)      the scores of ``gradient_step``, or of ``ekfac``

φ projects a gradient, in the metric of the run's optimizer or in EK-FAC's (:mod:`.store_whitening`), to k
numbers (:mod:`.landmarks`, :mod:`.sketch`).
The training examples' are written once (:func:`.store_writing.write_store`); those of test examples, also
new ones, are taken as they are asked for. The scores are unbiased over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from simfluence.attribution.objective import Objective
from simfluence.attribution.registry import AttributionContext
from simfluence.attribution.store_files import Manifest, check_belongs, mapped, shard_file
from simfluence.attribution.store_projection import read_projection
from simfluence.attribution.store_whitening import is_whitened
from simfluence.attribution.tracing import tracer
from simfluence.errors import RunDataError
from simfluence.recording.fingerprint import weights_fingerprint
from simfluence.runs.tables import TableFingerprints
from simfluence.scores import InfluenceScores

Floats = npt.NDArray[np.float32]

_BLOCK = 2**24
"""Numbers of training gradients that are in memory at once, in float32."""
LARGEST = 2**28
"""Numbers in an array of scores: 1 GB in float32."""


class Factors(NamedTuple):
    """Scores [train, test] as a product: (scale[:, None] · train) @ testᵀ, shard after shard.

    train : of each shard, float16 [example, k], mapped into memory. scale : of each, float64 [example].
    test : float32 [test, k].
    """

    train: list[npt.NDArray[np.float16]]
    scale: list[npt.NDArray[np.float64]]
    test: Floats


class GradientStore:
    """A store that is complete: all shards are there, and of the same weights, examples and settings.

    Simulators take it in place of scores, ``AutoSimulator(scores=store)``: those of the set's test examples,
    which `simfluence gradients` left in it.

    Attributes
    ----------
    folder : where it lies. manifest : what it holds.
    scores, tables, weighing, scale, steps : as of :class:`~simfluence.scores.InfluenceScores`, of the set's
        test examples; RunDataError if they are not there.

    Raises RunDataError if there is no store, or it is damaged or not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        files = [shard_file(self.folder, shard) for shard in range(self.manifest.shards)]
        if missing := [file.name for file in files if not file.is_file()]:
            raise RunDataError(
                f"{self.folder} lacks {len(missing)} of {len(files)} shards ({missing[0]} first): run"
                " `simfluence gradients` again with the same options, which writes them, or copy them here"
            )
        for file in files:
            check_belongs(file, self.manifest)

    @cached_property
    def _shards(self) -> list[dict[str, npt.NDArray[Any]]]:
        return [mapped(shard_file(self.folder, shard)) for shard in range(self.manifest.shards)]

    @property
    def method(self) -> str:
        """The method whose scores these are: gradient_step or ekfac."""
        return "ekfac" if is_whitened(self.manifest.metric) else "gradient_step"

    def __len__(self) -> int:
        """The number of training examples."""
        return self.manifest.examples

    def check_examples(self, tables: TableFingerprints) -> None:
        """RunDataError if the training examples of these tables are known to be others than the store's."""
        own = TableFingerprints(train=self.manifest.train)
        own.check(tables, f"the gradients in {self.folder}", "these tables")

    def project(self, objective: Objective, examples: Sequence[Any], *, batch_size: int = 8) -> Floats:
        """The gradients of any examples [example, k], in the metric and projection of the store.

        objective : the model, with the weights that the store was written with.

        Raises RunDataError for a model with other weights, and ValueError if there are no examples.
        """
        manifest = self.manifest
        if not len(examples):
            raise ValueError("expected examples to project, got none")
        if (found := weights_fingerprint(objective.module)) != manifest.weights:
            raise RunDataError(
                f"{self.folder} is of other weights: those of step {manifest.step} of its run, with the"
                f" fingerprint {manifest.weights[:8]}…; this model's have {str(found)[:8]}…"
            )
        with tracer(objective, examples[:2], list(manifest.parameters)) as trace:
            project = read_projection(self.folder, manifest, trace)
            projected = [project(trace(batch)) for batch in trace.batches(examples, batch_size)]
        return torch.cat(projected).float().cpu().numpy()

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """The training gradients, some examples at a time: (which, float32 [example, k])."""
        step, start = max(1, _BLOCK // self.manifest.k), 0
        for shard in self._shards:
            gradients, scale = shard["gradients"], shard["scale"]
            for first in range(0, len(gradients), step):
                some = gradients[first : first + step].astype(np.float32)
                some *= scale[first : first + step, None].astype(np.float32)
                yield slice(start, start + len(some)), some
                start += len(some)

    @cached_property
    def _of_set(self) -> InfluenceScores:
        return InfluenceScores.load(self.folder)

    @property
    def scores(self) -> npt.NDArray[np.floating]:
        return self._of_set.scores

    @property
    def tables(self) -> TableFingerprints:
        return self._of_set.tables

    @property
    def weighing(self) -> str:
        return self._of_set.weighing

    @property
    def scale(self) -> float:
        return self._of_set.scale

    @property
    def steps(self) -> tuple[int, ...]:
        return self._of_set.steps

    def scores_of(self, test: Floats, tables: TableFingerprints | None = None) -> InfluenceScores:
        """Scores [train, test] for projected gradients of test examples (:meth:`project`).

        tables : of the training and the test examples; RunDataError if the training examples are known to be
        others than the store's.

        Raises ValueError for gradients of another shape, or where the array would be larger than 1 GB.
        """
        manifest = self.manifest
        test = np.asarray(test, np.float32)
        if test.ndim != 2 or test.shape[1] != manifest.k:
            raise ValueError(f"expected gradients [test, {manifest.k}] of `project`, got {list(test.shape)}")
        if tables is not None:
            self.check_examples(tables)
        if len(self) * len(test) > LARGEST:
            raise ValueError(
                f"scores of {len(self)} training and {len(test)} test examples would take"
                f" {4 * len(self) * len(test) / 1e9:.1f} GB: ask for fewer test examples, or use `factors`"
            )
        scores = np.empty((len(self), len(test)), np.float32)
        for rows, gradients in self.blocks():
            scores[rows] = gradients @ test.T
        return InfluenceScores(
            scores,
            method=self.method,
            units=manifest.units,
            covers=tuple(manifest.parameters),
            provenance={
                "k": manifest.k,
                "landmarks": manifest.landmarks,
                "seed": manifest.seed,
                "step": manifest.step,
                **manifest.metric,
            },
            weighing="run" if is_whitened(manifest.metric) else "rate",
            coverage=manifest.coverage,
            tables=TableFingerprints(train=manifest.train) if tables is None else tables,
        )

    def factors(self, test: Floats) -> Factors:
        """The scores for projected gradients of test examples as factors of low rank."""
        train, scale = ([shard[name] for shard in self._shards] for name in ("gradients", "scale"))
        return Factors(train, scale, test)


def is_complete(folder: str | Path) -> bool:
    """Whether all shards of the store in a folder are there."""
    manifest = Manifest.read(Path(folder))
    return all(shard_file(Path(folder), shard).is_file() for shard in range(manifest.shards))


def stored_scores(context: AttributionContext, folder: str | Path) -> InfluenceScores:
    """The scores of a store in this folder for the test examples of a context, whose last checkpoint has the
    store's weights.

    Raises RunDataError if the store is not complete, or of other weights or training examples.
    """
    store = GradientStore(folder)
    if store.manifest.examples != len(context.train):
        raise RunDataError(
            f"{folder} has gradients of {len(store)} training examples, this run has {len(context.train)}"
        )
    store.check_examples(context.tables)
    with context.checkpoints[-1].loaded(context.objective.module):
        test = store.project(context.objective, context.test)
    return store.scores_of(test, context.tables)


def check_options(store: GradientStore, method: Mapping[str, Any], only: int | None) -> None:
    """Raises ValueError for options of `simfluence attribute` that a store does not have."""
    if method["name"] != store.method:
        raise ValueError(
            f"this store has the scores of {store.method}, not of {method['name']}: give"
            f" method={store.method}"
        )
    if only is not None:
        raise ValueError("scores from a store are of all training examples: leave out only=")
