"""Changing a graph: collect edits, then check and apply them once. The graph that is edited never changes.

edit = Edit(graph)
y = edit.add("Relu", [x])
edit.redirect(old, y)
graph = edit.apply()          # the same object when nothing was recorded
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from graphc.errors import InternalError
from graphc.ir.graph import EMPTY, Array, Attribute, Graph, Node, TensorType
from graphc.ir.infer import STANDARD, infer
from graphc.ir.nested import infer_nested


class Edit:
    """A set of changes to one graph. Names given out are unique in the graph and in this edit."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._taken = _names(graph)
        self._counters: dict[str, count[int]] = {}
        self._removed: set[Node] = set()
        self._added: list[Node] = []
        self._position: dict[Node, int] = {}
        self._constants: dict[str, Array] = {}
        self._types: dict[str, TensorType] = {}
        self._redirects: dict[str, str] = {}
        self._inputs: tuple[str, ...] | None = None
        self._replaced: dict[Node, Node] = {}

    @property
    def recorded(self) -> bool:
        """Whether anything was changed; a new constant that nothing reads is no change."""
        redefined = not self._constants.keys().isdisjoint(self.graph.constants)
        return bool(self._removed or self._added or self._redirects or self._inputs is not None or redefined)

    def fresh(self, hint: str) -> str:
        """A name not used before: `hint`, or `hint_1`, `hint_2`, ..."""
        numbers = self._counters.setdefault(hint, count(1))
        name = hint
        while name in self._taken:
            name = f"{hint}_{next(numbers)}"
        self._taken.add(name)
        return name

    def constant(self, array: Array, hint: str = "constant") -> str:
        """A new constant; returns its name."""
        name = self.fresh(hint)
        self._constants[name] = array
        self._types[name] = TensorType(array.dtype, tuple(array.shape))
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        attributes: Mapping[str, Attribute] = EMPTY,
        *,
        name: str = "",
        domain: str = "",
        outputs: Sequence[str] = (),
        types: Sequence[TensorType] = (),
        near: Node | None = None,
    ) -> str:
        """A new node; returns its first result.

        `outputs` are names to produce (default: one fresh name). `types` states the results' types for domains that
        onnx knows nothing of. `near` is the node whose place in the order it takes, for a stable text form.
        """
        label = self.fresh(name or op.lower())
        results = tuple(outputs) or (self.fresh(f"{label}_out"),)
        node = Node(op, tuple(inputs), results, dict(attributes), label, domain)
        self._added.append(node)
        self._types.update(zip(results, types, strict=False))
        self._position[node] = self._index_of(near) if near is not None else len(self.graph.nodes)
        return results[0]

    def remove(self, *nodes: Node) -> None:
        """Drop nodes. Whatever still reads their results must be redirected, or the results produced anew."""
        self._removed.update(nodes)

    def dissolve(self, node: Node) -> None:
        """Drop a control-flow node whose body comes in its place: the names inside it are free again."""
        self.remove(node)
        rest = replace(self.graph, nodes=tuple(n for n in self.graph.nodes if n is not node))
        inside = set[str]().union(*(_names(body) - set(body.captures) for body in node.subgraphs))
        self._taken -= inside - _names(rest)

    def replace(
        self,
        node: Node,
        op: str | None = None,
        inputs: Sequence[str] | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        outputs: Sequence[str] | None = None,
        domain: str | None = None,
        types: Sequence[TensorType] = (),
    ) -> None:
        """Put a changed node in `node`'s place, under the same node name; it produces the same names, or `outputs`.

        With `outputs`, the old names are gone: whoever produced the new ones must be removed or replaced as well.
        """
        changed = replace(
            node,
            op=op or node.op,
            inputs=node.inputs if inputs is None else tuple(inputs),
            outputs=node.outputs if outputs is None else tuple(outputs),
            attributes=node.attributes if attributes is None else dict(attributes),
            domain=node.domain if domain is None else domain,
        )
        self.remove(node)
        self._added.append(changed)
        self._types.update(zip(changed.outputs, types, strict=False))
        self._position[changed] = self._index_of(node)
        same = (node.op, node.domain, len(node.outputs)) == (changed.op, changed.domain, len(changed.outputs))
        if same and attributes is None and not types:
            self._replaced[changed] = self._replaced.get(node, node)

    def define(self, name: str, array: Array) -> None:
        """The existing value `name` becomes this constant; a node that produced it must be removed."""
        self._constants[name] = array
        self._types[name] = TensorType(array.dtype, tuple(array.shape))

    def redirect(self, old: str, new: str) -> None:
        """Every reader of `old` (graph outputs too, which keep their name) reads `new` instead."""
        self._redirects[old] = new

    def set_inputs(self, inputs: Mapping[str, TensorType]) -> None:
        """Replace the graph's inputs: names (existing or new) with their types, in order."""
        self._inputs = tuple(inputs)
        self._taken.update(inputs)
        self._types.update(inputs)

    def apply(self) -> Graph:
        """The edited graph: sorted, types inferred where operands changed, unused constants dropped."""
        if not self.recorded:
            return self.graph
        inputs = self.graph.inputs if self._inputs is None else self._inputs
        nodes = [(i, node) for i, node in enumerate(self.graph.nodes) if node not in self._removed]
        nodes += [(self._position[node], node) for node in self._added if node not in self._removed]
        renamed, outputs, kept = self._outputs([node for _, node in nodes], inputs)
        nodes += [(len(self.graph.nodes), node) for node in kept]
        before = dict(zip(self.graph.nodes, self.graph.nodes, strict=True)) | self._replaced
        placed: list[tuple[int, Node]] = []
        for i, node in nodes:
            final = _rename(node, self._redirects, renamed)
            if node in before:
                before[final] = before[node]
            placed.append((i, final))
        constants = {**self.graph.constants, **self._constants}
        ordered = _sorted(placed, {*inputs, *constants, *self.graph.captures})
        known = {**self.graph.types, **self._types}
        known.update({new: known[old] for old, new in renamed.items() if old in known})
        ordered, types = _types(ordered, inputs, constants, known, _Before(self.graph, before))
        used = {name for node in ordered for name in node.reads} | set(outputs)
        lost = next((name for name in outputs if name not in types), None)
        if lost is not None:
            raise InternalError(lost, "is an output of the graph, and nothing produces it after this edit.")
        return Graph(
            self.graph.name,
            inputs,
            outputs,
            ordered,
            {n: t for n, t in types.items() if n not in constants or n in used},
            {n: a for n, a in constants.items() if n in used},
            self.graph.metadata,
        )

    def _index_of(self, node: Node) -> int:
        if node in self._position:
            return self._position[node]
        if not hasattr(self, "_order"):
            self._order = {n: i for i, n in enumerate(self.graph.nodes)}
        return self._order[node]

    def _outputs(
        self, nodes: list[Node], inputs: tuple[str, ...]
    ) -> tuple[dict[str, str], tuple[str, ...], list[Node]]:
        """Keep the names of redirected graph outputs: rename the new source, or copy it if it has a name to keep."""
        produced = {name for node in nodes for name in node.results}
        renamed: dict[str, str] = {}
        copies: list[Node] = []
        for output in self.graph.outputs:
            source = _follow(output, self._redirects)
            if source == output:
                continue
            if output in produced:  # its old producer stays, for its other results perhaps
                renamed[output] = self.fresh(f"{output}_before")
            if source in produced and source not in self.graph.outputs and source not in renamed:
                renamed[source] = output
            else:
                copies.append(Node("Identity", (source,), (output,), EMPTY, self.fresh(f"{output}_copy")))
        return renamed, self.graph.outputs, copies


