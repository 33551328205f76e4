"""Models whose rows do not lie as examples do, and losses of every form, against a naive loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import CASES, naive_gradients, network, points
from torch import Tensor, nn

from simfluence.attribution import (
    Checkpoint,
    Classification,
    LossesOnly,
    ekfac,
    ekfac_factors,
    example_gradients,
    gradient_similarity,
    influence,
    proximal_bregman_response,
    tracin,
    trak,
)
from simfluence.attribution.frozen_features import gradient_features
from simfluence.attribution.tracing import tracer


def sets(*sizes: int, seed: int = 0) -> list[Tensor]:
    """An example is a set of so many points, [point, 3]."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, generator=draw, dtype=torch.float64) for size in sizes]


def owners(examples: Sequence[Tensor]) -> Tensor:
    return torch.arange(len(examples)).repeat_interleave(torch.tensor([len(x) for x in examples]))


class Pooled(nn.Module):
    """The points of all sets one after the other, added up set by set (as the nodes of graphs are)."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.head = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        hidden = torch.tanh(self.points(torch.cat(list(examples))))
        pooled = hidden.new_zeros(len(examples), 4).index_add(0, owners(examples), hidden)
        return self.head(pooled)[:, 0] ** 2


class Routed(Pooled):
    """Two layers share the points by their sign: a layer sees some rows of some examples, one, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 4)

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        x = torch.cat(list(examples))
        first = x[:, 0] > 0
        hidden = x.new_zeros(len(x), 4)
        hidden[first] = self.points(x[first])
        hidden[~first] = self.other(x[~first])
        pooled = hidden.new_zeros(len(examples), 4).index_add(0, owners(examples), hidden.tanh())
        return self.head(pooled)[:, 0] ** 2


class Sorted(Pooled):
    """The batch is sorted by the examples' first number, as recurrent networks sort it by length."""

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        x = torch.stack([points[0] for points in examples])
        order = x[:, 0].argsort()
        hidden = self.points(x[order])[order.argsort()]
        return self.head(hidden.tanh())[:, 0] ** 2


class Looped(Pooled):
    """Called once for each point of each example, in a loop."""

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        return torch.stack(
            [sum(self.head(self.points(x[None]).tanh())[0, 0] ** 2 for x in e) for e in examples]
        )


class Sometimes(Pooled):
    """A weight is used without its module, but only by some examples."""

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        x = torch.stack([points[0] for points in examples])
        hidden = self.points(x)
        larger = torch.tensor([len(points) > 1 for points in examples])[:, None]
        if larger.any():
            hidden = hidden + larger * nn.functional.linear(x * x, self.points.weight)
        return self.head(hidden.tanh())[:, 0] ** 2


def objective(kind: type[nn.Module], seed: int = 0) -> LossesOnly:
    torch.manual_seed(seed)
    module = kind().double()
    return LossesOnly(module, module)


RAGGED = [Pooled, Routed, Sorted, Looped]


@pytest.mark.parametrize("kind", RAGGED)
@pytest.mark.parametrize("sizes", [(3, 3, 2, 4, 3, 3), (1, 1, 1, 2, 1, 3), (2, 1, 1, 1, 1, 4)])
def test_rows_that_are_not_those_of_examples(kind: type[nn.Module], sizes: tuple[int, ...]) -> None:
    """The first two examples may be of one size, and the rows of a batch a multiple of its examples."""
    of, examples = objective(kind), sets(*sizes)
    expected = naive_gradients(of, examples, dict(of.module.named_parameters()))
    for batch_size in (1, 2, 3, 6):
        found = torch.cat(list(example_gradients(of, examples, batch_size=batch_size)))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_batch_is_taken_apart_when_its_rows_turn_out_to_be_mixed() -> None:
    """2 + 4 points for two examples after a trial on two of three points: six rows either way."""
    of, examples = objective(Pooled), sets(3, 3, 2, 4, 3, 3)
    with tracer(of, examples) as trace:
        assert not trace.one_by_one
        batches = [len(batch) for batch in trace.batches(examples, 2) if trace(batch)]
        assert trace.one_by_one
        assert "the rows of points are not those of the examples" in trace.note
    assert batches == [2, 2, 1, 1]
    scores = gradient_similarity(of, examples, examples[:1], batch_size=2)
    assert scores.provenance["gradients"] == trace.note
    assert "gradients" not in gradient_similarity(of, sets(3, 3, 3, 3), examples[:1]).provenance


@pytest.mark.parametrize("kind", [*RAGGED, Sometimes])
def test_scores_do_not_depend_on_the_batch_size(kind: type[nn.Module]) -> None:
    of, train, test = objective(kind), sets(1, 1, 1, 2, 1, 3), sets(1, 1, 2, seed=1)
    for method in (gradient_similarity, trak):
        options = {"dimension": None} if method is trak else {}
        expected = method(of, train, test, batch_size=1, **options).scores
        found = method(of, train, test, batch_size=3, **options).scores
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_ekfac_of_ragged_batches() -> None:
    """The covariances are means over tokens; whose gradients they are is found out in the second batch."""
    of, train, test = objective(Pooled), sets(3, 3, 2, 4, 3, 3), sets(3, 2, seed=1)
    one, two = (ekfac(of, train, test, fisher="empirical", batch_size=size).scores for size in (1, 2))
    np.testing.assert_allclose(two, one, rtol=1e-8)


def test_a_weight_that_some_examples_use_without_its_layer() -> None:
    of, examples = objective(Sometimes), sets(1, 1, 2, 1)
    expected = naive_gradients(of, examples, dict(of.module.named_parameters()))
    found = torch.cat(list(example_gradients(of, examples, batch_size=1)))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match=r"some examples use points.weight otherwise than by calling points"):
        ekfac_factors(of, examples, fisher="empirical", batch_size=1)


