"""Extrema along axes. TVM starts a maximum at the lowest finite number, so that -inf among -inf alone is lost.

NaN is passed over wherever it stands (onnxruntime's answer depends on where); of nothing else, as of nothing, the
extremum is where it starts.
"""

from collections.abc import Sequence
from math import inf, prod
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes
from graphc.errors import UnsupportedError
from graphc.ir import Node


@computes("", "ReduceMax", "ReduceMin")
def extremum(state: Lowering, node: Node) -> Sequence[Any]:
    """The largest (smallest) element along axes; of none at all the type's lowest (highest)."""
    kind, result = state.type(node.inputs[0]), state.type(node.outputs[0])
    given = state.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
    rank, dtype = len(kind.dims), kind.dtype
    if len(node.inputs) > 1 and node.inputs[1] and given is None:
        raise UnsupportedError(node.label, "its axes are computed at run time.", "Make the axes a constant.")
    listed = [int(axis) % rank for axis in given.reshape(-1)] if given is not None else []
    everything = not listed and not node.get_int("noop_with_empty_axes", 0)
    axes = list(range(rank)) if everything else sorted(listed)
    keep, largest = node.get_int("keepdims", 1), node.op == "ReduceMax"
    first = _lowest(dtype) if largest else _highest(dtype)

    def combine(known: Any, new: Any) -> Any:
        if dtype == np.bool_:
            return tirx.any(known, new) if largest else tirx.all(known, new)
        return tirx.max(new, known) if largest else tirx.min(new, known)  # of two unordered numbers the second

    def define(x: te.Tensor) -> te.Tensor:
        if not axes:
            return te.compute(result.dims, lambda *i: x[i], name="extremum")
        if not prod(kind.dims[axis] for axis in axes):
            return te.compute(result.dims, lambda *i: tirx.const(first, dtype.name), name="extremum")
        ranges = {axis: te.reduce_axis((0, kind.dims[axis]), f"k{axis}") for axis in axes}
        reducer = te.comm_reducer(combine, lambda name: tirx.const(first, str(name)), name="extremum")

        def element(*i: Any) -> Any:
            kept = iter([p for a, p in enumerate(i) if a not in axes] if keep else i)
            return reducer(
                x[tuple(ranges[a] if a in axes else next(kept) for a in range(rank))], axis=[*ranges.values()]
            )

        return te.compute(result.dims, element, name="extremum")

    return [state.emit(define, state.value(node.inputs[0]), name=node.op.lower())]


def _lowest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).min)
    return False if dtype == np.bool_ else -inf


def _highest(dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iu":
        return int(np.iinfo(dtype).max)
    return True if dtype == np.bool_ else inf
