"""Sixteen numbers as one value in compiled loops: ``load`` and ``store`` move it, +, - and * work on all.

A compiler vectorises a loop over sixteen numbers only if it can prove that the arrays do not overlap; else it
checks before every such loop and keeps sums in memory. These values need no proof and stay in registers.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

from simfluence.kernels.threads import SIMD_WIDTH


class Simd(types.Type):
    """Sixteen numbers of a kind."""

    def __init__(self, kind: types.Float) -> None:
        self.kind = kind
        super().__init__(f"Simd({kind})")


@register_model(Simd)
class SimdModel(models.PrimitiveModel):
    """An LLVM vector."""

    def __init__(self, manager: Any, vectors: Simd) -> None:
        super().__init__(
            manager, vectors, ir.VectorType(manager.lookup(vectors.kind).get_value_type(), SIMD_WIDTH)
        )


@intrinsic
def load(typing: Any, array: Any, at: Any) -> Any:
    """array[at : at + 16]"""
    vectors = _of_flat(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_place(context, builder, signature, arguments, vectors), align=_bytes(array))

    return vectors(array, types.uint64), generate


@intrinsic
def store(typing: Any, array: Any, at: Any, values: Any) -> Any:
    """array[at : at + 16] = values"""
    if values != _of_flat(array) or not array.mutable:
        raise TypingError(
            f"expected vectors for a writable array of their own kind, got {values} for {array}"
        )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature, arguments, values)
        builder.store(arguments[2], place, align=_bytes(array))
        return context.get_dummy_value()

    return types.void(array, types.uint64, values), generate


@intrinsic
def spread(typing: Any, number: Any) -> Any:
    """The number, sixteen times."""
    vectors = Simd(number)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        blank = ir.Constant(context.get_value_type(vectors), ir.Undefined)
        first = builder.insert_element(blank, arguments[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(
            first, blank, ir.Constant(ir.VectorType(ir.IntType(32), SIMD_WIDTH), None)
        )

    return vectors(number), generate


@intrinsic
def double(typing: Any, values: Any) -> Any:
    """The same in double precision."""
    vectors = Simd(types.float64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = context.get_value_type(vectors)
        return arguments[0] if values == vectors else builder.fpext(arguments[0], wide)

    return vectors(values), generate


def _of_flat(array: Any) -> Simd:
    """The type of sixteen numbers of a flat array; places are not checked against its length."""
    flat = isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"
    if not (flat and isinstance(array.dtype, types.Float)):
        raise TypingError(f"vectors are of flat contiguous arrays of float32 or float64, got {array}")
    return Simd(array.dtype)


def _place(context: Any, builder: Any, signature: Any, arguments: Any, vectors: Simd) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    place = builder.gep(array.data, [arguments[1]])
    return builder.bitcast(place, context.get_value_type(vectors).as_pointer())


def _bytes(array: Any) -> int:
    return int(array.dtype.bitwidth) // 8


def _define(operation: Any, instruction: str) -> None:
    @type_callable(operation)
    def type_of(context: Any) -> Any:
        return lambda a, b: a if isinstance(a, Simd) and a == b else None

    @lower_builtin(operation, Simd, Simd)
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments, flags=("contract",))


_INSTRUCTIONS = {operator.add: "fadd", operator.iadd: "fadd", operator.sub: "fsub", operator.isub: "fsub"}
for _operation, _instruction in (_INSTRUCTIONS | {operator.mul: "fmul"}).items():
    _define(_operation, _instruction)
