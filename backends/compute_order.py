"""Operators that go along an axis in order: running sums, the largest elements, positions."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes
from graphc.backends.statements import const, function, loop, sequence, tasks
from graphc.errors import UnsupportedError
from graphc.ir import Node, TensorType


def _lines(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """(elements before the axis, its size, elements after it)."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@computes("", "CumSum")
def cumulative_sum(state: Lowering, node: Node) -> Sequence[Any]:
    """y[i] = the sum of x up to i; `exclusive` without x[i], `reverse` from the end. Each line is a task."""
    kind, where = state.type(node.inputs[0]), state.constant(node.inputs[1])
    if where is None:
        raise UnsupportedError(node.label, "its axis is computed at run time.", "Make the axis a constant.")
    axis = int(where.reshape(()).item()) % len(kind.dims)
    outer, size, inner = _lines(kind.dims, axis)
    exclusive, reverse = node.get_int("exclusive", 0), node.get_int("reverse", 0)
    dtype = kind.dtype.name
    x = tirx.decl_buffer(kind.dims, dtype, "x")
    y = tirx.decl_buffer((kind.size,), dtype, "y")
    total = tirx.decl_buffer((1,), dtype, "total", scope="local")

    def line(task: Any) -> Any:
        def step(k: Any) -> Any:
            place = size - 1 - k if reverse else k
            at = (task // inner * size + place) * inner + task % inner
            element = x[tuple(at // prod(kind.dims[i + 1 :]) % n for i, n in enumerate(kind.dims))]
            add = tirx.BufferStore(total, total[0] + element, [const(0)])
            store = tirx.BufferStore(y, total[0], [at])
            return sequence([store, add] if exclusive else [add, store])

        clear = tirx.BufferStore(total, const(0, dtype), [const(0)])
        return sequence([tirx.AllocBuffer(total), clear, loop("k", 0, size, step)])

    nest = function([x, y], None, [tasks(outer * inner, line)])
    return [state.emit_function(nest, [state.value(node.inputs[0])], kind, name="cumulative_sum")]


@computes("", "TopK")
def top_k(state: Lowering, node: Node) -> Sequence[Any]:
    """The k largest (or smallest) elements along an axis, in order, and where they are; of equal ones the first.

    Places come from one pass with insertion into the k best so far, values are read there.
    """
    kind = state.type(node.inputs[0])
    axis = node.get_int("axis", -1) % len(kind.dims)
    count = state.type(node.results[0]).dims[axis]
    shape = (*kind.dims[:axis], count, *kind.dims[axis + 1 :])
    x = state.value(node.inputs[0])
    if not count:
        raise UnsupportedError(node.label, "a TopK of no elements.", "Drop the node.")
    places = TensorType(np.dtype(np.int64), shape)
    nest = _best_places(kind, axis, count, largest=bool(node.get_int("largest", 1)))
    indices = state.emit_function(nest, [x], places, name="top_k")

    def taken(data: te.Tensor, index: te.Tensor) -> te.Tensor:
        return te.compute(
            shape, lambda *i: data[(*i[:axis], index[i].astype("int32"), *i[axis + 1 :])], name="top_k_values"
        )

    return [state.emit(taken, x, indices, name="top_k_values"), indices]


def _best_places(kind: TensorType, axis: int, count: int, *, largest: bool) -> Any:
    """x -> int64 places of the `count` best elements, best first; each line is a task."""
    outer, size, inner = _lines(kind.dims, axis)
    x = tirx.decl_buffer(kind.dims, kind.dtype.name, "x")
    best = tirx.decl_buffer((outer * count * inner,), "int64", "best")
    place = tirx.decl_buffer((1,), "int32", "place", scope="local")

    def line(task: Any) -> Any:
        before, after = task // inner, task % inner

        def slot(j: Any) -> Any:
            return (before * count + j) * inner + after

        def element(k: Any) -> Any:
            at = (before * size + k) * inner + after
            return x[tuple(at // prod(kind.dims[i + 1 :]) % n for i, n in enumerate(kind.dims))]

        def better(k: Any, j: Any) -> Any:
            other = element(best[slot(j)].astype("int32"))
            return element(k) > other if largest else element(k) < other

        def candidate(k: Any) -> Any:
            known = tirx.min(k, const(count))

            def shift(s: Any) -> Any:
                j = count - s  # from the worst to the best
                down = tirx.BufferStore(best, best[slot(tirx.max(j - 1, 0))], [slot(tirx.min(j, count - 1))])
                moved = sequence(
                    [
                        tirx.IfThenElse(j < count, down, None),
                        tirx.BufferStore(place, j - 1, [const(0)]),
                    ]
                )
                return tirx.IfThenElse(j <= known, tirx.IfThenElse(better(k, j - 1), moved, None), None)

            put = tirx.BufferStore(best, k.astype("int64"), [slot(place[0])])
            insert = sequence(
                [
                    tirx.BufferStore(place, known, [const(0)]),
                    loop("s", 0, count, shift),
                    tirx.IfThenElse(place[0] < count, put, None),
                ]
            )
            first = tirx.IfThenElse(better(k, count - 1), insert, None)
            return tirx.IfThenElse(k < count, insert, first)

        return sequence([tirx.AllocBuffer(place), loop("k", 0, size, candidate)])

    return function([x, best], None, [tasks(outer * inner, line)])


@computes("", "OneHot")
def one_hot(state: Lowering, node: Node) -> Sequence[Any]:
    """y = on where the new axis' index is the given one, else off; -1 is the last one, others out of range hit none."""
    result, kind = state.type(node.outputs[0]), state.type(node.inputs[0])
    axis = node.get_int("axis", -1) % len(result.dims)
    depth = result.dims[axis]

    def define(indices: te.Tensor, values: te.Tensor) -> te.Tensor:
        def element(*i: Any) -> Any:
            index = indices[(*i[:axis], *i[axis + 1 :])]
            place = i[axis].astype(kind.dtype.name)
            chosen = tirx.any(index == place, index + tirx.const(depth, kind.dtype.name) == place)
            return tirx.Select(chosen, values[1], values[0])

        return te.compute(result.dims, element, name="one_hot")

    return [state.emit(define, state.value(node.inputs[0]), state.value(node.inputs[2]), name="one_hot")]