def _names(graph: Graph) -> set[str]:
    """Every name of a graph, those inside its subgraphs too: a new value must not hide under one of them."""
    names = {*graph.types, *(node.name for node in graph.nodes)}
    return names.union(*(_names(body) for node in graph.nodes for body in node.subgraphs))


def _follow(name: str, redirects: Mapping[str, str]) -> str:
    seen = set()
    while name in redirects:
        if name in seen:
            raise InternalError(name, "redirected in a circle.")
        seen.add(name)
        name = redirects[name]
    return name


def _rename(node: Node, redirects: Mapping[str, str], renamed: Mapping[str, str]) -> Node:
    """`node` with its operands redirected, then both sides renamed; subgraphs included."""
    reads = node.reads
    if not any(name in redirects or name in renamed for name in (*reads, *node.outputs)):
        return node
    final = {name: renamed.get(_follow(name, redirects), _follow(name, redirects)) for name in {*reads, *node.outputs}}
    results = tuple(renamed.get(name, name) for name in node.outputs)
    operands = tuple(final.get(name, name) for name in node.inputs)
    attributes = {
        key: rename_captures(value, final) if isinstance(value, Graph) else value
        for key, value in node.attributes.items()
    }
    if (
        operands == node.inputs
        and results == node.outputs
        and all(attributes[k] is v for k, v in node.attributes.items())
    ):
        return node
    return replace(node, inputs=operands, outputs=results, attributes=attributes)


