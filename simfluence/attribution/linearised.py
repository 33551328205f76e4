"""A linearised model: the Jacobians of all examples' log-odds, on a sample of the weights.

The Jacobian of the log-odds f = −log(eᴸ − 1) of an example with loss L = −log p is

    J = ∂f/∂θ = −∇L / (1 − p)

Of the weights θ, about ``coordinates`` are drawn, coordinate c with the probability

    π_c = min(1, coordinates · (½ mean_e |∇_c L(e)| / Σ_c' mean_e |∇_c' L(e)| + ½ / #weights))

where the mean is over some training examples; a drawn coordinate counts 1/π_c times. The simulators'
class that is returned says how training is simulated with the Jacobians.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from simfluence.attribution.gradients import example_gradients, losses_and_gradients
from simfluence.attribution.objective import Losses, LossesOnly
from simfluence.simulators.tangent import Tangent, log_odds

POINTS = (0, 2, 4, 8, 16, 32, 56, 80, 96, 128, 192, 256, 320)
"""Steps at which Jacobians are taken along a run; early ones change most."""

_PILOT = 32  # training examples whose gradients say which weights matter


def linearise(
    model: nn.Module,
    losses: Losses,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    coordinates: int = 20_000,
    seed: int = 0,
    paths: Mapping[str, Iterator[Any]] | None = None,
    points: Sequence[int] = POINTS,
    test_losses: Mapping[str, npt.ArrayLike] | None = None,
    progress: bool = False,
) -> Tangent:
    """Jacobians of all examples, one gradient each, in eval mode: at the current weights, or along runs.

    Takes 2 bytes × examples × coordinates in memory for every point of every path.

    Parameters
    ----------
    losses : examples → −log p of each, > 0, see :data:`.objective.Losses`.
    paths : run name → an iterator that trains the model again as in that run: the first ``next`` puts it
        where the run began, each later one takes a step (``finetuning.retrain.retrain``). At least two;
        all begin at the same weights. None: the weights as they are now.
    points : the steps of a path at which Jacobians are taken; those after its end are left out.
    test_losses : run name → recorded losses [step + 1, test]; where there are none, log-odds are taken
        at the points and interpolated.

    Raises
    ------
    ValueError : the model has nothing to train, or losses are not those of a probability.
    """
    if not [p for p in model.parameters() if p.requires_grad]:
        raise ValueError("the model has no parameter that requires gradients: nothing to attribute to")
    examples = [*train, *test]
    recorded = {name: log_odds(values) for name, values in (test_losses or {}).items()}
    traced: list[tuple[list[int], list[Tensor], list[Tensor], list[Tensor]]] = []
    chosen: tuple[Tensor, Tensor] | None = None
    walks = dict(paths) if paths else {"": iter([None])}
    for name, walk in walks.items():
        at: list[int] = []
        jacobians, odds, path = [], [], []
        bar = tqdm(desc=name or "gradients", unit="example", disable=not progress)
        for step, _ in enumerate(walk):
            if chosen is None:
                chosen = _choose(model, losses, train, coordinates, seed)
            path.append(_weights(model)[chosen[0]])
            if step in points or not paths:
                at.append(step)
                jacobian, odd = _jacobian(model, losses, examples, chosen[0], bar)
                jacobians.append(jacobian)
                odds.append(odd)
        bar.close()
        traced.append((at, jacobians, odds, path))
    assert chosen is not None
    return _assembled(traced, list(walks), chosen[1], len(train), recorded)


def _choose(
    model: nn.Module, losses: Losses, train: Sequence[Any], coordinates: int, seed: int
) -> tuple[Tensor, Tensor]:
    """(which weights are drawn, 1/π of each), see the top of this module."""
    rows = np.unique(np.linspace(0, len(train) - 1, _PILOT).astype(int))
    pilots = example_gradients(LossesOnly(model, losses), [train[row] for row in rows], batch_size=1)
    sizes = torch.cat([gradient.float().abs() for gradient in pilots]).mean(0)
    share = 0.5 * sizes / sizes.sum().clamp_min(torch.finfo(sizes.dtype).tiny) + 0.5 / len(sizes)
    probability = (coordinates * share).clamp_max(1.0).cpu()
    generator = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(len(probability), generator=generator) < probability).nonzero()[:, 0]
    return chosen, 1 / probability[chosen]


def _weights(model: nn.Module) -> Tensor:
    trained = [parameter.detach().flatten() for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat(trained).float().cpu()


def _jacobian(
    model: nn.Module, losses: Losses, examples: Sequence[Any], chosen: Tensor, bar: tqdm[Any]
) -> tuple[Tensor, Tensor]:
    """(J [example, coordinate], f [example])"""
    jacobian, values = torch.empty(len(examples), len(chosen)), torch.empty(len(examples))
    found = losses_and_gradients(LossesOnly(model, losses), examples, batch_size=1)
    for number, (values_of, gradients) in enumerate(found):
        gradient, loss = gradients[0].float(), float(values_of[0])
        if not loss > 0:
            raise ValueError(
                f"a linearised model takes losses −log p, which are > 0; that of example {number} is {loss:g}"
            )
        jacobian[number] = gradient.cpu()[chosen] / np.expm1(-loss)
        values[number] = loss
        bar.update()
    return jacobian, torch.from_numpy(log_odds(values.double().numpy())).float()


def _assembled(
    traced: list[tuple[list[int], list[Tensor], list[Tensor], list[Tensor]]],
    names: list[str],
    weights: Tensor,
    n_train: int,
    recorded: Mapping[str, npt.NDArray[np.float64]],
) -> Tangent:
    """All paths as arrays of one length: after its end, a shorter path keeps its last values."""
    points = max((at for at, *_ in traced), key=len)
    steps = max(len(path) for *_, path in traced)
    odds = np.empty((len(traced), steps, len(traced[0][2][0])), np.float32)
    for number, (at, _, values, _) in enumerate(traced):
        known = np.stack([value.numpy() for value in values])
        odds[number] = np.stack([np.interp(np.arange(steps), at, column) for column in known.T], axis=1)
        if (tests := recorded.get(names[number])) is not None:
            within = np.minimum(np.arange(steps), len(tests) - 1)
            odds[number, :, n_train:] = tests[within]
    unit = max(float(jacobian.abs().max()) for _, jacobians, *_ in traced for jacobian in jacobians)
    unit = unit / 1000 if unit > 0 else 1.0  # float16 holds 6e-8 .. 6e4
    kept = [
        np.stack([(jacobian / unit).half().numpy() for jacobian in _held(jacobians, len(points))])
        for _, jacobians, *_ in traced
    ]
    paths = [torch.stack(_held(path, steps)).numpy() for *_, path in traced]
    return Tangent(
        np.stack(kept), unit, np.array(points), weights.numpy(), np.stack(paths), odds, n_train, tuple(names)
    )


def _held(values: list[Tensor], count: int) -> list[Tensor]:
    """The list, its last repeated up to a length."""
    return values + [values[-1]] * (count - len(values))
