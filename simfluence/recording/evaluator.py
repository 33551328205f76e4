"""The losses of all test examples under the current weights; the training is not affected.

The model is put into eval mode and back, module by module; no gradients are kept; Python's, NumPy's
and torch's random states are restored. The test examples go through in batches of similar length,
the same ones every time.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simfluence.curriculum import IntArray
from simfluence.recording.environment import device_of
from simfluence.recording.processes import Processes
from simfluence.recording.wrappers import is_sharded

Metrics: TypeAlias = dict[str, npt.NDArray[np.floating]]
LossFunction: TypeAlias = Callable[[Any, list[Any]], Tensor | Mapping[str, Tensor]]
"""(model, examples) → loss of each example [len(examples)], or name → values, "loss" among them."""

Evaluate: TypeAlias = Callable[[Any, Processes | None, IntArray | None], Metrics]
"""(model, processes, rows) → metric → values [test]: an :class:`Evaluator`, or one whose time is measured."""


class Evaluator:
    """Evaluates a loss function on fixed test examples.

    Parameters
    ----------
    examples : one for each row of the test table; the loss function is given lists of them.
    loss : see :data:`LossFunction`.
    batch_size : examples a call; by default 8 on a CPU, where padding costs more than calls do, else 64.
    length : example → sort key, so that batches need little padding; by default the amount of
        text or tokens in it.
    autocast : evaluate under torch.autocast of this type (torch.bfloat16), faster where the hardware
        supports it; the recorded losses change by its rounding.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        loss: LossFunction,
        *,
        batch_size: int | None = None,
        length: Callable[[Any], float] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        lengths = [(length or amount)(example) for example in examples]
        self._order = np.argsort(lengths, kind="stable")
        self._batch_size = batch_size
        self._examples = examples
        self._loss = loss
        self._autocast = autocast

    def __call__(
        self, model: Any, processes: Processes | None = None, rows: IntArray | None = None
    ) -> Metrics:
        """name → values [test], in the order of the test table and the precision they came in.

        rows : which test examples to evaluate; the others are NaN. None: all.

        A metric that the loss function returns for some batches only is NaN for the other examples.
        Data-parallel processes take turns at the batches, and all get all values.

        Raises ValueError if the loss function does not return one value an example, or no loss.
        """
        processes = processes or Processes()
        alone = processes.size == 1 or is_sharded(model)
        batches = self._batches(model, rows)
        mine = batches if alone else batches[processes.rank :: processes.size]

        def evaluate() -> list[tuple[npt.NDArray[np.int64], Metrics]]:
            with undisturbed(model), torch.no_grad(), self._precision(model):
                return [self._evaluate(model, rows) for rows in mine]

        parts = evaluate() if alone else list(itertools.chain(*processes.gather_results(evaluate)))
        metrics: Metrics = {}
        for batch, values in parts:
            for name in values:
                if name not in metrics:
                    metrics[name] = np.full(len(self._examples), np.nan, values[name].dtype)
                metrics[name][batch] = values[name]
        return metrics

    def _batches(self, model: Any, rows: IntArray | None) -> list[IntArray]:
        size = self._batch_size or (8 if device_of(model) == "cpu" else 64)
        order = self._order if rows is None else self._order[np.isin(self._order, rows)]
        return [order[i : i + size] for i in range(0, len(order), size)]

    def _evaluate(self, model: Any, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Metrics]:
        found = self._loss(model, [self._examples[row] for row in rows.tolist()])
        return rows, {name: _as_floats(values) for name, values in _checked(found, len(rows)).items()}

    def _precision(self, model: Any) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(device_of(model), self._autocast)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Eval mode inside; modes and random states as before outside."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (the user's)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if modules:
            model.eval()
        for module in modules:
            if type(module).__name__ == "Linear4bit":  # which bitsandbytes, in eval mode on CPUs, packs into
                module.training = True  # a map without gradients, and never unpacks for training
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def amount(example: Any, inside: tuple[int, ...] = ()) -> int:
    """How much text or how many tokens an example holds, as far as can be seen from outside.

    inside : the ``id()`` of what this is a part of; what holds itself counts once.
    """
    if id(example) in inside:
        return 0
    if isinstance(example, str):
        return len(example)
    if isinstance(example, Tensor | np.ndarray):
        return int(np.prod(example.shape))
    inside = (*inside, id(example))
    if isinstance(example, Mapping):
        return sum(amount(value, inside) for value in example.values())
    if isinstance(example, Sequence):
        return sum(amount(value, inside) for value in example)
    return (
        sum(amount(value, inside) for value in vars(example).values()) if hasattr(example, "__dict__") else 1
    )


def _as_floats(values: Tensor) -> npt.NDArray[np.floating]:
    values = values.detach().cpu()
    if not values.dtype.is_floating_point or values.dtype.itemsize < 4:
        values = values.float()
    return values.numpy()


def _checked(found: Tensor | Mapping[str, Tensor], size: int) -> Mapping[str, Tensor]:
    metrics = found if isinstance(found, Mapping) else {"loss": found}
    if "loss" not in metrics:
        raise ValueError(f"the loss function returned no 'loss', only {sorted(metrics)}")
    for name, values in metrics.items():
        if not isinstance(values, Tensor) or values.shape != (size,):
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"the loss function must return one {name} per example, a tensor of shape ({size},),"
                f" got {shape}; with cross_entropy, use reduction='none'"
            )
    return metrics
