"""Views: operators that change the shape and move no data. They become aliases, not kernels."""

from collections.abc import Sequence
from typing import Any

from tvm import te, topi

from graphc.backends import patches
from graphc.backends.relax_module import ALIAS, OPAQUE, PART, WHOLE, Lowering, computes
from graphc.ir import Node


@computes("", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "OptionalGetElement")
def view(state: Lowering, node: Node) -> Sequence[Any]:
    """y = the bytes of x under another shape; `lower` turns the call into an alias."""
    shape = state.type(node.outputs[0]).dims

    def reshape(x: te.Tensor) -> te.Tensor:
        return (
            topi.reshape(x, shape)
            if x.shape and shape
            else te.compute(shape, lambda *i: x[tuple(0 for _ in x.shape)], name="view")
        )

    return [state.emit(reshape, state.value(node.inputs[0]), name=ALIAS, pattern=OPAQUE)]


@computes(patches.DOMAIN, "Rows")
def rows(state: Lowering, node: Node) -> Sequence[Any]:
    """y = rows of x from `first` on, where they are: `lower` turns the call into a part of x."""
    shape, first = state.type(node.outputs[0]).dims, node.get_int("first", 0)

    def part(x: te.Tensor) -> te.Tensor:
        return te.compute(shape, lambda n, h, w, c: x[n, h + first, w, c], name="rows")

    return [state.emit(part, state.value(node.inputs[0]), name=PART, pattern=OPAQUE)]


@computes(patches.DOMAIN, "Assemble")
def assemble(state: Lowering, node: Node) -> Sequence[Any]:
    """y = all operands, one's rows behind another's: `lower` makes the operands parts of y."""
    values = [state.value(name) for name in node.inputs]
    return [state.emit(lambda *parts: topi.concatenate(parts, 1), *values, name=WHOLE, pattern=OPAQUE)]
