"""Dead code and common subexpressions.

    a = Relu(x); b = Relu(x); y = Add(a, b)   ->   a = Relu(x); y = Add(a, a)

A node is alive when a graph output needs it. Two nodes are one when operator, attributes and operands agree; constants
of equal type and bytes count as one operand. Large equal constants are stored once.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Attribute, Graph, Node
from graphc.passes.fold_constants import RANDOM

SHARED = 4096
"""Bytes from which equal constants are stored once; smaller ones keep their own names, which say what they are for."""

Key = tuple[object, ...]


class Digests:
    """Digests of constants, each computed once; holding the array keeps its id from being used again."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Array, Key]] = {}

    def __call__(self, array: Array) -> Key:
        """Type, shape and digest of the bytes: equal for equal constants."""
        if id(array) not in self._known:
            self._known[id(array)] = (array, _digest(array))
        return self._known[id(array)][1]


def _digest(array: Array) -> Key:
    if array.dtype == np.dtype(object):
        return (array.dtype.name, array.shape, tuple(map(str, array.ravel())))
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return (array.dtype.name, array.shape, blake2b(data, digest_size=16).digest())


def remove_duplicates(graph: Graph, digests: Digests) -> Graph:
    """Drop dead nodes, then merge equal nodes and large equal constants."""
    alive = _alive(graph)
    edit = Edit(graph)
    edit.remove(*(node for node in graph.nodes if node not in alive))
    aliases = _equal_constants(graph, digests)
    for name, first in aliases.items():
        if graph.constants[name].nbytes >= SHARED and name not in graph.outputs:
            edit.redirect(name, first)
    seen: dict[Key, Node] = {}
    for node in graph.nodes:
        if node not in alive or node.subgraphs or node.op in RANDOM or _keeps_name(node, graph):
            continue
        key = _key(node, aliases)
        first_node = seen.setdefault(key, node)
        if first_node is not node and _merge(graph, edit, node, first_node):
            aliases.update(zip(node.results, (aliases.get(n, n) for n in first_node.results), strict=True))
    return edit.apply()


def _alive(graph: Graph) -> set[Node]:
    alive: set[Node] = set()
    stack = [graph.producers[name] for name in graph.outputs if name in graph.producers]
    while stack:
        node = stack.pop()
        if node not in alive:
            alive.add(node)
            stack.extend(graph.producers[name] for name in node.reads if name in graph.producers)
    return alive


def _equal_constants(graph: Graph, digests: Digests) -> dict[str, str]:
    """Constant -> the first constant of the same type and bytes, where that is another one."""
    groups: dict[Key, list[str]] = {}
    for name, array in graph.constants.items():
        groups.setdefault((array.dtype.name, array.shape), []).append(name)
    aliases: dict[str, str] = {}
    for names in groups.values():
        if len(names) > 1:
            first: dict[Key, str] = {}
            for name in names:
                found = first.setdefault(digests(graph.constants[name]), name)
                if found != name:
                    aliases[name] = found
    return aliases


def _keeps_name(node: Node, graph: Graph) -> bool:
    """An Identity that gives a graph output its name."""
    return node.op == "Identity" and node.outputs[0] in graph.outputs


def _merge(graph: Graph, edit: Edit, node: Node, first: Node) -> bool:
    """Readers of `node` read `first` instead. Two graph outputs stay two: neither name may go."""
    pairs = list(zip(node.results, first.results, strict=True))
    if any(a in graph.outputs and b in graph.outputs for a, b in pairs):
        if len(pairs) > 1:
            return False
        edit.replace(node, "Identity", [first.outputs[0]], {})
        return False
    edit.remove(node)
    for old, new in pairs:
        edit.redirect(old, new)
    return True


def _key(node: Node, aliases: dict[str, str]) -> Key:
    operands = tuple(aliases.get(name, name) for name in node.inputs)
    present = tuple(bool(name) for name in node.outputs)
    return (node.domain, node.op, operands, present, _attributes(node.attributes.items()))


def _attributes(items: Iterable[tuple[str, Attribute]]) -> Key:
    return tuple(
        (key, _digest(value) if isinstance(value, np.ndarray) else (type(value).__name__, value))
        for key, value in sorted(items)
    )
