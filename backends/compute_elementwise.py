"""Elementwise operators whose TVM converters do more than is asked."""

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes
from graphc.ir import Array, Node


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
