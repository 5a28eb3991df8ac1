"""Padding with a value that is computed at run time (a zero point, say), which TVM's converter does not take."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import INJECTIVE, Lowering, computes, convert
from graphc.ir import Node


@computes("", "Pad")
def pad(state: Lowering, node: Node) -> Sequence[Any]:
    """y = x inside, the value around it; TVM's converter computes all but this case."""
    begins = _begins(state, node)
    if begins is None:
        return convert(state, node)
    dims, result = state.type(node.inputs[0]).dims, state.type(node.outputs[0]).dims

    def define(x: te.Tensor, around: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            at = [p - b for p, b in zip(i, begins, strict=True)]
            inside = [
                test
                for p, b, size, whole in zip(at, begins, dims, result, strict=True)
                for test in (*([p >= 0] if b else []), *([p < size] if b + size < whole else []))
            ]
            outside = around[(0,) * len(around.shape)]
            return tirx.if_then_else(tirx.all(*inside), x[tuple(at)], outside) if inside else x[tuple(at)]

        return te.compute(result, element, name="pad")

    return [state.emit(define, *map(state.value, (node.inputs[0], node.inputs[2])), name="pad", pattern=INJECTIVE)]


def _begins(state: Lowering, node: Node) -> list[int] | None:
    """How far x lies inside y along each axis; None for what TVM's converter does."""
    value = node.inputs[2] if len(node.inputs) > 2 else ""
    if not value or state.constant(value) is not None or node.get_str("mode", "constant") != "constant":
        return None
    rank = len(state.type(node.inputs[0]).dims)
    given = node.inputs[3] if len(node.inputs) > 3 else ""
    amounts, axes = state.constant(node.inputs[1]), state.constant(given) if given else np.arange(rank)
    if amounts is None or axes is None or amounts.astype(np.int64).min(initial=0) < 0:
        return None
    begins = {int(axis) % rank: int(amount) for axis, amount in zip(axes.ravel(), amounts.ravel(), strict=False)}
    return [begins.get(axis, 0) for axis in range(rank)]
