"""How far rounding alone can move an output: before a quantization, the last bits of floats decide whole steps.

    x -> Softmax -> QuantizeLinear -> integers -> y        1e-7 more in Softmax is a whole step for some elements

No two correct implementations agree there. So the reference is run again with every float result shaken by a millionth
of its largest magnitude (what the order of a sum does to it), and the artifact may be a few times as far from the
reference as those runs are.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from graphc.backends.integer_moves import MOVES
from graphc.backends.integer_region import DOMAIN
from graphc.backends.reference import Reference
from graphc.ir import Array, Graph, Node

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
