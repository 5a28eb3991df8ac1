"""Which indices of which axes go together, and how a rule of channel_rules.py says so.

An axis is (value, number); a `Tie` says which of its indices stand and fall with which indices of another axis:

    Conv(x, w, b) -> y       x axis 1 ~ w axis 1,  w axis 0 ~ b axis 0 ~ y axis 1
    Concat(a, b) -> y        a index i ~ y index i,  b index i ~ y index i + size of a
    Reshape [n, c, h, w] -> [n, c h w]      index c ~ indices c h w to (c + 1) h w - 1
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphc.ir.graph import Graph, Node

Axis = tuple[str, int]
"""A value and the number of one of its axes, from the front."""
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Tie:
    """Index `left[i]` of axis `a` and index `right[i]` of axis `b` go together, for every i."""

    a: Axis
    b: Axis
    left: Indices
    right: Indices


@dataclass(frozen=True, slots=True)
class Free:
    """Indices of this axis can go without any other having to go at this operator."""

    axis: Axis


@dataclass(frozen=True, slots=True)
class Choice:
    """A Reshape cuts these axes into factors: of one factor indices may go, then all others keep theirs.

    Each option is (axis before, axis after, ties of both to the factor, its size).
    """

    options: tuple[tuple[Axis, Axis, tuple[Tie, Tie], int], ...]


Relation = Tie | Free | Choice
Rule = Callable[[Node, Graph], Iterator[Relation]]


def same(graph: Graph, a: Axis, b: Axis, start: int = 0) -> Iterator[Tie]:
    """Index i of `a` is index `start` + i of `b`, as far as both go; nothing for axes of one index (they broadcast)."""
    sizes = [graph.types[name].dims[axis] for name, axis in (a, b)]
    count = min(sizes[0], sizes[1] - start)
    if min(sizes) > 1 or start:
        yield Tie(a, b, np.arange(count), np.arange(start, start + count))


def aligned(graph: Graph, name: str, result: str, end: int) -> Iterator[Relation]:
    """All axes of `name` with those of `result` that end before axis `end`, where the sizes agree."""
    dims, wide = graph.types[name].dims, graph.types[result].dims
    for axis, size in enumerate(dims):
        other = axis + end - len(dims)
        if size == wide[other]:
            yield from same(graph, (name, axis), (result, other))


def axis_of(node: Node, graph: Graph, default: int) -> int:
    return node.get_int("axis", default) % max(len(graph.types[node.inputs[0]].dims), 1)


def integers(graph: Graph, node: Node, operand: int) -> tuple[int, ...] | None:
    """A constant operand as integers; None where it is computed."""
    name = node.inputs[operand] if operand < len(node.inputs) else ""
    array = graph.constant(name)
    return None if array is None else tuple(int(i) for i in array.astype(np.int64).ravel())


def along_others(pinned: Callable[[Node, Graph], tuple[int, ...]]) -> Rule:
    """Operators of one operand that work along some axes and treat the others index by index."""

    def rule(node: Node, graph: Graph) -> Iterator[Relation]:
        for result in node.results:
            for axis in range(len(graph.types[node.inputs[0]].dims)):
                if axis not in pinned(node, graph):
                    yield from same(graph, (node.inputs[0], axis), (result, axis))

    return rule
