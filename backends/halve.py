"""Products of float16 in place of float32, where a target asks for that arithmetic.

    y = Conv(x, w, b)   ->   y = graphc.fp16.Conv(graphc.fp16.Narrow(x), w', b)        x', w': float16

Each operand is rounded once, to nearest, by at most u = 2^-11 of itself. At most L = `MOST_TERMS` products are added in
float16, each step rounded once, and those sums in float32. Of a result, with g = L u / (1 - L u),
    |error| <= (2u + u^2 + (1 + u)^2 (g + (n / L + 1) 2^-23)) sum |x| |w|              n terms
as long as operands and sums stay within float16's range (magnitudes to 65504; below 2^-14 the steps are 2^-24).
Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, sections 3.1 and 4.2 (blocked summation).
Constant weights are rounded at compile time. What fills no vectors of eight stays in float32: convolutions with groups
or of three dimensions, products of vectors, layers with few channels; so does what has weights that are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.targets import Target
from graphc.ir.graph import Array, Graph, Node, TensorType

DOMAIN = "graphc.fp16"
FLOAT, HALF = np.dtype(np.float32), np.dtype(np.float16)
MOST_TERMS = 32
"""L: products in one sum of float16. Fewer err less, and cost more additions in float32."""
ROUNDING, WIDE_ROUNDING = 2.0**-11, 2.0**-24
LARGEST = float(np.finfo(HALF).max)
FEWEST = 8
"""Channels in and out below which vectors of eight would be mostly empty."""


def halved(graph: Graph, target: Target) -> Graph:
    """A laid-out graph with its products in float16; the same object where the target's arithmetic is another."""
    return _Halving(graph).run() if target.arithmetic == "fp16" else graph


def bound(terms: int) -> float:
    """What a result may err, of the sum of the absolute values of its products."""
    together = min(terms, MOST_TERMS) * ROUNDING
    grown = together / (1 - together) + (terms / MOST_TERMS + 1) * 2 * WIDE_ROUNDING
    return 2 * ROUNDING + ROUNDING**2 + (1 + ROUNDING) ** 2 * grown


@dataclass
class _Halving:
    """One walk in order; `narrow` are the float16 values that stand for others."""

    graph: Graph
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)

    def run(self) -> Graph:
        self.types, self.constants = dict(self.graph.types), dict(self.graph.constants)
        for node in self.graph.nodes:
            if not self._takes(node):
                self.nodes.append(node)
                continue
            operands = [self._half(name) for name in node.inputs[:2]]
            self.nodes.append(replace(node, domain=DOMAIN, inputs=(*operands, *node.inputs[2:])))
        used = {name for node in self.nodes for name in node.reads} | set(self.graph.outputs)
        constants = {name: array for name, array in self.constants.items() if name in used}
        return replace(self.graph, nodes=tuple(self.nodes), types=self.types, constants=constants)

    def _takes(self, node: Node) -> bool:
        if (node.domain, node.op) not in {(CHANNELS_LAST, "Conv"), ("", "MatMul"), ("", "Gemm")}:
            return False
        x, w = (self.types[name] for name in node.inputs[:2])
        weights = self.graph.constants.get(node.inputs[1])
        if x.dtype != FLOAT or w.dtype != FLOAT or weights is None or np.abs(weights).max(initial=0) > LARGEST:
            return False
        return self._fills(node, x.dims, w.dims)

    def _fills(self, node: Node, x: Sequence[int], w: Sequence[int]) -> bool:
        """Whether there is enough of everything for vectors of eight."""
        if node.op == "Conv":
            dense = node.get_int("group", 1) == 1 and len(w) == 4
            return dense and min(w[0], w[1]) >= FEWEST
        matrices = min(len(x), len(w)) > 1 and not node.get_int("transA", 0)
        return matrices and min(x[-1], *w[-2:]) >= FEWEST

    def _half(self, name: str) -> str:
        if name not in self.narrow:
            made, kind = f"{name}@fp16", self.types[name]
            self.narrow[name] = made
            self.types[made] = TensorType(HALF, kind.dims)
            if name in self.constants:
                self.constants[made] = self.constants[name].astype(HALF)
            else:
                self.nodes.append(Node("Narrow", (name,), (made,), {}, made, DOMAIN))
        return self.narrow[name]
