"""The gradient of every single example, from one forward and one backward pass over a batch.

Hooks on the modules whose kind is known (``layers.py``) keep the modules' inputs, and autograd gives the
gradients of their outputs; the weights' own gradients, summed over the batch, are never computed. A batch has
a single example where a model's examples cannot be separated (they share an output, or their rows do not lie
one after the other), and where parameters of unknown modules have to be differentiated directly. The tracer
finds this out, first by trying two examples, where it compares each parameter's gradient with autograd's;
then on whole batches, where it checks whose losses each row has a gradient of (:meth:`Tracer._mixed`), and
searches the graph for uses of parameters that no hook saw.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from simfluence.attribution.calls import Call, Layer, layers_of, stacked_or_none, uses, wide
from simfluence.attribution.gradient_parts import GradientPart, Summed, dense, place
from simfluence.attribution.grouping import Grouping, UnknownRows
from simfluence.attribution.objective import Losses, LossesOnly, Objective, checked_losses, losses_of
from simfluence.attribution.parameters import requiring_gradients, selected_parameters
from simfluence.recording.evaluator import undisturbed


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
    one_by_one : whether :meth:`batches` gives batches of a single example.
    note : why that is so; "" as long as it is not.
    """

    def __init__(self, objective: Objective, parameters: dict[str, nn.Parameter]) -> None:
        self.objective = objective
        self.parameters = parameters
        self.layers = layers_of(objective.module, parameters)
        known = {name for layer in self.layers for name in layer.parameters.values()}
        self.direct: list[str] = []
        self.one_by_one = False
        self.note = ""
        self._differentiate_directly([name for name in parameters if name not in known])
        self._shared: set[str] = set()
        self._watching = self._trying = False
        self._checked = 0
        self._calls: list[Call] = []
        self._grouping = Grouping([1], [])

    def __call__(self, examples: Sequence[Any], losses: Losses | None = None) -> Traced:
        """The batch's losses and gradients. losses : a loss function in place of the objective's.

        If the rows of a layer turn out not to be those of the examples in order, this batch takes a backward
        pass for each example, and ``one_by_one`` is True from then on.
        """
        values = self._forward(examples, losses)
        self._differentiate_directly(self._unseen(values))
        parts = self._together(values) if len(examples) == 1 or not self.one_by_one else None
        parts = self._apart(values) if parts is None else parts
        self._calls.clear()
        return Traced(values.detach(), parts)

    def batches(self, examples: Sequence[Any], batch_size: int) -> Iterator[Sequence[Any]]:
        """The examples in consecutive batches, of one example each while ``one_by_one``."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        start = 0
        while start < len(examples):
            size = 1 if self.one_by_one else batch_size
            yield examples[start : start + size]
            start += size

    @property
    def about(self) -> dict[str, str]:
        """What the provenance of scores says of the gradients; empty if there is nothing special."""
        return {"gradients": self.note} if self.note else {}

    def _forward(self, examples: Sequence[Any], losses: Losses | None) -> Tensor:
        self._calls.clear()
        self._grouping = Grouping(self.objective.rows(examples), self.objective.masks(examples))
        self._watching = True
        try:
            with torch.enable_grad():
                return checked_losses((losses or self.objective.losses)(examples), examples)
        finally:
            self._watching = False

    # ------------------------------------------------------------- gradients after a forward pass

    def _together(self, losses: Tensor) -> dict[str, list[GradientPart]] | None:
        """The gradients of all examples from one backward pass to the outputs of the layers.

        None if the rows of a layer are not those of the examples: their number does not fit, or a second
        backward pass, with another weight for each example, does not multiply all rows of an example by its
        weight.
        """
        several = len(losses) > 1
        gradients = self._gradients(losses, torch.ones_like(losses), keep_graph=several)
        found: dict[str, list[GradientPart]] = defaultdict(list)
        place = self._grouping
        for call, gradient in zip(self._calls, gradients, strict=False):
            if gradient is not None:
                try:
                    seen, mask = place(call.values()), place.mask(call.seen)
                    self._add(found, call, seen, place(wide(gradient)), mask)
                except UnknownRows:
                    self._note_mixed(call)
                    return None
        if several and self._is_doubtful(gradients):
            if (mixed := self._mixed(losses, gradients)) is not None:
                self._note_mixed(mixed)
                return None
            self._checked += 1
        for name, gradient in zip(self.direct, gradients[len(self._calls) :], strict=True):
            if gradient is not None:
                found[name].append(Summed(wide(gradient)[None, None]))
        return self._in_order(found)

    def _apart(self, losses: Tensor) -> dict[str, list[GradientPart]]:
        """The same from a backward pass for each example; the tokens of a call are all of its rows."""
        each = list(zip(*(self._gradients(one, None, keep_graph=True) for one in losses), strict=True))
        gradients = [stacked_or_none(of_call) for of_call in each]
        found: dict[str, list[GradientPart]] = defaultdict(list)
        examples = len(losses)
        for call, gradient in zip(self._calls, gradients, strict=False):
            if gradient is not None:
                seen = call.values().expand(examples, *call.seen.shape)
                seen, g = (v.reshape(examples, -1, v.shape[-1]) for v in (seen, gradient))
                self._add(found, call, seen, g, (g != 0).any(2))
        for name, gradient in zip(self.direct, gradients[len(self._calls) :], strict=True):
            if gradient is not None:
                found[name].append(Summed(gradient[:, None]))
        return self._in_order(found)

    def _gradients(self, losses: Tensor, weights: Tensor | None, *, keep_graph: bool) -> Sequence[Any]:
        """∂(Σ_i weight_i L_i) by the output of every call, then by every direct parameter; None where the
        losses do not depend on it."""
        inputs: list[Any] = [call.edge for call in self._calls]
        inputs += [self.parameters[name] for name in self.direct]
        if not inputs or not losses.requires_grad:
            return [None] * len(inputs)
        return torch.autograd.grad(losses, inputs, weights, retain_graph=keep_graph, allow_unused=True)

    def _is_doubtful(self, gradients: Sequence[Any]) -> bool:
        """Whether a batch has to be checked. Those of an objective that says which rows its examples take
        are, while there are few of them, or if a layer has another number of rows."""
        if isinstance(self.objective, LossesOnly) or self._checked < _CHECKED:
            return True
        rows = {len(g) for _, g in zip(self._calls, gradients, strict=False) if g is not None}
        return rows != {self._grouping.rows}

    def _mixed(self, losses: Tensor, gradients: Sequence[Any]) -> Call | None:
        """The first call with a row in which the losses of other examples have a gradient."""
        n = len(losses)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
        weights = (1 + order / n).to(losses)
        weighted = self._gradients(losses, weights, keep_graph=True)
        known = [each for each in zip(self._calls, gradients, weighted, strict=False) if each[1] is not None]
        whole = sum((wide(gradient).norm() ** 2 for _, gradient, _ in known), torch.zeros(())) ** 0.5
        for call, gradient, other in known:
            example = self._grouping.examples(gradient)
            scale = weights[example].to(gradient.dtype).reshape(-1, *[1] * (gradient.ndim - 1))
            wrong, size = (
                weights.new_zeros(n).index_add_(0, example, values.flatten(1).norm(dim=1).square()).sqrt()
                for values in (wide(other - scale * gradient), wide(gradient))
            )
            own, rounding = _WEIGHTED.get(gradient.dtype, _HALF)
            if bool((wrong > own * size + rounding * whole).any()):
                return call
        return None

    def _note_mixed(self, call: Call) -> None:
        self.one_by_one = True
        self.note = self.note or (
            f"one example at a time, since the rows of {call.layer.name or 'the module'} are not those of the"
            " examples in order"
        )

    def _differentiate_directly(self, names: Sequence[str]) -> None:
        """Parameters that no hook covers: their gradients are those of whole batches."""
        if new := [name for name in names if name not in self.direct]:
            self.direct += new
            self.one_by_one = True
            self.note = self.note or f"one example at a time, since no known layer has {new[0]} to itself"

    def _add(
        self, found: dict[str, list[GradientPart]], call: Call, seen: Tensor, g: Tensor, mask: Tensor
    ) -> None:
        for own, part in call.layer.kind.parts(call.layer.module, seen, g).items():
            name = call.layer.parameters.get(own)
            if name is not None and name not in self.direct:
                found[name].append(replace(part, mask=mask))

    def _in_order(self, found: dict[str, list[GradientPart]]) -> dict[str, list[GradientPart]]:
        return {name: found[name] for name in self.parameters if name in found}

    # ------------------------------------------------------------------------------------ hooks

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

    def _hook(self, layer: Layer) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        """Keeps what a call saw. Of a call that does not fit the layer's kind nothing is kept: the graph
        then has a use of its parameters that no hook saw."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if not self._watching or not isinstance(output, Tensor) or not output.requires_grad:
                return None
            if not inputs or not isinstance(given := inputs[0], Tensor) or output.ndim == 0:
                return None
            seen = layer.kind.seen(module, inputs, output)
            if seen.shape[:-1] != output.shape[:-1]:
                return None
            shared = self._is_shared(layer, output)
            if shared:  # one output for all rows (positions): give every row its own
                output = output.expand(self._grouping.rows, *output.shape[1:])
                seen = seen.expand(self._grouping.rows, *seen.shape[1:])
            version = given._version
            self._calls.append(
                Call(layer, seen, get_gradient_edge(output), lambda: given._version == version)
            )
            return output if shared else None

        return hook

    def _is_shared(self, layer: Layer, output: Tensor) -> bool:
        """Whether a layer has one output for all rows. The trial says which layers have; another one may
        have a single row by chance."""
        if output.shape[0] != 1 or self._grouping.rows == 1:
            return False
        if self._trying:
            self._shared.add(layer.name)
        return layer.name in self._shared

    # ------------------------------------------------------------------------------------ trial

    def check(self, examples: Sequence[Any]) -> None:
        """Compare with autograd on two examples, else on one; parameters that differ become ``direct``.

        Raises ValueError if the loss of an example has no gradient at all."""
        if len(examples) > 1 and not self.one_by_one:
            self._trying = True
            wrong = self._wrong(examples[:2])
            self._trying = False
            if wrong == []:
                return
            self.one_by_one = True
        self._shared.clear()
        if examples:
            wrong = self._wrong(examples[:1])
            if wrong is None and not self._forward(examples[:1], None).requires_grad:
                raise ValueError(
                    "the loss has no gradient with respect to any of the chosen parameters: it does not"
                    " depend on them, or something in the model cuts it off (torch.no_grad, a layer made for"
                    " inference)"
                )
            self._differentiate_directly(list(self.parameters) if wrong is None else wrong)
        if self.one_by_one and not self.note:
            self.note = "one example at a time, since two examples could not be separated in a batch"
        self.layers = [
            Layer(layer.name, layer.module, layer.kind, kept)
            for layer in self.layers
            if (kept := {own: name for own, name in layer.parameters.items() if name not in self.direct})
        ]

    def _wrong(self, examples: Sequence[Any]) -> list[str] | None:
        """The hooked parameters whose gradients for the first example differ from autograd's.

        None if the hooks fail, or the losses themselves do (the next call will raise that error).
        """
        try:
            losses = self._forward(examples, None)
            with torch.no_grad():  # hooks give layers of a single row one for every row
                if self._shared and not _close(losses, losses_of(self.objective, examples), losses.norm()):
                    return None
            unseen = self._unseen(losses)
            expected = torch.autograd.grad(
                losses[0], list(self.parameters.values()), retain_graph=True, materialize_grads=True
            )
            if (parts := self._together(losses)) is None:
                return None
            found = {name: dense(some)[0] for name, some in parts.items()}
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None
        whole = torch.stack([wide(gradient).norm() for gradient in expected]).norm()
        wrong = []
        for (name, p), gradient in zip(self.parameters.items(), expected, strict=True):
            own = found[name].reshape(p.shape) if name in found else torch.zeros_like(p)
            if name not in self.direct and (name in unseen or not _close(own, gradient, whole)):
                wrong.append(name)
        return wrong

    def _unseen(self, losses: Tensor) -> list[str]:
        """The parameters that the losses depend on in more places than hooks saw."""
        seen = Counter(name for call in self._calls for name in call.layer.parameters.values())
        found = uses(losses)
        return [name for name, p in self.parameters.items() if found[id(p)] > seen[name]]


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


_CHECKED = 2
"""So many batches are checked at least."""

_HALF = 5e-2, 1e-3
_TOLERANCE = {torch.float64: (1e-8, 1e-13), torch.float32: (1e-3, 1e-6)}
"""Relative tolerances: of a parameter's own gradient, and of all gradients together, since some are zero but
for rounding (the bias of the keys in attention)."""
_WEIGHTED = dict.fromkeys((torch.float64, torch.float32), (1e-4, 1e-6))
"""The same of the gradients of weighted losses, whose weights differ by much more. Some models compute parts
in single precision whatever their own is."""


def _close(found: Tensor, expected: Tensor, whole: Tensor) -> bool:
    own, rounding = _TOLERANCE.get(expected.dtype, _HALF)
    expected = wide(expected)
    return bool((wide(found) - expected).norm() <= own * expected.norm() + rounding * whole)
