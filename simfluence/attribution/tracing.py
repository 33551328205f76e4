"""The gradient of every single example, from one forward and one backward pass over a batch.

Hooks on the modules whose kind is known (``layers.py``) keep the modules' inputs, and autograd gives the
gradients of their outputs; the weights' own gradients, summed over the batch, are never computed. A batch has
a single example where a model's examples cannot be separated (they share an output), and where parameters of
unknown modules have to be differentiated directly. The tracer finds this out by trying two examples: it
compares each parameter's gradient with autograd's, and searches the graph for uses of parameters that no hook
saw.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from simfluence.attribution.gradient_parts import GradientPart, Summed, dense, place
from simfluence.attribution.layers import Kind, kind_of, wide_type
from simfluence.attribution.objective import Losses, Objective
from simfluence.attribution.parameters import requiring_gradients, selected_parameters
from simfluence.recording.evaluator import undisturbed


@dataclass(frozen=True)
class _Layer:
    """A module with chosen parameters. parameters : the module's name for each → the model's name."""

    name: str
    module: nn.Module
    kind: Kind
    parameters: dict[str, str]


@dataclass(frozen=True)
class _Call:
    """One call of a module: what it saw [row or example, …], and where its output is in the graph."""

    layer: _Layer
    seen: Tensor
    edge: GradientEdge
    version: Callable[[], bool]


@dataclass(frozen=True)
class Traced:
    """A batch: its losses [example], and the gradient parts by parameter.

    A parameter that the losses do not depend on is left out.
    """

    losses: Tensor
    parts: dict[str, list[GradientPart]]

    def each(self, change: Callable[[Tensor], Tensor]) -> Traced:
        """The same with every tensor of the parts changed, once where several layers share it."""
        known: dict[Any, tuple[Tensor, Tensor]] = {}  # the old tensor too, so that its place is not reused

        def changed(values: Tensor) -> Tensor:
            if (key := place(values)) not in known:
                known[key] = values, change(values)
            return known[key][1]

        parts = {name: [part.each(changed) for part in some] for name, some in self.parts.items()}
        return Traced(self.losses, parts)


class Tracer:
    """Gives the gradients of single examples' losses, with respect to chosen parameters.

        with tracer(objective, examples, parameters) as trace:
            trace(batch).parts["head.weight"]

    Attributes
    ----------
    parameters : name → parameter, as chosen.
    direct : names of those that no hook covers, which are differentiated directly.
    one_by_one : whether each batch must have a single example.
    """

    def __init__(self, objective: Objective, parameters: dict[str, nn.Parameter]) -> None:
        self.objective = objective
        self.parameters = parameters
        self.layers = _layers(objective.module, parameters)
        known = {name for layer in self.layers for name in layer.parameters.values()}
        self.direct = [name for name in parameters if name not in known]
        self.one_by_one = bool(self.direct)
        self._calls: list[_Call] = []
        self._grouping = _Grouping([1], [])

    def __call__(self, examples: Sequence[Any], losses: Losses | None = None) -> Traced:
        """The batch's losses and gradients. losses : a loss function in place of the objective's.

        Raises ValueError for several examples if ``one_by_one``.
        """
        if len(examples) > 1 and self.one_by_one:
            raise ValueError(f"this model takes batches of one example, got {len(examples)}")
        values = self._forward(examples, losses)
        return Traced(values.detach(), self._parts(values))

    def batches(self, examples: Sequence[Any], batch_size: int) -> Iterator[Sequence[Any]]:
        """The examples in consecutive batches, of one example each if ``one_by_one``."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        size = 1 if self.one_by_one else batch_size
        for start in range(0, len(examples), size):
            yield examples[start : start + size]

    def _forward(self, examples: Sequence[Any], losses: Losses | None) -> Tensor:
        self._calls.clear()
        self._grouping = _Grouping(self.objective.rows(examples), self.objective.masks(examples))
        with torch.enable_grad():
            values = (losses or self.objective.losses)(examples)
        if values.shape != (len(examples),):
            raise ValueError(f"losses must be one an example, [{len(examples)}], got {tuple(values.shape)}")
        return values

    def _parts(self, losses: Tensor) -> dict[str, list[GradientPart]]:
        """From the calls since the forward pass: one backward pass to their outputs."""
        direct = [self.parameters[name] for name in self.direct]
        inputs: list[Any] = [*(call.edge for call in self._calls), *direct]
        if not inputs or not losses.requires_grad:
            return {}
        gradients = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)
        found: dict[str, list[GradientPart]] = defaultdict(list)
        for call, gradient in zip(self._calls, gradients[: len(self._calls)], strict=True):
            if gradient is not None:
                self._add(found, call, gradient)
        for name, gradient in zip(self.direct, gradients[len(self._calls) :], strict=True):
            if gradient is not None:
                found[name].append(Summed(gradient.to(wide_type(gradient))[None, None]))
        self._calls.clear()
        return {name: found[name] for name in self.parameters if name in found}

    def _add(self, found: dict[str, list[GradientPart]], call: _Call, gradient: Tensor) -> None:
        layer = call.layer
        if not call.version():
            raise ValueError(f"the input of {layer.name} was changed in place after it was used")
        try:
            seen = self._grouping(call.seen if call.seen.dtype == torch.long else _wide(call.seen))
            g, mask = self._grouping(_wide(gradient)), self._grouping.mask(call.seen)
        except _UnknownShape:
            raise ValueError(
                f"{layer.name} gave an output {tuple(gradient.shape)} for {self._grouping.rows} rows, so that"
                " its rows cannot be assigned to examples: use batch_size=1"
            ) from None
        for own, part in layer.kind.parts(layer.module, seen, g).items():
            if own in layer.parameters:
                found[layer.parameters[own]].append(replace(part, mask=mask))

    @contextmanager
    def hooked(self) -> Iterator[Tracer]:
        """Inside, the modules have hooks, and all chosen parameters require gradients."""
        handles = [layer.module.register_forward_hook(self._hook(layer)) for layer in self.layers]
        try:
            with undisturbed(self.objective.module), requiring_gradients(self.parameters):
                yield self
        finally:
            self._calls.clear()
            for handle in handles:
                handle.remove()

    def _hook(self, layer: _Layer) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.requires_grad or not inputs:
                return None
            seen, given = layer.kind.seen(module, inputs, output), inputs[0]
            shared = output.shape[0] == 1 and self._grouping.rows > 1
            if shared:  # one output for all rows (positions): give every row its own
                output = output.expand(self._grouping.rows, *output.shape[1:])
                seen = seen.expand(self._grouping.rows, *seen.shape[1:])
            version = given._version
            self._calls.append(
                _Call(layer, seen, get_gradient_edge(output), lambda: given._version == version)
            )
            return output if shared else None

        return hook

    def check(self, examples: Sequence[Any]) -> None:
        """Compare with autograd on two examples, else on one; parameters that differ become ``direct``."""
        if len(examples) > 1 and not self.one_by_one and self._wrong(examples[:2]) == []:
            return
        self.one_by_one = True if len(examples) > 1 else self.one_by_one
        if not examples:
            return
        wrong = self._wrong(examples[:1])
        self.direct += list(self.parameters) if wrong is None else wrong
        self.one_by_one = self.one_by_one or bool(self.direct)
        self.layers = [
            _Layer(layer.name, layer.module, layer.kind, kept)
            for layer in self.layers
            if (kept := {own: name for own, name in layer.parameters.items() if name not in self.direct})
        ]

    def _wrong(self, examples: Sequence[Any]) -> list[str] | None:
        """The hooked parameters whose gradients for the first example differ from autograd's.

        None if the hooks fail, or the losses themselves do (the next call will raise that error).
        """
        try:
            losses = self._forward(examples, None)
            unseen = self._unseen(losses)
            expected = torch.autograd.grad(
                losses[0], list(self.parameters.values()), retain_graph=True, materialize_grads=True
            )
            parts = self._parts(losses)
        except (RuntimeError, ValueError):
            return None
        whole = torch.stack([gradient.to(wide_type(gradient)).norm() for gradient in expected]).norm()
        wrong = []
        for (name, p), gradient in zip(self.parameters.items(), expected, strict=True):
            own = dense(parts[name])[0].reshape(p.shape) if name in parts else torch.zeros_like(p)
            if name not in self.direct and (name in unseen or not _close(own, gradient, whole)):
                wrong.append(name)
        return wrong

    def _unseen(self, losses: Tensor) -> set[str]:
        """The parameters that the losses depend on in more places than hooks saw."""
        seen = Counter(name for call in self._calls for name in call.layer.parameters.values())
        uses = _uses(losses)
        return {name for name, p in self.parameters.items() if uses[id(p)] > seen[name]}


