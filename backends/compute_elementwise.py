"""Elementwise operators whose TVM converters do more than is asked, or call the C library for each element.

All of float32 arithmetic; 16-bit floats are widened, and rounded once at the end.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from tvm import te, tirx

from graphc.backends import vector_math
from graphc.backends.relax_module import Lowering, computes, convert
from graphc.ir import Array, Node

SINGLE = frozenset(np.dtype(kind) for kind in (np.float32, np.float16, ml_dtypes.bfloat16))
"""Element types that are computed in float32."""

Function = Callable[[Any], Any]


def _ours(function: Function) -> Callable[[Node], Function]:
    return lambda node: partial(vector_math.call, function)


def _real(value: float) -> Any:
    return tirx.const(value, "float32")


def _gelu(node: Node) -> Function:
    exact = node.get_str("approximate", "none") == "none"
    return partial(vector_math.call, vector_math.gelu if exact else vector_math.gelu_tanh)


def _exponential_below_zero(alpha: float, scale: float) -> Function:
    """scale x for x > 0, else scale alpha (e^x - 1)"""

    def function(x: Any) -> Any:
        below = vector_math.call(vector_math.expm1_negative, x) * _real(scale * alpha)
        return tirx.Select(x > _real(0.0), x * _real(scale), below)

    return function


def _elu(node: Node) -> Function:
    return _exponential_below_zero(node.get_float("alpha", 1.0), 1.0)


def _selu(node: Node) -> Function:
    alpha, gamma = (
        node.get_float("alpha", 1.67326319217681884765625),
        node.get_float("gamma", 1.05070102214813232421875),
    )
    return _exponential_below_zero(alpha, gamma)


def _leaky_relu(node: Node) -> Function:
    slope = node.get_float("alpha", 0.01)
    return lambda x: tirx.Select(x < _real(0.0), x * _real(slope), x)


def _hard_sigmoid(node: Node) -> Function:
    alpha, beta = node.get_float("alpha", 0.2), node.get_float("beta", 0.5)
    return lambda x: vector_math.call(vector_math.unit_clamp, x * _real(alpha) + _real(beta))


def _hard_swish(node: Node) -> Function:
    return lambda x: x * vector_math.call(vector_math.unit_clamp, x * _real(1 / 6) + _real(0.5))


FUNCTIONS: Mapping[str, Callable[[Node], Function]] = {
    "Elu": _elu,
    "Erf": _ours(vector_math.erf),
    "Exp": _ours(vector_math.exp),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Log": _ours(vector_math.log),
    "Mish": _ours(vector_math.mish),
    "Selu": _selu,
    "Sigmoid": _ours(vector_math.sigmoid),
    "Softplus": _ours(vector_math.softplus),
    "Tanh": _ours(vector_math.tanh),
}
"""Operator -> what it does to one float32 number, given its attributes."""


@computes("", *FUNCTIONS)
def unary(state: Lowering, node: Node) -> Sequence[Any]:
    """y[i] = f(x[i])"""
    kind = state.type(node.inputs[0]).dtype
    if kind not in SINGLE:
        return convert(state, node)
    function = FUNCTIONS[node.op](node)

    def define(x: te.Tensor) -> te.Tensor:
        return te.compute(
            x.shape, lambda *i: function(tirx.Cast("float32", x[i])).astype(kind.name), name=node.op.lower()
        )

    return [state.emit(define, state.value(node.inputs[0]), name=node.op.lower())]


@computes("", "Clip")
def clip(state: Lowering, node: Node) -> Sequence[Any]:
    """min(max(x, low), high); a bound that is absent does nothing. NaN becomes a bound, which ONNX leaves open."""
    bounds = [name if len(node.inputs) > i + 1 and (name := node.inputs[i + 1]) else "" for i in range(2)]
    arrays = [state.constant(name) for name in bounds]
    dtype = state.type(node.inputs[0]).dtype.name
    if any(name and array is None for name, array in zip(bounds, arrays, strict=True)):
        operands = [state.value(name) for name in bounds if name]
        return [
            state.emit(
                lambda x, *b: _clipped(x, [b[0] if bounds[0] else None, b[-1] if bounds[1] else None]),
                state.value(node.inputs[0]),
                *operands,
                name="clip",
            )
        ]

    def limit(array: Array | None) -> Any:
        return None if array is None else tirx.const(array.reshape(()).item(), dtype)

    return [
        state.emit(lambda x: _clipped(x, [limit(array) for array in arrays]), state.value(node.inputs[0]), name="clip")
    ]


def _clipped(x: te.Tensor, bounds: Sequence[Any]) -> te.Tensor:
    low, high = (bound() if isinstance(bound, te.Tensor) else bound for bound in bounds)

    def element(*i: Any) -> Any:
        value = x[i] if low is None else tirx.max(x[i], low)
        return value if high is None else tirx.min(value, high)

    return te.compute(x.shape, element, name="clip")
