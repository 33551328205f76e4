"""Training, linearised: what the optimizer makes of gradients that are known beforehand.

Around a reference (the initial weights, or the path that a recorded run took) the log-odds
f = −log(eᴸ − 1) of an example, L = −log p = log(1 + e⁻ᶠ), are nearly linear in the weights θ:

    f_e(t) = f°_e(t) + Σ_c ω_c J_{e,c}(t) (θ_c(t) − θ°_c(t)),        J = ∂f/∂θ

and so the gradient of a batch follows from the state, the smaller the better an example is known:

    g_c(t) = −mean_{i ∈ batch} (1 − p_i(t)) J_{i,c}(t),               1 − p = 1/(1 + eᶠ)

The optimizer's own rule rounds g into steps of θ, momentum, second moments, bias corrections and all.
SGD and Adam treat every weight alone, so a random sample of the weights c, counted ω_c = 1/probability
times, is enough. Of several references, f and J are averaged. ``attribution.linearised`` makes these
Jacobians; ``EffectsSimulator`` and ``AutoSimulator`` take them as ``linearised=``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from simfluence.curriculum import Curriculum
from simfluence.errors import RunDataError
from simfluence.runs import RunSet
from simfluence.runs.storage import write_atomically

Array = npt.NDArray[np.float64]

_FORMAT = "simfluence linearised 1"
_BYTES_AT_ONCE = 2**28  # of the optimizer's state
_LOSS_FLOOR = 1e-6


def log_odds(losses: npt.ArrayLike) -> Array:
    """f = −log(eᴸ − 1); losses below 1e-6 count as 1e-6."""
    floored = np.maximum(np.asarray(losses, np.float64), _LOSS_FLOOR)
    return np.asarray(-floored - np.log(-np.expm1(-floored)), np.float64)


@dataclass(frozen=True)
class Update:
    """The optimizer's rule, one step for all weights: SGD with momentum, Adam or AdamW as torch has them."""

    adam: bool
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decoupled: bool = False

    @classmethod
    def of(cls, optimizer: Mapping[str, Any]) -> Update:
        """The rule of a recorded optimizer (``Run.optimizer``).

        Raises RunDataError unless it is SGD, Adam or AdamW, without amsgrad or maximize.
        """
        name = str(optimizer.get("class", "")).rsplit(".", 1)[-1]
        if name not in ("SGD", "Adam", "AdamW") or optimizer.get("amsgrad") or optimizer.get("maximize"):
            raise RunDataError(
                "a linearised simulates SGD, Adam and AdamW (no amsgrad, no maximize), and the runs must say"
                f" which; they say {dict(optimizer) or 'nothing'}"
            )
        betas = optimizer.get("betas") or (0.9, 0.999)
        return cls(
            adam=name != "SGD",
            beta1=float(betas[0]),
            beta2=float(betas[1]),
            eps=float(optimizer.get("eps") or 1e-8),
            momentum=float(optimizer.get("momentum") or 0.0),
            dampening=float(optimizer.get("dampening") or 0.0),
            nesterov=bool(optimizer.get("nesterov", False)),
            weight_decay=float(optimizer.get("weight_decay") or 0.0),
            decoupled=name == "AdamW" or bool(optimizer.get("decoupled_weight_decay", False)),
        )

    def __call__(
        self,
        position: torch.Tensor,
        gradient: torch.Tensor,
        state: list[torch.Tensor],
        rate: float,
        step: int,
    ) -> None:
        """Moves θ [run, coordinate] in place; ``state``, two tensors like it, is the momentum. step: from 1."""
        if self.weight_decay and self.decoupled:
            position.mul_(1 - rate * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * position
        first, second = state
        if self.adam:
            first.lerp_(gradient, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
            spread = (second / (1 - self.beta2**step)).sqrt_().add_(self.eps)
            position.addcdiv_(first, spread, value=-rate / (1 - self.beta1**step))
            return
        if self.momentum:
            first.mul_(self.momentum).add_(gradient, alpha=1.0 if step == 1 else 1 - self.dampening)
            gradient = gradient + self.momentum * first if self.nesterov else first
        position.add_(gradient, alpha=-rate)


@dataclass(frozen=True, eq=False)
class LinearisedModel:
    """Jacobians of the log-odds on a sample of the weights, at one or several references.

    Examples are the training examples, then the test examples. A reference's path has one entry if it
    stands still; beyond its end it stands still too.

    jacobian : float16 [reference, point, example, coordinate], in units of ``unit``.
    points : int [point], ascending: the steps at which it is known; linear in between.
    weights : float32 [coordinate], ω.
    path : float32 [reference, step, coordinate], θ°. log_odds : float32 [reference, step, example], f°.
    n_train : how many of the examples are training examples.
    runs : the run that each reference is; "" for none. Its own path does not help to simulate it.
    """

    jacobian: npt.NDArray[np.float16]
    unit: float
    points: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    path: npt.NDArray[np.float32]
    log_odds: npt.NDArray[np.float32]
    n_train: int
    runs: tuple[str, ...]

    def __post_init__(self) -> None:
        references, points, examples, coordinates = self.jacobian.shape
        if (
            len(self.points) != points
            or self.weights.shape != (coordinates,)
            or self.path.shape[::2] != (references, coordinates)
            or self.log_odds.shape != (references, self.path.shape[1], examples)
            or len(self.runs) != references
        ):
            raise ValueError("the arrays of a linearised do not belong together; see its documentation")
        if len(set(self.runs)) == 1 and self.runs[0]:
            raise ValueError(
                f"a linearised along one run, {self.runs[0]}, cannot say how that run would have gone without"
                " it; give at least two runs, or none"
            )

    @property
    def n_test(self) -> int:
        return self.jacobian.shape[2] - self.n_train

    def simulate(
        self,
        curricula: Sequence[Curriculum],
        initial_loss: Array,
        update: Update,
        rates: Array,
        runs: Sequence[str] | None = None,
    ) -> Array:
        """Losses of the test examples, float64 [run, step + 1, test].

        Parameters
        ----------
        initial_loss : [run, test]; log-odds are shifted by what they differ from the references' ones.
        rates : float [step], learning rates; the last goes on.
        runs : what runs these are; references of the same name are not used for them.
        """
        names = list(runs) if runs is not None else [""] * len(curricula)
        size = max(1, _BYTES_AT_ONCE // (16 * len(self.weights)))
        parts = []
        for start in range(0, len(curricula), size):
            part = slice(start, start + size)
            parts.append(self._simulate(curricula[part], initial_loss[part], update, rates, names[part]))
        steps = max(part.shape[1] for part in parts)
        return np.concatenate(
            [np.pad(part, ((0, 0), (0, steps - part.shape[1]), (0, 0)), mode="edge") for part in parts]
        )

    def scores(self, update: Update, batch: float) -> Array:
        """What gradients at the start say, [train, test]; positive lowers the loss.

            S(i, z) = (1 − p_i) Σ_c ω_c J_{i,c} J_{z,c} / (√v_c + ε)

        with v as in attribution/adam.py; for SGD without the divisor.

        batch : the examples of a training step.
        """
        references = range(len(self.runs))
        jacobian = torch.stack([self._jacobian(reference, 0) for reference in references]).mean(0).double()
        odds = torch.from_numpy(self.log_odds[:, 0, : self.n_train].mean(0)).double()
        gradients = torch.sigmoid(-odds)[:, None] * jacobian[: self.n_train]
        metric = torch.from_numpy(self.weights).double()
        if update.adam:
            size = (1 - 1 / batch) * gradients.mean(0).square() + gradients.square().mean(0) / batch
            metric = metric / (size.sqrt() + update.eps)
        return (gradients * metric @ jacobian[self.n_train :].T).numpy()

    @torch.no_grad()
    def _simulate(
        self,
        curricula: Sequence[Curriculum],
        initial_loss: Array,
        update: Update,
        rates: Array,
        names: Sequence[str],
    ) -> Array:
        steps, n = max(len(curriculum) for curriculum in curricula), self.n_train
        use = np.array([[not name or name != run for run in self.runs] for name in names], np.float32)
        share = torch.from_numpy(use / use.sum(1, keepdims=True))  # [run, reference]
        counts = np.zeros((len(curricula), n), np.float32)
        position = torch.from_numpy(self.path[:, 0].mean(0)).repeat(len(curricula), 1)
        state = [torch.zeros_like(position), torch.zeros_like(position)]
        start = torch.from_numpy(log_odds(initial_loss)).float()
        shift = torch.zeros(len(curricula), self.n_test)
        found = np.empty((len(curricula), steps + 1, self.n_test))
        for t in range(steps + 1):
            mean_jacobian, odds = self._odds(position, t, share)
            if t == 0:
                shift = start - odds[:, n:]
            tests = (odds[:, n:] + shift).double()
            found[:, t] = torch.nn.functional.softplus(-tests, threshold=50).numpy()
            if t == steps:
                break
            counts[:] = 0
            for run, curriculum in enumerate(curricula):
                if t < len(curriculum):
                    np.add.at(counts[run], curriculum[t], 1 / max(len(curriculum[t]), 1))
            pull = torch.from_numpy(counts) * torch.sigmoid(-odds[:, :n])
            update(position, -pull @ mean_jacobian[:n], state, float(rates[min(t, len(rates) - 1)]), t + 1)
        return found

    def _odds(self, position: torch.Tensor, t: int, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the mean of J [example, coordinate], f [run, example]) after t steps."""
        at = min(t, self.path.shape[1] - 1)
        mean, odds = torch.zeros(self.jacobian.shape[2:]), torch.zeros(len(position), self.jacobian.shape[2])
        weights = torch.from_numpy(self.weights)
        for reference in range(len(self.runs)):
            jacobian = self._jacobian(reference, t)
            mean.add_(jacobian, alpha=1 / len(self.runs))
            moved = (position - torch.from_numpy(self.path[reference, at])) * weights
            own = torch.from_numpy(self.log_odds[reference, at]) + moved @ jacobian.T
            odds.addcmul_(own, share[:, [reference]])
        return mean, odds

    def _jacobian(self, reference: int, t: int) -> torch.Tensor:
        before = max(int(np.searchsorted(self.points, t, side="right")) - 1, 0)
        after = min(before + 1, len(self.points) - 1)
        jacobian = torch.from_numpy(self.jacobian[reference, before]).float()
        if t > self.points[before] and after > before:
            way = float((t - self.points[before]) / (self.points[after] - self.points[before]))
            jacobian.lerp_(torch.from_numpy(self.jacobian[reference, after]).float(), way)
        return jacobian.mul_(self.unit)

    # ------------------------------------------------------------------------------ keeping it

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The fields that are arrays, by name."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}

    def plain(self) -> dict[str, Any]:
        """The other fields, as JSON has them."""
        return {"unit": self.unit, "n_train": self.n_train, "runs": list(self.runs)}

    @classmethod
    def restored(cls, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> LinearisedModel:
        """From what ``arrays`` and ``plain`` gave."""
        return cls(**arrays, unit=plain["unit"], n_train=plain["n_train"], runs=tuple(plain["runs"]))

    def save(self, path: str | Path) -> None:
        """One safetensors file."""
        arrays = {name: np.ascontiguousarray(value) for name, value in self.arrays().items()}
        write_atomically(Path(path), save(arrays, {"format": _FORMAT, "about": json.dumps(self.plain())}))

    @classmethod
    def load(cls, path: str | Path) -> LinearisedModel:
        """What ``save`` wrote; RunDataError for anything else."""
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise RunDataError(f"{path} does not hold a linearised (expected format {_FORMAT!r})")
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise RunDataError(f"{path} is damaged or no safetensors file: {error}") from error
        return cls.restored(arrays, json.loads(metadata["about"]))


def recorded_update(runs: RunSet) -> tuple[Update, Array]:
    """(the rule, learning rates [step]) that all these runs share; rates are means over runs that log them.

    Raises RunDataError where optimizers differ or are not known, or no run logs its learning rates.
    """
    rules = {Update.of(run.optimizer) for run in runs}
    if len(rules) > 1:
        raise RunDataError("the runs were trained by different optimizers; a linearised simulates one")
    steps = max(len(run) for run in runs)
    rates = np.full((len(runs), steps), np.nan)
    for number, run in enumerate(runs):
        rates[number, : len(run)] = run.learning_rate
        if "lr" in run.optimizer and not np.isfinite(run.learning_rate).any():
            rates[number, : len(run)] = float(run.optimizer["lr"])
    known = np.isfinite(rates)
    if not known.any():
        raise RunDataError("the runs do not say their learning rates, which a linearised needs")
    mean = np.where(known, rates, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    at = np.flatnonzero(known.any(0))
    return rules.pop(), np.interp(np.arange(steps), at, mean[at])


@dataclass(frozen=True)
class LinearisedTraining:
    """A linearised with the optimizer's rule and the learning rates of recorded runs (prior.Predictor)."""

    linearised: LinearisedModel
    update: Update
    rates: Array

    @classmethod
    def as_recorded(cls, linearised: LinearisedModel, runs: RunSet) -> LinearisedTraining:
        """Raises RunDataError as ``recorded_update`` does."""
        return cls(linearised, *recorded_update(runs))

    def simulate(
        self, curricula: Sequence[Curriculum], initial_loss: Array, runs: Sequence[str] | None = None
    ) -> Array:
        """As ``LinearisedModel.simulate``."""
        return self.linearised.simulate(curricula, initial_loss, self.update, self.rates, runs)

    def example_residuals(self, curricula: Sequence[Curriculum]) -> None:
        """Not predicted_now apart from the rest."""

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"rates": self.rates, **self.linearised.arrays()}

    def plain(self) -> dict[str, Any]:
        return {"update": dataclasses.asdict(self.update), **self.linearised.plain()}

    @classmethod
    def restored(cls, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> LinearisedTraining:
        """From what ``arrays`` and ``plain`` gave."""
        own = {name: values for name, values in arrays.items() if name != "rates"}
        return cls(LinearisedModel.restored(own, plain), Update(**plain["update"]), arrays["rates"])