def test_ordinary_models_are_not_taken_apart() -> None:
    """Those of finetuning/, whose parts in half or single precision round."""
    for case in CASES.keys() - {"t5"}:
        of, examples = CASES[case]()
        with tracer(LossesOnly(of.module, of.losses), examples) as trace:
            for batch in trace.batches(examples, 5):
                trace(batch)
            assert not trace.note or "choices" in case  # LossesOnly takes every example for one row


# ----------------------------------------------------------------------------- embeddings


class Words(nn.Module):
    """Embedded words, added up."""

    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words, self.head = words, nn.Linear(2, 1)

    def forward(self, examples: Sequence[Tensor]) -> Tensor:
        return self.head(self.words(torch.stack(list(examples))).sum(1))[:, 0] ** 2


class Positions(nn.Embedding):
    """An embedding of positions that is called with something else, as BART's is with token ids."""

    def forward(self, given: Tensor) -> Tensor:
        positions = torch.arange(given.shape[1]).expand(given.shape[:2])
        return super().forward(positions)


def test_embeddings_with_sparse_gradients() -> None:
    ids = [torch.tensor(row) for row in ([1, 2, 2], [3, 0, 1], [4, 4, 4])]
    torch.manual_seed(0)
    same = Words(nn.Embedding(5, 2)).double()
    for words in (nn.Embedding(5, 2, sparse=True), nn.EmbeddingBag(5, 2, mode="sum", sparse=True)):
        module = Words(words).double()
        module.load_state_dict(same.state_dict())

        def losses(examples: Sequence[Any], module: nn.Module = module) -> Tensor:
            x = module.words(torch.stack(list(examples)))
            return module.head(x if x.ndim == 2 else x.sum(1))[:, 0] ** 2

        expected = naive_gradients(LossesOnly(same, same), ids, dict(same.named_parameters()))
        found = torch.cat(list(example_gradients(LossesOnly(module, losses), ids)))
        torch.testing.assert_close(found, expected)


class Bags(nn.Module):
    """Embedded words, as logits."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(5, 2, sparse=sparse), nn.Linear(2, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.words(ids).tanh().sum(1))


@pytest.mark.parametrize("solver", ["dual", "cg", "exact"])
def test_curvature_with_sparse_embeddings(solver: str) -> None:
    data = [(torch.tensor(row), y) for y, row in enumerate(([1, 2, 2], [3, 0, 1], [4, 4, 4]))]
    found, expected = (
        influence(Classification(Bags(sparse).double()), data, data, damping=0.1, solver=solver).scores
        for sparse in (True, False)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    response = [
        proximal_bregman_response(Classification(Bags(sparse).double()), data, data, damping=0.1).scores
        for sparse in (True, False)
    ]
    np.testing.assert_array_equal(*response)


@pytest.mark.parametrize("integers", [True, False])
def test_position_embeddings_that_are_not_called_with_positions(integers: bool) -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"positions": Positions(6, 2), "words": nn.Embedding(5, 2)}).double()

    def losses(examples: Sequence[Tensor]) -> Tensor:
        ids = torch.stack(list(examples))
        words = module["words"](ids)
        return ((words + module["positions"](ids if integers else words)) ** 3).sum((1, 2))

    ids = [torch.tensor(row) for row in ([1, 2, 2], [3, 0, 1], [4, 4, 4])]
    of = LossesOnly(module, losses)
    expected = naive_gradients(of, ids, dict(module.named_parameters()))
    torch.testing.assert_close(torch.cat(list(example_gradients(of, ids))), expected)
    with tracer(of, ids) as trace:
        assert trace.direct == ["positions.weight"]
        assert "no known layer has positions.weight to itself" in trace.note


# --------------------------------------------------------------- losses among other metrics


class Metrics:
    """An objective whose losses are a mapping, as the recorder allows."""

    def __init__(self) -> None:
        self._same = network()
        self.module = self._same.module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._same, name)

    def losses(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        values = self._same.losses(examples)
        return {"accuracy": (values < 1).double(), "loss": values}


@pytest.mark.parametrize("only", [True, False])
def test_a_loss_function_may_return_metrics(only: bool) -> None:
    plain, many, train, test = network(), Metrics(), points(6), points(3, seed=1)
    of = LossesOnly(many.module, many.losses) if only else many
    same = LossesOnly(plain.module, plain.losses) if only else plain
    checkpoint = [Checkpoint(0, 0.1, lambda module: None)]
    calls = {
        "dot": gradient_similarity,
        "tracin": lambda *args: tracin(*args, checkpoint),
        "trak": lambda *args: trak(*args, dimension=None),
    }
    if not only:
        calls["ekfac"] = lambda *args: ekfac(*args, fisher="empirical")
        calls["pbrf"] = lambda *args: proximal_bregman_response(*args, damping=0.1, sources=[0])
    for call in calls.values():
        np.testing.assert_array_equal(call(of, train, test).scores, call(same, train, test).scores)
    np.testing.assert_array_equal(
        gradient_features(many.module, many.losses, train),
        gradient_features(plain.module, plain.losses, train),
    )


def test_a_mapping_without_losses_is_refused() -> None:
    of = network()
    wrong = LossesOnly(of.module, lambda examples: {"accuracy": of.losses(examples)})
    with pytest.raises(ValueError, match=r"no 'loss', only \['accuracy'\]"):
        gradient_similarity(wrong, points(2), points(1))
