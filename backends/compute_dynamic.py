"""DynamicQuantizeLinear: a grid from what a value is at run time, and the value on it.

    scale = (max(x, 0) - min(x, 0)) / 255, or 1 where that is 0
    zero_point = rint(-min(x, 0) / scale)         y = saturate(rint(x / scale) + zero_point)

as onnxruntime computes them, bit for bit. Extrema go in two steps over the elements in memory order, whatever the
layout: rows into one row, in vectors, and that row into one number.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from tvm import te, tirx, topi

from graphc.backends.relax_module import ALIAS, OPAQUE, Lowering, computes
from graphc.backends.statements import const
from graphc.ir import Node

LEVELS = 255


@computes("", "DynamicQuantizeLinear")
def dynamic_quantize(state: Lowering, node: Node) -> Sequence[Any]:
    """y as uint8, its scale and its zero point."""
    x, size = state.value(node.inputs[0]), state.type(node.inputs[0]).size
    lowest = _of_all(state, x, size, tirx.min, inf)
    highest = _of_all(state, x, size, tirx.max, -inf)
    scale = state.emit(_scale, lowest, highest, name="scale")
    zero_point = state.emit(_zero_point, lowest, scale, name="zero_point")
    return [state.emit(_quantized, x, scale, zero_point, name="quantize"), scale, zero_point]


def _of_all(state: Lowering, x: Any, size: int, combine: Callable[[Any, Any], Any], first: float) -> Any:
    """[1]: all elements of x combined."""
    lanes = max(1, state.target.lanes(32))
    row = next((width for width in (4 * lanes, lanes) if lanes > 1 and size % width == 0 and size > 2 * width), 1)
    for shape in [(size // row, row), (row, 1)] if row > 1 else [(size, 1)]:
        x = state.emit(lambda x, shape=shape: topi.reshape(x, shape), x, name=ALIAS, pattern=OPAQUE)
        x = state.emit(lambda x: _of_columns(x, combine, first), x, name="extrema")
    return x


def _of_columns(x: te.Tensor, combine: Callable[[Any, Any], Any], first: float) -> te.Tensor:
    def combined(a: Any, b: Any) -> Any:
        return combine(a, b)

    reducer = te.comm_reducer(combined, lambda dtype: tirx.const(first, str(dtype)), name="extremum")
    rows = te.reduce_axis((0, int(x.shape[0])), "rows")
    return te.compute(x.shape[1:], lambda column: reducer(x[rows, column], axis=[rows]), name="extrema")


def _scale(lowest: te.Tensor, highest: te.Tensor) -> te.Tensor:
    def element(*_: Any) -> Any:
        zero = const(0.0, "float32")
        span = tirx.max(highest[0], zero) - tirx.min(lowest[0], zero)
        return tirx.Select(span == zero, const(1.0, "float32"), span / const(float(LEVELS), "float32"))

    return te.compute((), element, name="scale")


def _zero_point(lowest: te.Tensor, scale: te.Tensor) -> te.Tensor:
    def element(*_: Any) -> Any:
        below = const(0.0, "float32") - tirx.min(lowest[0], const(0.0, "float32"))
        return tirx.nearbyint(below / scale[()]).astype("int32").astype("uint8")

    return te.compute((), element, name="zero_point")


def _quantized(x: te.Tensor, scale: te.Tensor, zero_point: te.Tensor) -> te.Tensor:
    def element(*i: Any) -> Any:
        steps = tirx.nearbyint(x[i] / scale[()]).astype("int32") + zero_point[()].astype("int32")
        return tirx.min(tirx.max(steps, const(0)), const(LEVELS)).astype("uint8")

    return te.compute(x.shape, element, name="quantize")
