"""Operators that go along an axis in order: running sums, the largest elements, positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, TypeAlias

import numpy as np
from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes, convert
from graphc.backends.row import Row, folded
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector
from graphc.errors import UnsupportedError
from graphc.ir import Node, TensorType

COMPARED: Mapping[np.dtype[Any], str] = {
    np.dtype(np.float32): "float32",
    **{np.dtype(kind): "int32" for kind in (np.int8, np.uint8, np.int16, np.uint16, np.int32)},
}
"""Type of elements -> type that they are compared in, a vector at a time."""
SIDE_BY_SIDE = 1024
"""Running sums in one task: few enough that the level-1 cache holds those of the step before."""

Lines: TypeAlias = tuple[int, int, int]


def _lines(shape: Sequence[int], axis: int) -> Lines:
    """(elements before the axis, its size, elements after it)."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@computes("", "CumSum")
def cumulative_sum(state: Lowering, node: Node) -> Sequence[Any]:
    """y[i] = the sum of x up to i; `exclusive` without x[i], `reverse` from the end.

    Each line is a task, or a run of lines side by side: y[k, 0:run] = y[k - 1, 0:run] + x[k, 0:run].
    """
    kind, where = state.type(node.inputs[0]), state.constant(node.inputs[1])
    if where is None:
        raise UnsupportedError(node.label, "its axis is computed at run time.", "Make the axis a constant.")
    lines = _lines(kind.dims, int(where.reshape(()).item()) % len(kind.dims))
    steps = _Steps(lines[1], bool(node.get_int("exclusive", 0)), bool(node.get_int("reverse", 0)))
    x, y = (tirx.decl_buffer((kind.size,), kind.dtype.name, name) for name in "xy")
    lanes = state.target.lanes(kind.bits)
    side_by_side = lanes > 1 and lines[2] >= lanes
    nest = _sums_side_by_side(x, y, lines, steps, lanes) if side_by_side else _sums_of_lines(x, y, lines, steps)
    return [state.emit_function(nest, [state.flat(node.inputs[0])], kind, name="cumulative_sum")]


@dataclass(frozen=True)
class _Steps:
    """The order of a running sum over `size` elements."""

    size: int
    exclusive: bool
    reverse: bool

    def place(self, k: Any) -> Any:
        return self.size - 1 - k if self.reverse else k


