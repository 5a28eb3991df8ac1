"""Elementwise operators whose operands differ in type, or that TVM's converters get wrong or lack."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes
from graphc.errors import UnsupportedError
from graphc.ir import Node

EXPONENT_BITS = 7
"""Whole exponents from 64 on give what 64 or 65 do: overflow leaves zero, and of 0, 1 and -1 only parity counts."""

SIMPLE_POWERS: Mapping[float, Callable[[Any], Any]] = {
    -2.0: lambda x: 1 / (x * x),
    -1.0: lambda x: 1 / x,
    -0.5: lambda x: 1 / tirx.sqrt(x),
    0.5: tirx.sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
}
"""Constant exponents that need no function of the C library. Roots of -0 and -infinity are those of the square root."""


def broadcast(state: Lowering, node: Node, function: Callable[..., Any], name: str) -> Any:
    """function(a, b, ...) for every element of the result, operands broadcast as numpy does."""
    shape = state.type(node.outputs[0]).dims

    def element(operand: te.Tensor, place: Sequence[Any]) -> Any:
        own = place[len(place) - len(operand.shape) :]
        return operand[tuple(0 if int(size) == 1 else i for i, size in zip(own, operand.shape, strict=True))]

    def define(*operands: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda *i: function(*(element(each, i) for each in operands)), name=name)

    return state.emit(define, *(state.value(each) for each in node.inputs), name=name)


@computes("", "Pow")
def power(state: Lowering, node: Node) -> Sequence[Any]:
    """x ** y in the type of x; whole powers of whole numbers by squaring, exact modulo the type's range."""
    base, exponent = (state.type(name).dtype for name in node.inputs)
    if base.kind in "iu" and exponent.kind in "iu":
        return [broadcast(state, node, lambda x, y: _whole_power(x, y, base.name), "power")]
    wide = "float64" if base.itemsize == 8 or (base.kind in "iu" and base.itemsize > 2) else "float32"
    constant = state.constant(node.inputs[1])
    simple = SIMPLE_POWERS.get(constant.reshape(()).item()) if constant is not None and constant.size == 1 else None

    def define(x: Any, y: Any) -> Any:
        x = x.astype(wide)
        return (simple(x) if simple else tirx.pow(x, y.astype(wide))).astype(base.name)

    return [broadcast(state, node, define, "power")]


def _whole_power(x: Any, y: Any, dtype: str) -> Any:
    one = tirx.const(1, dtype)
    wide = y.astype("int64")
    even = tirx.const(64, "int64") + (wide & tirx.const(1, "int64"))
    bits = tirx.if_then_else(wide >= 64, even, wide)
    result, square = one, x
    for bit in range(EXPONENT_BITS):
        chosen = (bits >> tirx.const(bit, "int64")) & tirx.const(1, "int64")
        result = result * tirx.Select(chosen == 1, square, one)
        square = square * square
    if np.dtype(dtype).kind == "u":
        return result
    sign = tirx.Select((wide & tirx.const(1, "int64")) == 1, x, one)
    inverse = tirx.Select(tirx.any(x == 1, x == -1), sign, tirx.const(0, dtype))  # 1 / x ** |y| towards zero
    return tirx.Select(wide < 0, inverse, result)


@computes("", "Mod")
def modulo(state: Lowering, node: Node) -> Sequence[Any]:
    """The remainder, with the sign of the divisor; of the dividend with `fmod`. A remainder of 0 has that sign too."""
    dtype = state.type(node.inputs[0]).dtype
    truncated = node.get_int("fmod", 0)
    if dtype.kind in "iu":
        return [broadcast(state, node, tirx.truncmod if truncated else tirx.floormod, "modulo")]
    wide, suffix = ("float64", "") if dtype.itemsize == 8 else ("float32", "f")

    def define(x: Any, y: Any) -> Any:
        x, y = x.astype(wide), y.astype(wide)
        rest = tirx.call_pure_extern(wide, f"fmod{suffix}", x, y)
        if not truncated:
            zero = tirx.const(0, wide)
            moved = tirx.Select(
                tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero)), rest + y, rest
            )
            rest = tirx.Select(rest == 0, tirx.call_pure_extern(wide, f"copysign{suffix}", zero, y), moved)
        return rest.astype(dtype.name)

    return [broadcast(state, node, define, "modulo")]


@computes("", "Tan")
def tangent(state: Lowering, node: Node) -> Sequence[Any]:
    """The C library's: a quotient of sine and cosine is less exact, and compilers call GNU's sincos for it."""
    dtype = state.type(node.inputs[0]).dtype
    wide, function = ("float64", "tan") if dtype.itemsize == 8 else ("float32", "tanf")

    def define(x: Any) -> Any:
        return tirx.call_pure_extern(wide, function, x.astype(wide)).astype(dtype.name)

    return [broadcast(state, node, define, "tangent")]


@computes("", "BitCast")
def bit_cast(state: Lowering, node: Node) -> Sequence[Any]:
    """The same bits as another type of that width."""
    source, target = state.type(node.inputs[0]), state.type(node.outputs[0])
    if source.bits != target.bits or source.bits < 8:
        raise UnsupportedError(
            node.label, f"the bits of {source.dtype} as {target.dtype}.", "Use types of whole bytes."
        )

    def define(x: Any) -> Any:
        if source.dtype == target.dtype:
            return x
        if target.dtype == np.bool_:
            return x != tirx.const(0, source.dtype.name)
        if source.dtype == np.bool_:
            return x.astype(target.dtype.name)
        return tirx.reinterpret(target.dtype.name, x)

    return [broadcast(state, node, define, "bit_cast")]


@computes("", "Dropout")
def dropout(state: Lowering, node: Node) -> Sequence[Any]:
    """y = x, and a mask of ones: at inference nothing is dropped, nor where the ratio is 0."""
    names = [node.inputs[i] if i < len(node.inputs) else "" for i in range(3)]
    training = state.constant(names[2])
    ratio = state.constant(names[1])
    active = names[2] and (training is None or bool(training.reshape(()).item()))
    if active and (ratio is None or ratio.reshape(()).item() != 0):
        raise UnsupportedError(node.label, "it drops elements at random.", "Export the model for inference.")
    x = state.value(names[0])
    copied = state.emit(lambda a: te.compute(a.shape, lambda *i: a[i], name="dropout"), x, name="dropout")

    def ones(a: te.Tensor) -> te.Tensor:
        return te.compute(a.shape, lambda *i: tirx.const(True, "bool"), name="mask")

    return [copied, state.emit(ones, x, name="mask")] if len(node.outputs) > 1 else [copied]


@computes("", "Mish")
def mish(state: Lowering, node: Node) -> Sequence[Any]:
    """x * tanh(log(1 + e^x)) = x * n / (n + 2), n = e^x (e^x + 2): exact for small e^x too; from 20 on it is x."""
    dtype = state.type(node.inputs[0]).dtype
    wide = "float64" if dtype.itemsize == 8 else "float32"

    def define(x: Any) -> Any:
        x = x.astype(wide)
        power = tirx.exp(tirx.min(x, tirx.const(20, wide)))
        n = power * (power + tirx.const(2, wide))
        return tirx.Select(x > 20, x, x * n / (n + tirx.const(2, wide))).astype(dtype.name)

    return [broadcast(state, node, define, "mish")]
