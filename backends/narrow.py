"""Products of narrower floats in place of float32: the walk that every such arithmetic shares.

    y = Conv(x, w, b)   ->   y = domain.Conv(domain.Narrow(x), w', b)        x', w': 16 bits an element

Constant weights are narrowed at compile time, and a value that several products read once. A product that an arithmetic
does not take stays in float32; of each, `Narrowed.told` says what multiplies it and why, as the build's report does.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from graphc.artifact import Multiplied
from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.targets import Target
from graphc.ir.graph import Array, Graph, Node, TensorType

FLOAT = np.dtype(np.float32)
MULTIPLIES = {(CHANNELS_LAST, "Conv"), (CHANNELS_LAST, "ConvTranspose"), ("", "MatMul"), ("", "Gemm")}


@dataclass(frozen=True)
class Narrowed:
    """A graph, and what multiplies each of its products of floats."""

    graph: Graph
    told: tuple[Multiplied, ...] = ()


@dataclass
class Narrowing(ABC):
    """One walk in order over a laid-out graph; `narrow` are the values that stand for others."""

    graph: Graph
    target: Target
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)
    told: list[Multiplied] = field(default_factory=list)

    domain: ClassVar[str]
    """Of the nodes that it writes."""
    narrow_type: ClassVar[np.dtype[np.generic]]
    instructions: ClassVar[Mapping[str, str]]
    """By kind of dot product (`graphc.backends.dot`), which a narrowed node has as its attribute `dot`."""

    @abstractmethod
    def chosen(self, node: Node) -> tuple[str, str]:
        """(the kind of dot product for a product of floats, empty for float32; why)."""

    @abstractmethod
    def narrowed(self, array: Array) -> Array:
        """A float32 constant as products read it."""

    def stored(self, name: str) -> Array | None:
        """A constant as float32; None for what is computed."""
        return self.constants.get(name)

    def run(self) -> Narrowed:
        self.types, self.constants = dict(self.graph.types), dict(self.graph.constants)
        for node in self.graph.nodes:
            self.nodes.append(self._narrowed(node) if self._multiplies(node) else node)
        self.nodes = self.finished()
        used = {name for node in self.nodes for name in node.reads} | set(self.graph.outputs)
        constants = {name: array for name, array in self.constants.items() if name in used}
        graph = replace(self.graph, nodes=tuple(self.nodes), types=self.types, constants=constants)
        return Narrowed(graph, tuple(self.told))

    def finished(self) -> list[Node]:
        """The nodes as they stay, once every product is decided."""
        return self.nodes

    def dims(self, node: Node) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of both operands."""
        return self.types[node.inputs[0]].dims, self.types[node.inputs[1]].dims

    def _multiplies(self, node: Node) -> bool:
        if (node.domain, node.op) not in MULTIPLIES:
            return False
        x, w = (self.types[name] for name in node.inputs[:2])
        return x.dtype == w.dtype == FLOAT and x.size > 0 and w.size > 0

    def _narrowed(self, node: Node) -> Node:
        """The node on narrow operands, or as it is; either way with a record of what multiplies it."""
        kind, reason = self.chosen(node)
        label = node.name or node.outputs[0]
        self.told.append(Multiplied(label, self.instructions.get(kind, FLOAT.name), reason))
        if not kind:
            return node
        operands = [self._operand(name) for name in node.inputs[:2]]
        attributes = {**node.attributes, "dot": kind}
        return replace(node, domain=self.domain, inputs=(*operands, *node.inputs[2:]), attributes=attributes)

    def _operand(self, name: str) -> str:
        if name not in self.narrow:
            made = f"{name}@{self.domain.rpartition('.')[2]}"
            self.narrow[name] = made
            self.types[made] = TensorType(self.narrow_type, self.types[name].dims)
            stored = self.stored(name)
            if stored is not None:
                self.constants[made] = self.narrowed(stored)
            else:
                self.nodes.append(Node("Narrow", (name,), (made,), {}, made, self.domain))
        return self.narrow[name]


def unfit_convolution(node: Node, weights: tuple[int, ...]) -> str:
    """Why kernels for narrow floats do not take the form of a convolution; empty where they do."""
    if node.op == "ConvTranspose":
        return "it is transposed"
    if node.get_int("group", 1) > 1:
        return "its channels are in groups, too few each"
    return "" if len(weights) == 4 else "it does not have two spatial dimensions"


def unfit_product(node: Node, x: tuple[int, ...], w: tuple[int, ...]) -> str:
    """The same for a product of matrices."""
    if min(len(x), len(w)) == 1:
        return "an operand is a vector"
    return "its first operand is transposed" if node.get_int("transA", 0) else ""