@contextmanager
def tracer(
    objective: Objective, examples: Sequence[Any], parameters: Sequence[str] | None = None
) -> Iterator[Tracer]:
    """A :class:`Tracer` of an objective, checked on the first two examples. The model is in eval mode inside
    the ``with`` block, and as before after it."""
    chosen = selected_parameters(objective.module, parameters)
    trace = Tracer(objective, chosen)
    with trace.hooked():
        trace.check(examples)
    with trace.hooked():  # on what is left
        yield trace


class _UnknownShape(Exception):
    """A layer's output does not say which of its parts belong to which example."""


class _Grouping:
    """[row or example, …, feature] → [example, token, feature], the tokens of an example's rows in turn."""

    def __init__(self, rows: Sequence[int], masks: Sequence[Tensor]) -> None:
        self.masks = masks
        self.counts = list(rows)
        self.rows = sum(rows)
        self.offsets = [0]
        for count in rows:
            self.offsets.append(self.offsets[-1] + count)

    def __call__(self, values: Tensor) -> Tensor:
        examples, width, leading = len(self.counts), values.shape[-1], values.shape[0]
        if examples == 1:
            return values.reshape(1, -1, width)
        if leading != self.rows and leading == examples:
            return values.reshape(examples, -1, width)
        if leading % self.rows or values.ndim < 2:
            raise _UnknownShape
        by_row = values.reshape(self.rows, -1, width)
        if len(set(self.counts)) == 1:
            return by_row.reshape(examples, -1, width)
        parts = [by_row[a:b].reshape(-1, width) for a, b in pairwise(self.offsets)]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True)

    def mask(self, seen: Tensor) -> Tensor:
        """Which tokens are no padding, [example, token]. seen : [row or example, …, feature] of a layer.

        Where the masks of encoder and decoder have the same shape, a token counts that is in either.
        """
        shape = seen.shape[:-1]
        fitting = [mask for mask in self.masks if mask.shape == shape or shape == (mask.numel(),)]
        there = torch.stack([mask.reshape(shape) for mask in fitting]).any(0) if fitting else None
        there = torch.ones(shape, dtype=torch.bool, device=seen.device) if there is None else there
        return self(there[..., None])[..., 0]


