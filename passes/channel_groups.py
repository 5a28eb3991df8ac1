"""Which channels of a graph must go together, and which cannot go at all.

Every index of every axis of every value is an element; the rules of channel_rules.py tie elements. Connected components
(networkx) are what must be cut together; a component that holds an index that must stay, stays: the graph's inputs and
outputs keep their shape, and so do axes along which an operator mixes indices.

    Conv(x, w1) -> a;  Relu(a) -> b;  Conv(b, w2) -> y
    groups, one per channel c:  w1 axis 0, a axis 1, b axis 1, w2 axis 1      (x and y are the graph's own: they stay)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np

from graphc.ir.graph import Graph, Node
from graphc.passes.channel_rules import relations
from graphc.passes.channel_ties import Axis, Choice, Indices, Tie

Elements = Mapping[Axis, Indices]
"""Some indices of some axes."""


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that lie on the same axes: any of them may go while one stays. `groups` are in the order of their indices.

    `heads`: whether they are the heads of an attention.
    """

    axes: tuple[Axis, ...]
    groups: tuple[Elements, ...]
    heads: bool = False


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All that can be cut of a graph, and why the rest cannot."""

    families: tuple[Family, ...]
    reasons: Mapping[Axis, str]
    """Axes that keep some or all of their indices -> why."""


def channel_groups(graph: Graph, heads: bool = False) -> ChannelGroups:
    """Analyse `graph`. Where a Reshape leaves a choice, whole heads are preferred with `heads`, else the finest cut."""
    return _Analysis(graph, heads).groups()


class _Analysis:
    """First axes as wholes, which decides most of it; then single indices of the axes that remain."""

    def __init__(self, graph: Graph, heads: bool) -> None:
        self._graph, self._prefer_heads = graph, heads
        self._ties: list[Tie] = []
        self._choices: list[tuple[Node, Choice]] = []
        self._pins: dict[Axis, str] = {}
        self._sizes: dict[Axis, int] = {}
        self._axes: nx.Graph[Axis] = nx.Graph()
        self._covers: dict[Axis, list[Axis]] = {}
        self._read()
        self._decide()

    def groups(self) -> ChannelGroups:
        """The connected components of single indices."""
        starts, elements = self._elements()
        view: nx.Graph[int] = nx.Graph()
        view.add_nodes_from(range(elements))
        for tie in self._ties:
            if tie.a in starts and tie.b in starts:
                view.add_edges_from(
                    zip((tie.left + starts[tie.a]).tolist(), (tie.right + starts[tie.b]).tolist(), strict=True)
                )
        stay = self._staying(starts)
        axes, reasons = list(starts), {axis: why for axis, why in self._pins.items() if axis[0] in self._graph.types}
        places = np.array([starts[axis] for axis in axes], np.int64)
        families: dict[tuple[Axis, ...], list[Elements]] = {}
        for component in nx.connected_components(view):
            parts = _parts(sorted(component), axes, places)
            why = next((stay[element] for element in component if element in stay), "")
            if why:
                reasons.update({axis: why for axis in parts if axis not in reasons})
            else:
                families.setdefault(tuple(parts), []).append(parts)
        return ChannelGroups(tuple(self._family(*each) for each in families.items()), reasons)

    def _family(self, axes: tuple[Axis, ...], groups: list[Elements]) -> Family:
        """Without the axes of factors, which are no values."""
        real = tuple(axis for axis in axes if axis[0] in self._graph.types)
        parts = [{axis: group[axis] for axis in real} for group in groups]
        ordered = sorted(parts, key=lambda group: int(group[real[0]][0])) if real else []
        return Family(real, tuple(ordered), not self._heads.isdisjoint(axes))

    def _read(self) -> None:
        """Ask the rules; what no rule speaks of is pinned."""
        for name in (*self._graph.inputs, *self._graph.outputs):
            for axis in self._axes_of(name):
                what = "an input" if name in self._graph.inputs else "an output"
                self._pins[axis] = f"'{name}' is {what} of the graph, which keeps its shape"
        for node in self._graph.nodes:
            found = relations(node, self._graph)
            for relation in found:
                if isinstance(relation, Tie):
                    self._tie(relation)
                elif isinstance(relation, Choice):
                    self._choices.append((node, relation))
            spoken = {axis for relation in found for axis in _mentioned(relation)}
            for name in (*node.reads, *node.results):
                for axis in self._axes_of(name):
                    if axis not in spoken:
                        self._pins.setdefault(axis, self._why(node, axis, bool(found)))

    def _why(self, node: Node, axis: Axis, known: bool) -> str:
        if known:
            return f"{node.label} works along axis {axis[1]} of '{axis[0]}'"
        names = (*filter(None, node.inputs), *node.results)
        if not all(self._graph.types[name].is_static for name in names):
            return f"a shape at {node.label} is open: give the model's inputs a shape, and `fold` before"
        return f"{node.label} has no rule that says which channels go together"

    def _axes_of(self, name: str) -> Iterator[Axis]:
        shape = self._graph.types[name].shape or ()
        for number, size in enumerate(shape):
            self._sizes[name, number] = size if isinstance(size, int) else 0
            yield name, number

    def _tie(self, tie: Tie) -> None:
        """Take a tie in; pins cross it to an axis that it covers as a whole."""
        self._ties.append(tie)
        for axis, indices in ((tie.a, tie.left), (tie.b, tie.right)):
            self._sizes.setdefault(axis, int(indices.max(initial=-1)) + 1)
        self._axes.add_edge(tie.a, tie.b)
        if len(np.unique(tie.right)) == self._size(tie.b):
            self._covers.setdefault(tie.a, []).append(tie.b)
        if len(np.unique(tie.left)) == self._size(tie.a):
            self._covers.setdefault(tie.b, []).append(tie.a)

    def _size(self, axis: Axis) -> int:
        if axis[0] in self._graph.types:
            return self._graph.types[axis[0]].dims[axis[1]]
        return self._sizes[axis]

    def _spread(self) -> None:
        """An axis that stays as a whole makes those stay that a tie covers."""
        open_ = list(self._pins)
        while open_:
            axis = open_.pop()
            for other in self._covers.get(axis, ()):
                if other not in self._pins:
                    self._pins[other] = self._pins[axis]
                    open_.append(other)

    def _decide(self) -> None:
        """Settle every choice: first those with one way left, then the earliest, until none is open."""
        self._heads = self._head_axes()
        open_ = self._choices
        self._spread()
        while open_:
            ways = [(node, choice, self._ways(choice)) for node, choice in open_]
            chosen = next((each for each in ways if len(each[2]) <= 1), ways[0])
            node, choice, options = chosen
            open_ = [each for each in open_ if each[1] is not choice]
            best = max(options, key=self._worth, default=None)
            kept = {best[0], best[1]} if best else set()
            if best:
                for tie in best[2]:
                    self._tie(tie)
            for option in choice.options:
                for axis in option[:2]:
                    if axis not in kept:
                        self._pins.setdefault(axis, f"{node.label} puts axis {axis[1]} of '{axis[0]}' with others")
            self._spread()

    def _ways(self, choice: Choice) -> list[tuple[Axis, Axis, tuple[Tie, Tie], int]]:
        return [option for option in choice.options if option[0] not in self._pins and option[1] not in self._pins]

    def _worth(self, option: tuple[Axis, Axis, tuple[Tie, Tie], int]) -> tuple[bool, int]:
        """Heads or not, as wanted, before the number of pieces that can go."""
        is_head = any(
            not self._heads.isdisjoint(nx.node_connected_component(self._axes, axis))
            for axis in option[:2]
            if axis in self._axes
        )
        return is_head == self._prefer_heads, option[3]

    def _head_axes(self) -> frozenset[Axis]:
        """Batch axes, but the first, of products of two computed matrices; heads of Attention."""
        found: set[Axis] = set()
        for node in self._graph.nodes:
            if node.op == "Attention":
                found.add((f"{node.name}#heads", 0))
            elif node.op == "MatMul" and not any(name in self._fixed for name in node.inputs):
                rank = len(self._graph.types[node.outputs[0]].shape or ())
                found.update((node.outputs[0], axis) for axis in range(1, rank - 2))
        return frozenset(found)

    @cached_property
    def _fixed(self) -> frozenset[str]:
        """Values that depend on constants alone."""
        fixed = set(self._graph.constants)
        for node in self._graph.nodes:
            if all(name in fixed for name in node.reads):
                fixed.update(node.results)
        return frozenset(fixed)

    def _elements(self) -> tuple[dict[Axis, int], int]:
        """The number of each open axis' first element, and of elements; axes that stay as a whole have none."""
        starts: dict[Axis, int] = {}
        count = 0
        for axis, size in self._sizes.items():
            if axis not in self._pins and size > 1:
                starts[axis] = count
                count += size
        return starts, count

    def _staying(self, starts: Mapping[Axis, int]) -> dict[int, str]:
        """Elements that a tie connects to an axis that stays as a whole -> why."""
        stay: dict[int, str] = {}
        for tie in self._ties:
            for axis, indices, other in ((tie.a, tie.left, tie.b), (tie.b, tie.right, tie.a)):
                if axis in starts and other not in starts:
                    why = self._pins.get(other, f"'{other[0]}' has one index along axis {other[1]}")
                    stay.update(dict.fromkeys((indices + starts[axis]).tolist(), why))
        return stay


def _mentioned(relation: object) -> Iterator[Axis]:
    if isinstance(relation, Tie):
        yield from (relation.a, relation.b)
    elif isinstance(relation, Choice):
        for option in relation.options:
            yield from option[:2]
    else:
        yield relation.axis  # type: ignore[attr-defined]


def _parts(elements: Sequence[int], axes: Sequence[Axis], places: Indices) -> Elements:
    """Elements by number as indices of axes."""
    numbers = np.array(elements, np.int64)
    owners = np.searchsorted(places, numbers, side="right") - 1
    cuts = np.flatnonzero(np.diff(owners)) + 1
    return {
        axes[int(owner[0])]: piece - places[owner[0]]
        for owner, piece in zip(np.split(owners, cuts), np.split(numbers, cuts), strict=True)
    }
