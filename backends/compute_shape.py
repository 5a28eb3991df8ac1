"""Views: operators that change the shape and move no data. They become aliases, not kernels."""

from collections.abc import Sequence
from typing import Any

from tvm import te, topi

from graphc.backends.relax_module import ALIAS, OPAQUE, Lowering, computes
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