def _layers(module: nn.Module, parameters: dict[str, nn.Parameter]) -> list[_Layer]:
    names = {id(parameter): name for name, parameter in parameters.items()}
    found = []
    for name, inner in module.named_modules():
        if (kind := kind_of(inner)) is None:
            continue
        own = {
            local: names[id(p)]
            for local, p in inner.named_parameters()
            if id(p) in names
            and any(local == k or (k[-1] == "." and local.startswith(k)) for k in kind.parameters)
        }
        if own:
            found.append(_Layer(name, inner, kind, own))
    return found


def _wide(values: Tensor) -> Tensor:
    return values.detach().to(wide_type(values))


def _uses(losses: Tensor) -> Counter[int]:
    """The id of a parameter → the number of places in the graph where it is used."""
    found: Counter[int] = Counter()
    waiting, known = [losses.grad_fn], {losses.grad_fn}
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions if node is not None else ():
            if (leaf := getattr(following, "variable", None)) is not None:
                found[id(leaf)] += 1
            elif following is not None and following not in known:
                known.add(following)
                waiting.append(following)
    return found


_TOLERANCE = {torch.float64: (1e-8, 1e-13), torch.float32: (1e-3, 1e-6)}
"""Relative tolerances: of a parameter's own gradient, and of all gradients together, since some are zero but
for rounding (the bias of the keys in attention)."""


def _close(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    own, rounding = _TOLERANCE.get(expected.dtype, (5e-2, 1e-3))
    expected = expected.to(wide_type(expected))
    return bool((found - expected).norm() <= own * expected.norm() + rounding * whole)
