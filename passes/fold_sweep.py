"""One sweep of local rewrites over a graph: many rules, one edit.

A rule is a function `(sweep, node) -> bool`: it matches around `node`, checks, claims the nodes of the match, records
the rewrite and says whether it did. Every rule gives a value an equal definition that reads earlier values only, so any
number of rewrites can be applied together. What keeps them apart are claims: a node is changed by one rule per sweep,
and nobody looks through a node that another rule changes. What loses the race is found again by the next sweep.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from graphc.ir.edit import Edit
from graphc.ir.graph import Array, Graph, Node, TensorType
from graphc.passes.fold_decoders import decoded_values

Rule = Callable[["Sweep", Node], bool]
Rules = Mapping[str, Sequence[Rule]]
"""Operator -> the rules that start at it, tried in this order."""

Refuse = Callable[[Node, str], None]
"""Told that a node was left alone, and why."""


def merge(*tables: Rules) -> Rules:
    """One table out of several; rules of earlier tables come first."""
    merged: dict[str, tuple[Rule, ...]] = {}
    for table in tables:
        for op, rules in table.items():
            merged[op] = merged.get(op, ()) + tuple(rules)
    return merged


def by_operator(rules: Iterable[tuple[Rule, Iterable[str]]]) -> Rules:
    """A table from a list of rules, each with the operators it starts at."""
    table: dict[str, tuple[Rule, ...]] = {}
    for rule, ops in rules:
        for op in ops:
            table[op] = (*table.get(op, ()), rule)
    return table


class Sweep:
    """The graph as it was before the sweep, what was claimed so far, and the edit that collects the rewrites."""

    def __init__(self, graph: Graph, refuse: Refuse) -> None:
        self.graph = graph
        self.edit = Edit(graph)
        self.refuse = refuse
        self.outputs = frozenset(graph.outputs)
        self._decoded = decoded_values(graph)
        self._changed: set[Node] = set()
        self._seen: set[Node] = set()

    def run(self, rules: Rules) -> Graph:
        """Try every rule on every node once. Returns the same object where none applied."""
        for node in self.graph.nodes:
            if node.domain or node in self._changed:
                continue
            for rule in rules.get(node.op, ()):
                if rule(self, node):
                    break
        return self.edit.apply()

    def claim(self, *nodes: Node, through: Iterable[Node] = ()) -> bool:
        """Reserve `nodes` for changing and `through` for reading past them; False, and nothing reserved, if taken."""
        passed = [node for node in through if node not in nodes]
        if any(node in self._changed or node in self._seen for node in nodes):
            return False
        if any(node in self._changed for node in passed):
            return False
        self._changed.update(nodes)
        self._seen.update(passed)
        return True

    def producer(self, name: str, *ops: str) -> Node | None:
        """The node behind `name`, if it is a standard one (and one of `ops`, where given)."""
        node = self.graph.producers.get(name)
        return node if node is not None and not node.domain and (not ops or node.op in ops) else None

    def sole(self, name: str) -> bool:
        """Whether one node reads `name`, once, and it is no graph output."""
        user = self.graph.sole_user(name)
        return user is not None and user.inputs.count(name) <= 1

    def constant(self, name: str) -> Array | None:
        return self.graph.constants.get(name)

    def operand(self, node: Node, index: int) -> str:
        """The operand at `index`, the empty string where it is absent."""
        return node.inputs[index] if index < len(node.inputs) else ""

    def scalar(self, name: str) -> float | None:
        """The value of a constant of one element."""
        array = self.graph.constants.get(name)
        if array is None or array.size != 1 or array.dtype == np.dtype(object):
            return None
        return float(array.reshape(()).astype(np.float64))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """The elements of an integer constant, flat."""
        array = self.graph.constants.get(name)
        if array is None or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(v) for v in array.ravel())

    def type(self, name: str) -> TensorType:
        return self.graph.types[name]

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape, where every dimension is a number."""
        kind = self.graph.types[name]
        return kind.dims if kind.is_static else None

    def rank(self, name: str) -> int | None:
        shape = self.graph.types[name].shape
        return None if shape is None else len(shape)

    def is_float(self, name: str) -> bool:
        return np.issubdtype(self.graph.types[name].dtype, np.floating)

    def is_decoded(self, name: str) -> bool:
        """Whether `name` is a decoder expression over constants; those stay as they are."""
        return name in self._decoded

    def same_type(self, a: str, b: str) -> bool:
        """Whether two values surely have one type (a dimension with no name is not known to equal another)."""
        first, second = self.graph.types[a], self.graph.types[b]
        return first == second and first.shape is not None and "?" not in first.shape

    def forward(self, node: Node, source: str, through: Iterable[Node] = ()) -> bool:
        """`node`'s first result equals `source`: drop the node (a graph output may need an Identity for its name)."""
        result = node.outputs[0]
        if result in self.outputs and (source in self.outputs or source not in self.graph.producers):
            if node.op == "Identity" and node.inputs[0] == source:
                return False
            if not self.claim(node, through=through):
                return False
            self.edit.replace(node, "Identity", [source], {}, outputs=[result])
            return True
        if not self.claim(node, through=through):
            return False
        self.edit.remove(node)
        self.edit.redirect(result, source)
        return True

    def rewritten(self, name: str, array: Array, user: Node) -> str:
        """`array` as what `user` reads in place of constant `name`; the name stays, if nobody else reads it."""
        if self.graph.sole_user(name) is not user:
            return self.edit.constant(array, name)
        self.edit.define(name, array)
        return name

    def shape_constant(self, dims: Sequence[int], hint: str = "shape") -> str:
        """A new int64 vector."""
        return self.edit.constant(np.array(dims, np.int64), hint)