def rename_captures(graph: Graph, names: Mapping[str, str]) -> Graph:
    """A subgraph that reads other names from the graph around it: `names` maps old ones to new ones."""
    changed = {name: names[name] for name in graph.captures if names.get(name, name) != name}
    if not changed:
        return graph
    nodes = tuple(_rename(node, changed, {}) for node in graph.nodes)
    return replace(graph, nodes=nodes, outputs=tuple(changed.get(name, name) for name in graph.outputs))


def _sorted(nodes: Sequence[tuple[int, Node]], given: set[str]) -> tuple[Node, ...]:
    """Topological order that stays as close to the given positions as it can (Kahn, with a heap on positions)."""
    producers: dict[str, int] = {}
    for number, (_, node) in enumerate(nodes):
        for name in node.results:
            if name in producers or name in given:
                raise InternalError(node.label, f"produces '{name}', which something else produces after this edit.")
            producers[name] = number
    waiting: list[int] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for number, (_, node) in enumerate(nodes):
        reads = node.reads
        missing = next((name for name in reads if name not in producers and name not in given), None)
        if missing is not None:
            raise InternalError(node.label, f"reads '{missing}', which nothing produces after this edit.")
        sources = {producers[name] for name in reads if name in producers}
        waiting.append(len(sources))
        for source in sources:
            readers[source].append(number)
    heap = [(position, number) for number, (position, _) in enumerate(nodes) if not waiting[number]]
    heapq.heapify(heap)
    order: list[Node] = []
    while heap:
        _, number = heapq.heappop(heap)
        order.append(nodes[number][1])
        for reader in readers[number]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(heap, (nodes[reader][0], reader))
    if len(order) < len(nodes):
        stuck = next(node for number, (_, node) in enumerate(nodes) if waiting[number])
        raise InternalError(stuck.label, "lies on a cycle after this edit.")
    return tuple(order)


@dataclass(frozen=True)
class _Before:
    """The graph before the edit, and which of its nodes each node of the edited graph was there."""

    graph: Graph
    nodes: Mapping[Node, Node]

    def same(self, node: Node, types: Mapping[str, TensorType], constants: Mapping[str, Array]) -> bool:
        """Whether the node computes what it did: operands of the same types, and of the same data where constant.

        Then its types stay: they may be finer than what this node alone tells (onnx follows shape arithmetic).
        """
        old = self.nodes.get(node)
        if old is None or len(old.inputs) != len(node.inputs) or (old is not node and node.subgraphs):
            return False
        reads = zip(node.inputs, old.inputs, strict=True) if old is not node else ((n, n) for n in node.reads)
        return all(
            types.get(new) == self.graph.types.get(was) and constants.get(new) is self.graph.constants.get(was)
            for new, was in reads
        )

    def types_of(self, node: Node) -> list[TensorType | None]:
        """The types that its results had; none for a node that is new."""
        old = self.nodes.get(node)
        return [self.graph.types.get(name) for name in old.outputs] if old is not None else []


def _types(
    nodes: tuple[Node, ...],
    inputs: tuple[str, ...],
    constants: Mapping[str, Array],
    known: Mapping[str, TensorType],
    before: _Before,
) -> tuple[tuple[Node, ...], dict[str, TensorType]]:
    """Types of every value; a node is asked again only where it is new or the type or data of an operand changed."""
    types = {name: known[name] for name in (*inputs, *before.graph.captures)}
    types.update({name: TensorType(array.dtype, tuple(array.shape)) for name, array in constants.items()})
    typed: list[Node] = []
    for node in nodes:
        final = node
        stated = {name: known[name] for name in node.results if name in known}
        if before.same(node, types, constants):
            old = before.types_of(node)
            types.update({name: kind for name, kind in zip(node.outputs, old, strict=True) if name and kind})
        elif node.domain not in STANDARD and len(stated) == len(node.results):
            types.update(stated)
        elif node.subgraphs:
            final, found = infer_nested(node, types, constants)
            types.update(found)
        else:
            types.update(infer(node, types, constants))
        typed.append(final)
    return tuple(typed), types


def with_constants(graph: Graph, arrays: Mapping[str, Array]) -> Graph:
    """The same graph with other data for some constants; types and shapes must stay."""
    for name, array in arrays.items():
        if graph.types[name] != TensorType(np.dtype(array.dtype), tuple(array.shape)):
            raise InternalError(name, f"new data {array.dtype}{list(array.shape)} does not fit {graph.types[name]}.")
    return replace(graph, constants={**graph.constants, **arrays})
