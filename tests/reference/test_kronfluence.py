"""EK-FAC against kronfluence: the same factors, damping and scores of all that it treats (nn.Linear).

Its losses are sums over a batch, its factors are sums over tokens divided by their number, its eigenvalues
are sums over examples divided by theirs, and its damping is 1e-8 unless another one is given. It skips what
it does not know, wraps the model in place, and takes factors of an old name from disk: hence the copies of
the models and the fresh folders here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from attribution_models import bert, llama, texts
from torch import Tensor, nn

from simfluence.attribution import Classification, ekfac, ekfac_factors

kronfluence = pytest.importorskip("kronfluence")

pytestmark = pytest.mark.filterwarnings("ignore")  # its own


def peer(
    objective: Any, names: Sequence[str], train: Sequence[Any], test: Sequence[Any], folder: Any,
    *, damping: float | None, sample: Any = None, batch_size: int = 2,
) -> np.ndarray:  # fmt: skip
    """kronfluence's scores [train, test] of the modules of these names; ``sample(examples, outputs)`` gives
    drawn labels' losses, otherwise the Fisher matrix is empirical."""
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model

    class Peer(Task):
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            examples = [everything[i] for i in batch.tolist()]
            if sample:
                return draw(objective.outputs(examples), examples).sum()
            return objective.losses(examples).sum()

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return list(names)

        def get_attention_mask(self, batch: Any) -> Tensor | None:
            masks = objective.masks([everything[i] for i in batch.tolist()])
            return masks[0] if masks else None

    everything = [*train, *test]
    objective, draw = copy.deepcopy(objective), sample
    model = prepare_model(objective.module, Peer())
    analyzer = Analyzer("peer", model, Peer(), cpu=True, disable_tqdm=True, output_dir=str(folder))
    numbers = torch.arange(len(everything))
    factor_args = FactorArguments(
        strategy="ekfac",
        use_empirical_fisher=sample is None,
        **dict.fromkeys(
            (
                "activation_covariance_dtype",
                "gradient_covariance_dtype",
                "per_sample_gradient_dtype",
                "lambda_dtype",
            ),
            torch.float64,
        ),
    )
    score_args = ScoreArguments(
        damping_factor=damping,
        **dict.fromkeys(("per_sample_gradient_dtype", "precondition_dtype", "score_dtype"), torch.float64),
    )
    analyzer.fit_all_factors("factors", numbers[: len(train)], batch_size, factor_args=factor_args)
    analyzer.compute_pairwise_scores(
        "scores", "factors", numbers[len(train) :], numbers[: len(train)], batch_size,
        per_device_train_batch_size=batch_size, score_args=score_args,
    )  # fmt: skip
    return analyzer.load_pairwise_scores("scores")["all_modules"].T.numpy()


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.999
    scale = (found * expected).sum() / (expected**2).sum()
    assert abs(scale - 1) < 0.01


@pytest.mark.parametrize("make", [bert, llama])
def test_text_models_with_padding(make: Any, tmp_path: Any) -> None:
    objective, examples = make(), texts(9)
    names = [
        name
        for name, module in objective.module.named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    ]
    train, test = examples[:6], examples[6:]
    for damping in (None, 1e-3):
        expected = peer(objective, names, train, test, tmp_path / str(damping), damping=damping)
        found = ekfac(
            objective, train, test, parameters=names, fisher="empirical", damping=damping, batch_size=2
        )
        agree(found.scores, expected)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_drawn_labels(tmp_path: Any) -> None:
    """The true Fisher matrix, with the same labels in both."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(1)
    train = [(torch.randn(5, generator=draw, dtype=torch.float64), i % 3) for i in range(12)]
    test = [(torch.randn(5, generator=draw, dtype=torch.float64), i % 3) for i in range(4)]
    labels = {id(x): int(torch.randint(3, (1,), generator=draw)) for x, _ in train}

    class Drawn(Classification):
        def sampled_losses(self, outputs: Tensor, examples: Any, generator: Any = None) -> Tensor:
            chosen = torch.tensor([labels[id(x)] for x, _ in examples])
            return nn.functional.cross_entropy(outputs, chosen, reduction="none")

    objective = Drawn(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double())
    factors = ekfac_factors(objective, train, batch_size=4)
    assert set(factors.coverage.treatment) == {"kronecker"}
    found = ekfac(objective, train, test, factors=factors).scores
    expected = peer(
        objective, ["0", "2"], train, test, tmp_path, damping=None, sample=objective.sampled_losses
    )
    agree(found, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
