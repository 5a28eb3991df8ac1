"""How far rounding alone can move an output: before a quantization, the last bits of floats decide whole steps.

    x -> Softmax -> QuantizeLinear -> integers -> y        1e-7 more in Softmax is a whole step for some elements

No two correct implementations agree there. So the reference is run again with every float result shaken by a millionth
of its largest magnitude (what the order of a sum does to it), and the artifact may be a few times as far from the
reference as those runs are.

Of bfloat16 arithmetic the reference is run with every value that a product reads rounded to bfloat16, for all of its
readers: all the rounding that such an artifact does, and none of its mistakes. What differs between the two is which of
two neighbouring codes a value falls to where sums were added in another order.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graphc.backends.integer_moves import MOVES
from graphc.backends.integer_region import DOMAIN
from graphc.backends.reference import Reference
from graphc.ir import Array, Edit, Graph, Node

SHAKE = 1e-6
"""Standard deviation of the noise, of the largest magnitude of each float result."""
RUNS = 2
"""Shaken runs per input."""
MARGIN = 3.0
"""How much further than the shaken runs an artifact may be from the reference."""

EXACT = frozenset(
    {*MOVES, "QuantizeLinear", "DequantizeLinear", "MaxPool", "Relu", "Clip", "Min", "Max", "Neg", "Abs", "Identity"}
    | {"ArgMax", "ArgMin", "TopK", "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not"}
)
"""Operators of ONNX whose results have one right value on every machine, given their operands."""


PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
SPLIT = 65537.0
"""2^16 + 1. With c = x * 65537, c - (c - x) is x rounded to 24 - 16 = 8 bits, those of a bfloat16, for |x| < 2^111.
Source: T. Dekker, A floating-point technique for extending the available precision, Numerische Mathematik 18, 1971.
"""


def rounded_products(graph: Graph) -> Graph:
    """The graph with every float32 value that a product reads rounded to bfloat16's 8 bits, whoever reads it."""
    edit, split = Edit(graph), np.array(SPLIT, np.float32)
    products = [node for node in graph.nodes if not node.domain and node.op in PRODUCTS]
    names = dict.fromkeys(name for node in products for name in node.inputs[:2])
    floats = [name for name in names if graph.types[name].dtype == np.float32]
    rounded: dict[str, str] = {}
    for name in floats:
        scaled = edit.add("Mul", [name, edit.constant(split, "split")], name=f"{name}_scaled")
        low = edit.add("Sub", [scaled, name], name=f"{name}_low")
        rounded[name] = edit.add("Sub", [scaled, low], name=f"{name}_rounded")
    for node in graph.nodes:
        if not rounded.keys().isdisjoint(node.inputs):
            edit.replace(node, inputs=[rounded.get(name, name) for name in node.inputs])
    return edit.apply()


def is_exact(node: Node) -> bool:
    """Whether the node's results follow from its operands bit for bit."""
    return node.domain == DOMAIN or (not node.domain and node.op in EXACT)


def exact_values(graph: Graph) -> frozenset[str]:
    """The values of an integerized graph that have one right answer, bit for bit."""
    found = {*graph.inputs, *graph.constants}
    for node in graph.nodes:
        if is_exact(node) and found.issuperset(node.reads):
            found.update(node.results)
    return frozenset(found)


def stepping_values(graph: Graph) -> frozenset[str]:
    """The values that lie behind a quantization of what is not exact."""
    exact, found = exact_values(graph), set[str]()
    for node in graph.nodes:
        rounds = node.op == "QuantizeLinear" and not exact.issuperset(node.reads)
        if rounds or not found.isdisjoint(node.reads):
            found.update(node.results)
    return frozenset(found)


class Shaken(Reference):
    """The reference with noise on the results of float operators; the same noise every time it is made."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._rng = np.random.default_rng(0)

    def _evaluate(self, node: Node, values: Mapping[str, Array]) -> Sequence[Array]:
        found = super()._evaluate(node, values)
        return found if is_exact(node) else [self._shaken(array) for array in found]

    def _shaken(self, array: Array) -> Array:
        if array.dtype.kind != "f" or not array.size:
            return array
        peak = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
        noise = self._rng.standard_normal(array.shape) * (SHAKE * peak)
        return np.asarray(array + noise.astype(array.dtype), array.dtype)