def _sums_of_lines(x: Any, y: Any, lines: Lines, steps: _Steps) -> Any:
    """One sum at a time."""
    outer, size, inner = lines
    total = tirx.decl_buffer((1,), x.dtype, "total", scope="local")

    def line(task: Any) -> Any:
        def step(k: Any) -> Any:
            at = (task // inner * size + steps.place(k)) * inner + task % inner
            add = tirx.BufferStore(total, total[0] + x[at], [const(0)])
            store = tirx.BufferStore(y, total[0], [at])
            return sequence([store, add] if steps.exclusive else [add, store])

        clear = tirx.BufferStore(total, const(0, str(x.dtype)), [const(0)])
        return sequence([tirx.AllocBuffer(total), clear, loop("k", 0, size, step)])

    return function([x, y], None, [tasks(outer * inner, line)])


def _sums_side_by_side(x: Any, y: Any, lines: Lines, steps: _Steps, lanes: int) -> Any:
    """As many sums at a time as lie next to each other, up to `SIDE_BY_SIDE`; those of the step before are in y."""
    outer, size, inner = lines
    run = SIDE_BY_SIDE if inner % SIDE_BY_SIDE == 0 else inner
    row = Row(run, lanes)

    def piece(task: Any) -> Any:
        first = task // (inner // run) * size * inner + task % (inner // run) * run

        def at(k: Any, j: Any, count: int) -> Any:
            return vector(first + steps.place(k) * inner + j, count)

        def begin(j: Any, count: int) -> Any:
            here = at(const(0), j, count)
            return tirx.BufferStore(y, spread(const(0, str(x.dtype)), count) if steps.exclusive else x[here], [here])

        def step(k: Any) -> Any:
            def add(j: Any, count: int) -> Any:
                before, here = at(k - 1, j, count), at(k, j, count)
                return tirx.BufferStore(y, y[before] + x[before if steps.exclusive else here], [here])

            return row.each(add)

        rest = [loop("k", 1, size - 1, step)] if size > 1 else []
        return sequence([row.each(begin), *rest])

    return function([x, y], None, [tasks(outer * (inner // run), piece)])


@computes("", "ArgMax", "ArgMin")
def extreme_place(state: Lowering, node: Node) -> Sequence[Any]:
    """Where along the last axis the largest (smallest) element is; other axes and types as elsewhere."""
    kind, result = state.type(node.inputs[0]), state.type(node.outputs[0])
    axis = node.get_int("axis", 0) % max(len(kind.dims), 1)
    lanes = _comparable(state, kind)
    if _lines(kind.dims, axis)[2] > 1 or not lanes:
        return convert(state, node)
    last = bool(node.get_int("select_last_index", 0))
    nest = _first_place(kind, kind.dims[axis], lanes, largest=node.op == "ArgMax", last=last)
    return [state.emit_function(nest, [state.flat(node.inputs[0])], result, name=node.op.lower())]


def _comparable(state: Lowering, kind: TensorType) -> int:
    """How many elements are compared at a time, integers of fewer than 32 bits as int32; 0 where none can be."""
    if kind.dtype not in COMPARED or not kind.size:
        return 0
    lanes = state.target.lanes(32)
    return lanes if lanes > 1 else 0


def _first_place(kind: TensorType, size: int, lanes: int, *, largest: bool, last: bool = False) -> Any:
    """x -> int64 place of the first (or last) best element of each row; each row is a task.

    best[0:lanes] = the best so far of every lane, place[0:lanes] where it was
    y[row] = the least (or greatest) place of those lanes whose best is the best of all

    NaN is no better than anything.
    """
    dtype = COMPARED[kind.dtype]
    lanes = min(lanes, 1 << (size.bit_length() - 1))
    row = Row(size, lanes)
    worst, better = _order(dtype, largest)
    missed, nearer = (const(-1), tirx.max) if last else (const(size), tirx.min)
    x = tirx.decl_buffer((kind.size,), kind.dtype.name, "x")
    y = tirx.decl_buffer((kind.size // size,), "int64", "y")

    def body(task: Any) -> Any:
        best, most = (tirx.decl_buffer((lanes,), dtype, name, scope="local") for name in ("best", "most"))
        place = tirx.decl_buffer((lanes,), "int32", "place", scope="local")
        every = vector(const(0), lanes)

        def compare(k: Any, count: int) -> Any:
            here, some = x[vector(task * size + k, count)], vector(const(0), count)
            new = here.astype(f"{dtype}x{count}" if count > 1 else dtype)
            known = best[some]
            wins = (new >= known if largest else new <= known) if last else (new > known if largest else new < known)
            return sequence(
                [
                    tirx.BufferStore(place, tirx.Select(wins, vector(k, count), place[some]), [some]),
                    tirx.BufferStore(best, tirx.Select(wins, new, known), [some]),
                ]
            )

        chosen = tirx.Select(tirx.EQ(best[every], spread(most[const(0)], lanes)), place[every], spread(missed, lanes))
        return sequence(
            [
                *map(tirx.AllocBuffer, (best, most, place)),
                row.filled(best, worst),
                tirx.BufferStore(place, every, [every]),
                row.each(compare),
                tirx.BufferStore(most, best[every], [every]),
                *folded(most, better, lanes),
                tirx.BufferStore(place, chosen, [every]),
                *folded(place, nearer, lanes),
                tirx.BufferStore(y, place[const(0)].astype("int64"), [task]),
            ]
        )

    return function([x, y], None, [tasks(kind.size // size, body)])


def _order(dtype: str, largest: bool) -> tuple[Any, Callable[[Any, Any], Any]]:
    """(the worst element, the better of two) of a type."""
    if dtype == "float32":
        worst = const(-inf if largest else inf, dtype)
    else:
        limits = np.iinfo(dtype)
        worst = const(int(limits.min if largest else limits.max), dtype)
    return worst, tirx.max if largest else tirx.min


@computes("", "TopK")
def top_k(state: Lowering, node: Node) -> Sequence[Any]:
    """The k largest (or smallest) elements along an axis, in order, and where they are; of equal ones the first.

    Places come from one pass with insertion into the k best so far, values are read there.
    """
    kind = state.type(node.inputs[0])
    axis = node.get_int("axis", -1) % len(kind.dims)
    count = state.type(node.results[0]).dims[axis]
    shape = (*kind.dims[:axis], count, *kind.dims[axis + 1 :])
    if not count:
        raise UnsupportedError(node.label, "a TopK of no elements.", "Drop the node.")
    places = TensorType(np.dtype(np.int64), shape)
    largest = bool(node.get_int("largest", 1))
    lines = _lines(kind.dims, axis)
    lanes = _comparable(state, kind) if lines[2] == 1 else 0
    if count == 1 and lanes:
        nest = _first_place(kind, lines[1], lanes, largest=largest)
    else:
        nest = _best_places(kind, lines, count, lanes, largest=largest)
    indices = state.emit_function(nest, [state.flat(node.inputs[0])], places, name="top_k")

    def taken(data: te.Tensor, index: te.Tensor) -> te.Tensor:
        return te.compute(
            shape, lambda *i: data[(*i[:axis], index[i].astype("int32"), *i[axis + 1 :])], name="top_k_values"
        )

    return [state.emit(taken, state.value(node.inputs[0]), indices, name="top_k_values"), indices]


def _best_places(kind: TensorType, lines: Lines, count: int, lanes: int, *, largest: bool) -> Any:
    """x -> int64 places of the `count` best elements, best first; each line is a task.

    With `lanes`, a vector of a line is looked at one by one only where its best is better than the worst one kept.
    """
    outer, size, inner = lines
    x = tirx.decl_buffer((kind.size,), kind.dtype.name, "x")
    best = tirx.decl_buffer((outer * count * inner,), "int64", "best")

    def line(task: Any) -> Any:
        scan = _Scan(x, best, lines, count, largest, task)
        blocks = max(size - count, 0) // lanes if lanes else 0
        rest = count + blocks * lanes if blocks else 0
        parts = [loop("k", 0, count, scan.candidate)] if blocks else []
        parts += [loop("n", 0, blocks, lambda n: scan.block(count + n * lanes, lanes))] if blocks else []
        parts += [loop("k", rest, size - rest, scan.candidate)] if size > rest else []
        return sequence([tirx.AllocBuffer(scan.place), *parts])

    return function([x, best], None, [tasks(outer * inner, line)])


class _Scan:
    """One line: `best` holds the places of the best elements so far, best first."""

    def __init__(self, x: Any, best: Any, lines: Lines, count: int, largest: bool, task: Any) -> None:
        self.x, self.best, self.count, self.largest = x, best, count, largest
        _, self.size, self.inner = lines
        self.before, self.after = task // self.inner, task % self.inner
        self.place = tirx.decl_buffer((1,), "int32", "place", scope="local")

    def slot(self, j: Any) -> Any:
        return (self.before * self.count + j) * self.inner + self.after

    def at(self, k: Any) -> Any:
        return (self.before * self.size + k) * self.inner + self.after

    def better(self, value: Any, j: Any, dtype: str = "") -> Any:
        """Whether a value, of type `dtype` where not of x's, is better than the j-th best so far."""
        other = self.x[self.at(self.best[self.slot(j)].astype("int32"))]
        other = other.astype(dtype) if dtype else other
        return value > other if self.largest else value < other

    def candidate(self, k: Any) -> Any:
        """Element k takes its place among the best, if it has one."""
        known, count, best, place = tirx.min(k, const(self.count)), self.count, self.best, self.place
        value = self.x[self.at(k)]

        def shift(s: Any) -> Any:
            j = count - s  # from the worst to the best
            down = tirx.BufferStore(best, best[self.slot(tirx.max(j - 1, 0))], [self.slot(tirx.min(j, count - 1))])
            moved = [tirx.IfThenElse(j < count, down, None), tirx.BufferStore(place, j - 1, [const(0)])]
            return tirx.IfThenElse(j <= known, tirx.IfThenElse(self.better(value, j - 1), sequence(moved), None), None)

        put = tirx.BufferStore(best, k.astype("int64"), [self.slot(place[0])])
        insert = sequence(
            [
                tirx.BufferStore(place, known, [const(0)]),
                loop("s", 0, count, shift),
                tirx.IfThenElse(place[0] < count, put, None),
            ]
        )
        return tirx.IfThenElse(k < count, insert, tirx.IfThenElse(self.better(value, count - 1), insert, None))

    def block(self, begin: Any, lanes: int) -> Any:
        """The elements from `begin` on, if the best of them is better than the worst one kept."""
        dtype = COMPARED[np.dtype(str(self.x.dtype))]
        worst, better_of = _order(dtype, self.largest)
        most = tirx.decl_buffer((lanes,), dtype, "most", scope="local")

        def values(k: Any, number: int) -> Any:
            return self.x[vector(self.at(begin + k), number)].astype(f"{dtype}x{number}")

        found = Row(lanes, lanes).reduced(most, worst, lambda known, new: better_of(new, known), values)
        scan = loop("k", begin, lanes, self.candidate)
        worthwhile = self.better(most[const(0)], self.count - 1, dtype)
        return sequence([tirx.AllocBuffer(most), found, tirx.IfThenElse(worthwhile, scan, None)])


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
