"""The proximal Bregman response by optimisation: what influence functions approximate (Bae et al. 2022).

    θ(ε) = argmin_θ (1/N) Σ_i D_i(h_i(θ), h_i(θ_s)) + ε L(m; θ) + (λ/2) ‖θ − θ_s‖²
    D_i(h, h') = L_i(h) − L_i(h') − ∇L_i(h')ᵀ (h − h')
    score(m, z) = (L(z; θ_s) − L(z; θ(ε)))/ε      [train, test], units: loss per weight

θ_s are the present weights, h_i the outputs of training example i, L_i its loss, λ the damping. As ε → 0 the
score tends to ∇L(z)ᵀ (G + λI)⁻¹ ∇L(m), the influence (:mod:`.influence`). Positive: more of m lowers the loss
of z. ε = 1/N is one more copy of m, ε = −1/N its removal.

With θ = θ_s + ε x, the objective over ε² is minimised over x by L-BFGS in float64: its values and gradients
are of order one however small ε is. No Gauss-Newton matrix occurs: this is a ground truth for those who use
one. It takes hundreds of passes over all training examples for each m: for small models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from tqdm import tqdm

from simfluence.attribution.checkpoints import weights_fingerprint
from simfluence.attribution.inverse import ConvergenceWarning
from simfluence.attribution.objective import Objective, losses_of
from simfluence.attribution.parameters import (
    dense_gradients,
    requiring_gradients,
    restored,
    selected_parameters,
    share_of_trained,
)
from simfluence.recording.evaluator import undisturbed
from simfluence.scores import InfluenceScores

Floats = npt.NDArray[np.float64]


def proximal_bregman_response(
    objective: Objective,
    train: Sequence[Any],
    test: Sequence[Any],
    *,
    damping: float,
    sources: Sequence[int] | None = None,
    epsilon: float | None = None,
    parameters: Sequence[str] | None = None,
    batch_size: int = 256,
    tolerance: float = 1e-5,
    max_iterations: int = 5000,
    progress: bool = False,
) -> InfluenceScores:
    """How each source's weight changes the test losses, by optimising anew for each.

    Parameters
    ----------
    train : the N examples of the objective; their outputs at the present weights are held.
    damping : λ > 0.
    sources : which training examples m, one row of the scores each; None: all.
    epsilon : ε; None: 1/N.
    parameters : as in :func:`.parameters.selected_parameters`, all in float64; the others are held fixed.
    tolerance : the largest component of the gradient at the end, relative to that at the beginning.

    Returns
    -------
    Scores [source, test]; the provenance lists the sources, and the iterations and final gradient of each.

    Raises
    ------
    ValueError : weights that are not float64, no examples, damping ≤ 0, ε = 0.

    Warns
    -----
    ConvergenceWarning : an optimum was not reached.
    """
    epsilon = 1 / max(1, len(train)) if epsilon is None else epsilon
    if not len(train) or not len(test):
        raise ValueError(f"expected examples, got {len(train)} for training and {len(test)} to test")
    if not damping > 0 or epsilon == 0:
        raise ValueError(f"damping must be positive and epsilon not 0, got {damping} and {epsilon}")
    chosen = selected_parameters(objective.module, parameters)
    if wrong := next((name for name, p in chosen.items() if p.dtype != torch.float64), None):
        raise ValueError(
            f"{wrong} is {chosen[wrong].dtype}: the response to one example is lost in the rounding of"
            " anything but float64; convert the model first, model.double()"
        )
    rows = list(range(len(train)) if sources is None else sources)
    responses, found = [], []
    module = objective.module
    with undisturbed(module), requiring_gradients(chosen), dense_gradients(module), restored(chosen):
        problem = _Problem(objective, train, chosen, damping, epsilon, batch_size)
        before = problem.losses(test)
        for row in tqdm(rows, "PBRF", disable=not progress, unit="example"):
            found.append(problem.solve(train[row], tolerance, max_iterations))
            responses.append((before - problem.losses(test)) / epsilon)
    _warn_of_late_ones(rows, found, tolerance)
    provenance = {
        "weights_fingerprint": weights_fingerprint(objective.module),
        "damping": damping, "epsilon": epsilon, "sources": rows,
        "iterations": [iterations for iterations, _ in found],
        "gradients": [gradient for _, gradient in found],
    }  # fmt: skip
    return InfluenceScores(
        np.stack(responses),
        "pbrf",
        "loss per weight of an example in the training mean",
        tuple(chosen),
        provenance,
        coverage=share_of_trained(objective.module, chosen),
    )


class _Problem:
    """The objective above, over x; solving it leaves θ_s + ε x in the model."""

    def __init__(
        self,
        objective: Objective,
        train: Sequence[Any],
        parameters: dict[str, nn.Parameter],
        damping: float,
        epsilon: float,
        batch_size: int,
    ) -> None:
        self._objective, self._damping, self._epsilon = objective, damping, epsilon
        self._parameters = list(parameters.values())
        self._start = torch.cat([p.detach().flatten().clone() for p in self._parameters])
        self._size = len(train)
        self._batch_size = batch_size
        self._batches = [self._known(batch) for batch in self._split(train)]

    def _split(self, examples: Sequence[Any]) -> list[Sequence[Any]]:
        return [examples[i : i + self._batch_size] for i in range(0, len(examples), self._batch_size)]

    def _known(self, batch: Sequence[Any]) -> tuple[Sequence[Any], Tensor, Tensor, Tensor]:
        """Examples with h_i(θ_s), L_i and ∇L_i there."""
        with torch.no_grad():
            outputs = self._objective.outputs(batch)
        with torch.enable_grad():
            losses = self._objective.output_losses(outputs.requires_grad_(), batch)
            (slopes,) = torch.autograd.grad(losses.sum(), outputs)
        return batch, outputs.detach(), losses.detach(), slopes

    def losses(self, examples: Sequence[Any]) -> Floats:
        """At the weights that are in the model, [example]."""
        with torch.no_grad():
            parts = [losses_of(self._objective, batch) for batch in self._split(examples)]
        return torch.cat(parts).double().cpu().numpy()

    def solve(self, example: Any, tolerance: float, max_iterations: int) -> tuple[int, float]:
        """Iterations, and the largest component of the gradient relative to that at the start."""
        self._put(np.zeros(len(self._start)))
        at_start = float(self.losses([example])[0])
        start = np.zeros(len(self._start))
        size = float(np.abs(self._value_and_gradient(start, example, at_start)[1]).max())
        if size == 0:
            return 0, 0.0
        found = minimize(
            self._value_and_gradient,
            start,
            (example, at_start),
            method="L-BFGS-B",
            jac=True,
            options={
                "maxiter": max_iterations, "maxfun": 2 * max_iterations, "maxcor": 30,
                "gtol": tolerance * size, "ftol": 0.0,
            },
        )  # fmt: skip
        self._put(found.x)
        return int(found.nit), float(np.abs(found.jac).max() / size)

    def _value_and_gradient(self, x: Floats, example: Any, at_start: float) -> tuple[float, Floats]:
        """The objective over ε², ε L(m; θ_s) taken off, and its gradient by x."""
        self._put(x)
        epsilon, shift = self._epsilon, torch.from_numpy(x)
        value = self._damping / 2 * float(shift @ shift)
        gradient = self._damping * shift
        with torch.enable_grad():
            added = (losses_of(self._objective, [example])[0] - at_start) / epsilon
            value, gradient = self._added(value, gradient, added)
            for batch, outputs, losses, slopes in self._batches:
                moved = self._objective.outputs(batch)
                linear = losses + (slopes * (moved - outputs)).flatten(1).sum(1)
                # the difference of each example: that of two sums would have lost more digits
                bregman = self._objective.output_losses(moved, batch) - linear
                value, gradient = self._added(value, gradient, bregman.sum() / self._size / epsilon**2)
        return value, gradient.numpy()

    def _added(self, value: float, gradient: Tensor, part: Tensor) -> tuple[float, Tensor]:
        """With a part of the objective, ∂/∂x = ε ∂/∂θ."""
        slopes = torch.autograd.grad(part, self._parameters, materialize_grads=True)
        flat = torch.cat([slope.flatten() for slope in slopes]).cpu()
        return value + float(part.detach()), gradient + self._epsilon * flat

    @torch.no_grad()
    def _put(self, x: Floats) -> None:
        moved = self._start + self._epsilon * torch.from_numpy(x).to(self._start.device)
        parts = moved.split([parameter.numel() for parameter in self._parameters])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def _warn_of_late_ones(rows: Sequence[int], found: Sequence[tuple[int, float]], tolerance: float) -> None:
    late = [row for row, (_, gradient) in zip(rows, found, strict=True) if not gradient <= tolerance]
    if late:
        worst = max(gradient for _, gradient in found)
        warnings.warn(
            f"PBRF: {len(late)} of {len(rows)} optima are not reached (training examples {late[:5]});"
            f" the worst gradient is still {worst:.2g} of the first, asked for {tolerance:g}; allow more"
            " iterations or more damping",
            ConvergenceWarning,
            stacklevel=3,
        )
