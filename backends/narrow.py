"""Products of bfloat16 in place of float32, where a target asks for that arithmetic: sums stay float32.

    y = Conv(x, w, b)   ->   y = graphc.bf16.Conv(graphc.bf16.Narrow(x), w', b)        x', w': uint16, the codes

Each operand is rounded once, to nearest, ties to even: by at most u = 2^-8 of itself, so that of a result
    |error| <= (2u + u^2 + (n + 1) 2^-24) sum |x| |w|        n terms, added in float32 in some order
Source: N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1. Constant weights are rounded at
compile time. What matrix tiles (AMX) do not fit stays in float32: convolutions with groups or of three dimensions,
products of vectors or of odd depth, layers with few channels or columns, and weights that a decoder computes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod

import ml_dtypes
import numpy as np

from graphc.backends.dot import tiles_fit
from graphc.backends.layout import DOMAIN as CHANNELS_LAST
from graphc.backends.targets import Target
from graphc.ir.graph import Array, Graph, Node, TensorType

DOMAIN = "graphc.bf16"
WIDTH = 2
"""Bytes of a code."""
CODE, FLOAT = np.dtype(np.uint16), np.dtype(np.float32)
ROUNDING = 2.0**-8
"""u: the largest relative error of rounding a normal number to bfloat16."""


def narrowed(graph: Graph, target: Target) -> Graph:
    """A laid-out graph with its products as `target.arithmetic` has them; the same object where that is float32."""
    return _Narrowing(graph).run() if target.arithmetic == "bf16" else graph


def codes(array: Array) -> Array:
    """float32 rounded to bfloat16, as the 16 bits that store it."""
    return array.astype(ml_dtypes.bfloat16).view(CODE)


@dataclass
class _Narrowing:
    """One walk in order; `narrow` are the codes that stand for values."""

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
            operands = [self._code(name) for name in node.inputs[:2]]
            self.nodes.append(replace(node, domain=DOMAIN, inputs=(*operands, *node.inputs[2:])))
        used = {name for node in self.nodes for name in node.reads} | set(self.graph.outputs)
        constants = {name: array for name, array in self.constants.items() if name in used}
        return replace(self.graph, nodes=tuple(self.nodes), types=self.types, constants=constants)

    def _takes(self, node: Node) -> bool:
        if (node.domain, node.op) not in {(CHANNELS_LAST, "Conv"), ("", "MatMul"), ("", "Gemm")}:
            return False
        x, w = (self.types[name] for name in node.inputs[:2])
        if x.dtype != FLOAT or w.dtype != FLOAT or not x.size or not w.size or self._is_decoded(node.inputs[1]):
            return False
        if node.op == "Conv":
            dense = node.get_int("group", 1) == 1 and len(w.dims) == 4 and node.inputs[1] in self.constants
            return dense and tiles_fit(*self._run(node))
        matrices = min(len(x.dims), len(w.dims)) > 1 and x.dims[-1] % 2 == 0 and not node.get_int("transA", 0)
        return matrices and tiles_fit(WIDTH * x.dims[-1], x.dims[-2])

    def _run(self, node: Node) -> tuple[int, int]:
        """(bytes of depth that lie next to each other, output columns in a row) of a convolution."""
        _, channels, _, across = self.types[node.inputs[1]].dims
        output = self.types[node.outputs[0]].dims[1:-1]
        together = node.get_ints("dilations", (1, 1))[-1] == 1
        stride = prod(node.get_ints("strides", (1, 1)))
        return WIDTH * -(-channels // 2) * 2 * (across if together else 1), prod(output) if stride == 1 else output[-1]

    def _is_decoded(self, name: str) -> bool:
        """Whether constants alone decide a value, but a node computes it."""
        fixed: Mapping[str, Array] = self.constants
        producer = self.graph.producers.get(name)
        return producer is not None and all(each in fixed or self._is_decoded(each) for each in producer.reads)

    def _code(self, name: str) -> str:
        if name not in self.narrow:
            made, kind = f"{name}@bf16", self.types[name]
            self.narrow[name] = made
            self.types[made] = TensorType(CODE, kind.dims)
            if name in self.constants:
                self.constants[made] = codes(self.constants[name])
            else:
                self.nodes.append(Node("Narrow", (name,), (made,), {}, made, DOMAIN))
        return self.narrow[name]


def bound(terms: int) -> float:
    """What a result may err, of the sum of the absolute values of its products."""
    return 2 * ROUNDING + ROUNDING**2 + (terms + 1) * 2.0**-24
